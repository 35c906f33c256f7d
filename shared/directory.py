"""Who belongs to the federation? The signed directory of its coordinator, sites and clients.

The directory is signed by the *enrolment key*, which is not the coordinator's: the hub can neither add nor replace
anybody. It is numbered; a reader that has seen a number accepts none below it. A revoked client stays in the
directory with its last key, and its name is never given again.

The file is one line ``comitia-directory 1 <signature, hex>`` and, behind it, the canonical JSON that is signed; size
and signature are checked before anything is decoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.crypto.signing import SIGNATURE_BYTES, Purpose, SigningKey, VerifyingKey
from shared.errors import DirectoryError, RefusalReason, RemoteProtocolError
from shared.identity import COORDINATOR, OPERATOR, ClientId, Name

DIRECTORY_BYTES_MAX = 32 << 20
"""About 250,000 clients; larger files are refused unread."""

DIRECTORY_FILE = "directory.signed"
ENROLMENT_PUBLIC_FILE = "enrolment.pub"
COORDINATOR_KEY_FILE = "coordinator.key"
"""What the files are called in the directory that coordinator and workers are pointed to."""

_HEADER = b"comitia-directory 1 "
_HEADER_BYTES = len(_HEADER) + 2 * SIGNATURE_BYTES + 1

KeyHex = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}$")]
BrokerUser = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9._@=, -]{1,128}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(_Record):
    """An operator of workers; `broker_user` is the user that its workers log in with."""

    broker_user: BrokerUser


class Client(_Record):
    """A client's site and its Ed25519 identity key (64 hex digits)."""

    site: Name
    key: KeyHex

    @cached_property
    def verifying_key(self) -> VerifyingKey:
        """The identity key, parsed when first asked for: a directory of 10,000 clients opens without curve work."""
        return VerifyingKey(bytes.fromhex(self.key))


