"""Where is the broker, and how does this process introduce itself?

URLs carry credentials: nothing here prints one. Errors and log lines name a broker by `Endpoint.label`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import pika
from cryptography import x509
from cryptography.x509.oid import NameOID
from pika.credentials import ExternalCredentials, PlainCredentials

from shared.errors import SettingsError

_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
# A network that swallows packets must not hold up an attempt: the next host of the list may work.
_CONNECT_TIMEOUT_S = 4.0
HANDSHAKE_TIMEOUT_S = 6.0
"""Until a broker has accepted us, TCP and TLS included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How to reach the broker.

    `urls` are tried in turn (`amqp://user:password@host:port/vhost`, or `amqps` for TLS). With `tls_certificate` and
    `tls_key` the process identifies itself by certificate (EXTERNAL); the broker's user is then the one of the URL or
    else the certificate's common name. `window_bytes` bounds what is published but not confirmed.
    """

    urls: tuple[str, ...] = field(repr=False)
    heartbeat_s: int = 8
    start_timeout_s: float = 30.0
    window_bytes: int = 16 * 2**20
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            SettingsError: no URL, one that is malformed or not TLS although certificates are set, or half of a
                certificate.
        """
        if not self.urls:
            raise SettingsError("broker URLs: at least one is needed, for example amqp://user:password@host:5672/")
        secured = self.tls_ca or self.tls_certificate or self.tls_key
        for number, url in enumerate(self.urls, start=1):
            if _split(url, number).scheme != "amqps" and secured:
                raise SettingsError(
                    f"broker URL {number} is not amqps://, but certificates are set: it would be spoken to in clear; "
                    "use amqps://, or unset COMITIA_BROKER_TLS_CA, _CERTIFICATE and _KEY"
                )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("broker TLS: a client certificate and its key must be given together")
        if self.heartbeat_s < 1 or self.start_timeout_s <= 0 or self.window_bytes < 1:
            raise SettingsError("broker heartbeat, start timeout and window must be positive")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One broker of the list, ready to connect to. `label` is safe to show; `user` is who we are there."""

    label: str
    user: str
    parameters: pika.ConnectionParameters = field(repr=False)


def endpoints(settings: BrokerSettings, connection_name: str) -> tuple[Endpoint, ...]:
    """The brokers of the list, in its order, for a connection that the broker shows as `connection_name`.

    Raises:
        SettingsError: a TLS file cannot be read.
    """
    parts = [_split(url, number) for number, url in enumerate(settings.urls, start=1)]
    context = _tls_context(settings) if any(part.scheme == "amqps" for part in parts) else None
    return tuple(_endpoint(part, settings, context, connection_name) for part in parts)


def _split(url: str, number: int) -> SplitResult:
    problem = None
    try:
        parts = urlsplit(url)
        # Reading the port is what checks it.
        valid = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        if not valid:
            problem = "must look like amqp://user:password@host:5672/vhost or amqps://…"
        elif parts.query or parts.fragment:
            problem = "must not have a query; heartbeat, timeouts and TLS have settings of their own"
    except ValueError:
        problem = "has a malformed host or port"
    if problem:
        raise SettingsError(f"broker URL {number} {problem}")
    return parts


def _endpoint(
    parts: SplitResult, settings: BrokerSettings, context: ssl.SSLContext | None, connection_name: str
) -> Endpoint:
    host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]
    by_certificate = parts.scheme == "amqps" and settings.tls_certificate is not None
    if by_certificate:
        assert settings.tls_certificate is not None
        user = unquote(parts.username) if parts.username else _common_name(settings.tls_certificate)
        credentials: PlainCredentials | ExternalCredentials = ExternalCredentials()
    else:
        user = unquote(parts.username or "guest")
        credentials = PlainCredentials(user, unquote(parts.password or "guest"))
    parameters = pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=unquote(parts.path[1:]) or "/",
        credentials=credentials,
        heartbeat=settings.heartbeat_s,
        socket_timeout=_CONNECT_TIMEOUT_S,
        stack_timeout=HANDSHAKE_TIMEOUT_S,
        # A blocked broker is not a dead one: heartbeats tell these apart, and publishing waits.
        blocked_connection_timeout=None,
        ssl_options=pika.SSLOptions(context, host) if context and parts.scheme == "amqps" else None,
        client_properties={"connection_name": connection_name, "product": "Comitia"},
    )
    return Endpoint(label=f"{host}:{port}", user=user, parameters=parameters)


def _tls_context(settings: BrokerSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_certificate is not None:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (settings.tls_ca, settings.tls_certificate, settings.tls_key) if path)
        raise SettingsError(f"broker TLS: cannot use {files}: {error}") from error
    return context


def _common_name(certificate: Path) -> str:
    try:
        subject = x509.load_pem_x509_certificate(certificate.read_bytes()).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (OSError, ValueError, IndexError) as error:
        raise SettingsError(f"broker TLS: no common name in {certificate}: {error}") from error
