"""Does a process trust only the broker that it should, and does a certificate stand for a password?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BrokerUnavailable, SettingsError
from shared.transport.broker_settings import BrokerSettings
from shared.transport.port import Queue, QueueKind, Topology
from shared.transport.rabbitmq import RabbitMqTransport
from tests.certificates import HOST_NAME, TlsSite
from tests.containers import PASSWORD, USER
from tests.contracts.bench import Recorder

QUEUE = Queue(name="tls", kind=QueueKind.QUORUM)
Opener = Callable[..., tuple[RabbitMqTransport, Recorder]]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens transports to one broker and closes them at the end."""
    transports = []

    def open_one(host: str, port: int, login: str = f"{USER}:{PASSWORD}@", **tls: Any) -> Any:
        recorder = Recorder()
        settings = BrokerSettings(urls=(f"amqps://{login}{host}:{port}/",), start_timeout_s=1.0, **tls)
        transports.append(RabbitMqTransport(settings, recorder, name="tls"))
        return transports[-1], recorder

    yield open_one
    for transport in transports:
        transport.close(0)


def test_messages_pass_over_tls_with_a_password(tls: TlsSite, opened: Opener) -> None:
    transport, events = opened(HOST_NAME, tls.port, tls_ca=tls.authority)
    transport.declare(Topology(exchanges=(), queues=(QUEUE,)))
    transport.consume(QUEUE, prefetch=10)
    large = bytes(300_000)
    for body in (b"small", large):
        transport.publish("", QUEUE.name, body)

    deliveries = events.wait_deliveries(QUEUE, 2)

    assert [delivery.body for delivery in deliveries] == [b"small", large]
    assert {delivery.user for delivery in deliveries} == {USER}


def test_a_certificate_stands_for_a_password_and_its_name_for_the_user(tls: TlsSite, opened: Opener) -> None:
    certificate, key = tls.client
    transport, events = opened(HOST_NAME, tls.port, "", tls_ca=tls.authority, tls_certificate=certificate, tls_key=key)
    queue = Queue(name="tls-by-certificate", kind=QueueKind.QUORUM)
    transport.declare(Topology(exchanges=(), queues=(queue,)))
    transport.consume(queue, prefetch=10)
    transport.publish("", queue.name, b"signed by nobody")

    (delivery,) = events.wait_deliveries(queue, 1)

    assert delivery.user == tls.user


@pytest.mark.parametrize(
    ("host", "authority", "certificate"),
    [
        (HOST_NAME, "other_authority", None),
        (HOST_NAME, None, None),
        ("127.0.0.1", "authority", None),
        (HOST_NAME, "authority", "stranger"),
    ],
    ids=["of another authority", "of an authority that the system does not know", "of another host", "a stranger's"],
)
def test_a_certificate_that_does_not_hold_opens_no_connection(
    tls: TlsSite, opened: Opener, host: str, authority: str | None, certificate: str | None
) -> None:
    shown = dict(zip(("tls_certificate", "tls_key"), getattr(tls, certificate), strict=True)) if certificate else {}
    transport, _ = opened(host, tls.port, tls_ca=authority and getattr(tls, authority), **shown)

    with pytest.raises(BrokerUnavailable, match=f"{host}:{tls.port}.*(?i:certificate|ssl)") as refused:
        transport.connect()
    assert PASSWORD not in str(refused.value)


def test_who_sets_certificates_speaks_to_nobody_in_clear(tmp_path: Path) -> None:
    for urls in (("amqp://hub:5672",), ("amqps://hub-1", "amqp://hub-2")):
        with pytest.raises(SettingsError, match=rf"broker URL {len(urls)} .*amqps://.*COMITIA_BROKER_TLS_CA"):
            BrokerSettings(urls=urls, tls_ca=tmp_path / "ca.pem")
    BrokerSettings(urls=("amqps://hub-1", "amqps://hub-2"), tls_ca=tmp_path / "ca.pem")


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    nothing = tmp_path / "ca.pem"
    for broken in ("is not there", "is no PEM"):
        with pytest.raises(SettingsError, match=f"broker TLS: cannot use {nothing}"):
            RabbitMqTransport(BrokerSettings(urls=("amqps://hub",), tls_ca=nothing), lambda _: None, name=broken)
        nothing.write_text("no certificate")