class Directory(_Record):
    """The members of one federation, as of directory `number`."""

    federation: Name
    federation_id: UUID
    number: Annotated[int, Field(ge=1, lt=1 << 48)]
    coordinator_key: KeyHex
    sites: Mapping[Name, Site] = Field(default_factory=dict)
    clients: Mapping[Name, Client] = Field(default_factory=dict)
    revoked: frozenset[Name] = frozenset()

    @cached_property
    def coordinator(self) -> VerifyingKey:
        """The key under which everything of the coordinator verifies."""
        return VerifyingKey(bytes.fromhex(self.coordinator_key))

    def client_key(self, client: str) -> VerifyingKey:
        """The identity key of a client in good standing.

        Raises:
            RemoteProtocolError: not enrolled, or revoked (`UNKNOWN_SENDER`).
        """
        entry = self.clients.get(client)
        if entry is None or client in self.revoked:
            state = "revoked" if entry else "not enrolled"
            raise RemoteProtocolError(RefusalReason.UNKNOWN_SENDER, f"client {client!r} is {state}")
        return entry.verifying_key

    def active_clients(self) -> tuple[ClientId, ...]:
        """All clients that are not revoked, sorted; sorted once."""
        return self._active_clients

    @cached_property
    def _active_clients(self) -> tuple[ClientId, ...]:
        return tuple(ClientId(client) for client in sorted(self.clients.keys() - self.revoked))

    def encode(self) -> bytes:
        """The canonical bytes: JSON in ASCII, keys and revocations sorted, no spaces. What is signed and hashed."""
        fields = self.model_dump(mode="json") | {"revoked": sorted(self.revoked)}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    def digest(self) -> bytes:
        """SHA-256 of `encode()` (32 bytes); the same for equal directories."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.encode()).digest()

    @model_validator(mode="after")
    def _coherent(self) -> Directory:
        if COORDINATOR in self.clients:
            raise ValueError(f"no client may be called {COORDINATOR!r}")
        if OPERATOR in self.sites:
            raise ValueError(f"no site may be called {OPERATOR!r}")
        homeless = sorted(name for name, client in self.clients.items() if client.site not in self.sites)
        if homeless:
            raise ValueError(f"the site of client {homeless[0]!r} is not in the directory")
        if not self.revoked <= self.clients.keys():
            raise ValueError(f"revoked but never enrolled: {min(self.revoked - self.clients.keys())!r}")
        # A key that serves two would let one of them speak for the other.
        keys = [client.key for client in self.clients.values()] + [self.coordinator_key]
        if len(set(keys)) != len(keys):
            raise ValueError("one identity key stands for two")
        users = [site.broker_user for site in self.sites.values()]
        if len(set(users)) != len(users):
            raise ValueError("two sites share a broker user")
        return self


def with_clients(directory: Directory, site: str, broker_user: str, clients: Mapping[str, VerifyingKey]) -> Directory:
    """The next directory, in which `clients` belong to `site`; a new site is entered.

    Raises:
        DirectoryError: a name was given before, to whomever; the site has another broker user; a name is ill formed.
    """
    taken = sorted(clients.keys() & directory.clients.keys())
    if taken:
        raise DirectoryError(f"client {taken[0]!r} is enrolled already; a name is never given twice")
    known = directory.sites.get(site)
    if known is not None and known.broker_user != broker_user:
        raise DirectoryError(f"site {site!r} has the broker user {known.broker_user!r}, not {broker_user!r}")
    fields = directory.model_dump()
    fields["sites"][site] = {"broker_user": broker_user}
    fields["clients"] |= {name: {"site": site, "key": key.raw.hex()} for name, key in clients.items()}
    return _next(fields)


def without_clients(directory: Directory, clients: Iterable[str]) -> Directory:
    """The next directory, in which `clients` are revoked, for good.

    Raises:
        DirectoryError: one of them is not enrolled, or revoked already.
    """
    leaving = frozenset(clients)
    for client in sorted(leaving):
        if client not in directory.clients or client in directory.revoked:
            state = "revoked already" if client in directory.clients else "not enrolled"
            raise DirectoryError(f"client {client!r} is {state}")
    return _next(directory.model_dump() | {"revoked": directory.revoked | leaving})


def sign_directory(directory: Directory, enrolment_key: SigningKey) -> bytes:
    """Sign a directory and return the content of its file.

    Raises:
        DirectoryError: the enrolment key is the coordinator's, or the file would pass `DIRECTORY_BYTES_MAX`.
    """
    _check_apart(directory, enrolment_key.public)
    body = directory.encode()
    if _HEADER_BYTES + len(body) > DIRECTORY_BYTES_MAX:
        raise DirectoryError(f"a directory of {len(body)} bytes passes the limit of {DIRECTORY_BYTES_MAX}")
    signature = enrolment_key.sign(Purpose.DIRECTORY, body)
    return _HEADER + signature.hex().encode("ascii") + b"\n" + body


def open_directory(data: bytes, enrolment_public: VerifyingKey, *, at_least: int = 1) -> Directory:
    """Verify and decode a directory file's content.

    Args:
        data: what `sign_directory` returned.
        enrolment_public: the key it must be signed with.
        at_least: the highest number that the caller has seen; anything older is refused.

    Raises:
        DirectoryError: too large, not a directory, not signed by this key, incoherent, or older than `at_least`.
    """
    if len(data) > DIRECTORY_BYTES_MAX:
        raise DirectoryError(f"a directory of {len(data)} bytes passes the limit of {DIRECTORY_BYTES_MAX}")
    signature, body = _split(data)
    try:
        enrolment_public.verify(Purpose.DIRECTORY, signature, body)
    except RemoteProtocolError as error:
        raise DirectoryError(
            f"the directory is not signed by the enrolment key {enrolment_public.fingerprint}"
        ) from error
    directory = _decode(body)
    _check_apart(directory, enrolment_public)
    if directory.number < at_least:
        raise DirectoryError(f"the directory has number {directory.number}, but number {at_least} was seen before")
    return directory


def load_directory(path: Path, enrolment_public: VerifyingKey, *, at_least: int = 1) -> Directory:
    """`open_directory` on a file; every error names it.

    Raises:
        DirectoryError: as `open_directory`, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(DIRECTORY_BYTES_MAX + 1)
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return open_directory(data, enrolment_public, at_least=at_least)
    except DirectoryError as error:
        raise DirectoryError(f"{path}: {error}") from error


def _split(data: bytes) -> tuple[bytes, bytes]:
    header, body = data[:_HEADER_BYTES], data[_HEADER_BYTES:]
    if not (header.startswith(_HEADER) and header.endswith(b"\n") and len(header) == _HEADER_BYTES):
        raise DirectoryError("not a directory of version 1")
    try:
        text = header[len(_HEADER) : -1].decode("ascii")
        signature = bytes.fromhex(text)
    except ValueError as error:
        raise DirectoryError("the directory's signature is not hexadecimal") from error
    # `fromhex` also takes capitals and spaces; one directory shall have one file.
    if signature.hex() != text:
        raise DirectoryError("the directory's signature is not in canonical form")
    return signature, body


def _decode(body: bytes) -> Directory:
    try:
        directory = Directory.model_validate_json(body)
    except ValidationError as error:
        raise DirectoryError(f"the directory is signed, but unsound: {_first(error)}") from error
    # Its digest is taken over the canonical bytes: any others would be two files for one digest.
    if directory.encode() != body:
        raise DirectoryError("the directory is signed, but not in canonical form")
    return directory


def _next(fields: dict[str, Any]) -> Directory:
    try:
        return Directory.model_validate(fields | {"number": fields["number"] + 1})
    except ValidationError as error:
        raise DirectoryError(_first(error)) from error


def _check_apart(directory: Directory, enrolment: VerifyingKey) -> None:
    if enrolment == directory.coordinator:
        raise DirectoryError("the enrolment key must not be the coordinator's key: the hub could enrol anybody")


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
