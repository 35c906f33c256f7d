"""How does a federation get its keys? Files in one directory, made by `comitia keys` or by a single call.

::

    DIR/
      enrolment.key      signs the directory. Keep it offline, away from the coordinator
      enrolment.pub      what everybody checks the directory with
      coordinator.key    the coordinator's identity: for its machine only
      directory.signed   who belongs to the federation: public, given to everybody
      clients/<id>.key   one client's identity: for its worker's machine only

Nothing is ever overwritten but `directory.signed`, which is replaced by its successor in one step. Client keys are
written first: after a crash in between, the same command goes on with the keys that are there.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from shared.crypto.signing import (
    KEY_BYTES,
    SigningKey,
    load_signing_key,
    load_verifying_key,
    save_signing_key,
    save_verifying_key,
)
from shared.directory import (
    COORDINATOR_KEY_FILE,
    DIRECTORY_FILE,
    ENROLMENT_PUBLIC_FILE,
    Directory,
    load_directory,
    sign_directory,
    with_clients,
    without_clients,
)
from shared.disk import sync_directory
from shared.errors import DirectoryError, SettingsError
from shared.identity import ClientId, Name, numbered_client
from worker.keystore import CLIENT_KEYS_DIRECTORY, key_file

Entropy = Callable[[int], bytes]
"""Returns that many unpredictable bytes."""

CLIENTS_PER_COMMAND_MAX = 100_000

_NAME = TypeAdapter[str](Name)


@dataclass(frozen=True, slots=True)
class FederationKeys:
    """Where one federation's keys are, and its directory."""

    root: Path
    directory: Directory

    @property
    def enrolment_key_file(self) -> Path:
        """The private key that signs the directory."""
        return self.root / "enrolment.key"

    @property
    def enrolment_public_file(self) -> Path:
        """The public key that the directory verifies with."""
        return self.root / ENROLMENT_PUBLIC_FILE

    @property
    def coordinator_key_file(self) -> Path:
        """The coordinator's private key."""
        return self.root / COORDINATOR_KEY_FILE

    @property
    def directory_file(self) -> Path:
        """The signed directory."""
        return self.root / DIRECTORY_FILE

    @property
    def client_key_directory(self) -> Path:
        """The clients' private keys, as `worker.keystore` reads them."""
        return self.root / CLIENT_KEYS_DIRECTORY

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """All clients in good standing, sorted."""
        return self.directory.active_clients()


def make_federation_keys(
    out: Path, federation: str, clients: int, sites: int = 1, *, entropy: Entropy = secrets.token_bytes
) -> FederationKeys:
    """Make all keys of a federation of `clients` clients at once, shared out among `sites` sites in turn.

    Clients are called ``client-001`` …, sites and their broker users ``site-1`` …. A fixed `entropy` gives the same
    federation again, for reproducible simulations; it must never be used otherwise.

    Raises:
        DirectoryError: `out` has keys already, or cannot be written.
        SettingsError: a name that is not allowed, or no site.
    """
    if sites < 1:
        raise SettingsError("sites: at least 1 is needed")
    keys = init_keys(out, federation, entropy=entropy)
    names = numbered_names(keys.directory, clients)
    for site in range(min(sites, clients)):
        keys = enroll_clients(keys, f"site-{site + 1}", names[site::sites], entropy=entropy)
    return keys


def init_keys(
    out: Path, federation: str, *, passphrase: bytes | None = None, entropy: Entropy = secrets.token_bytes
) -> FederationKeys:
    """Make the enrolment key, the coordinator's key and an empty directory, number 1.

    Raises:
        DirectoryError: `out` has keys already, or cannot be written.
        SettingsError: the federation's name is not allowed.
    """
    _check_names("federation", [federation])
    enrolment, coordinator = (SigningKey.from_seed(entropy(KEY_BYTES)) for _ in range(2))
    directory = Directory(
        federation=federation,
        federation_id=UUID(bytes=entropy(16), version=4),
        number=1,
        coordinator_key=coordinator.public.raw.hex(),
    )
    keys = FederationKeys(out, directory)
    for path in (keys.enrolment_key_file, keys.coordinator_key_file, keys.directory_file):
        if path.exists():
            raise DirectoryError(f"{path}: exists already, and keys are never overwritten; choose another directory")
    _make_directory(out)
    _make_directory(keys.client_key_directory)
    save_signing_key(keys.enrolment_key_file, enrolment, passphrase)
    save_verifying_key(keys.enrolment_public_file, enrolment.public)
    save_signing_key(keys.coordinator_key_file, coordinator)
    _replace(keys.directory_file, sign_directory(directory, enrolment))
    return keys


def load_keys(root: Path) -> FederationKeys:
    """Open and verify the directory of identities in `root`; needs no private key.

    Raises:
        DirectoryError: missing, or not verified.
    """
    public = load_verifying_key(root / ENROLMENT_PUBLIC_FILE)
    return FederationKeys(root, load_directory(root / DIRECTORY_FILE, public))


def enroll_clients(
    keys: FederationKeys,
    site: str,
    clients: Sequence[str],
    *,
    broker_user: str | None = None,
    passphrase: bytes | None = None,
    entropy: Entropy = secrets.token_bytes,
) -> FederationKeys:
    """Make keys for new clients of a site and the next directory, which names them.

    Raises:
        DirectoryError: a name was given before, a key does not open, or a file cannot be written.
        SettingsError: a name that is not allowed.
    """
    _check_names("site", [site])
    _check_names("client", clients)
    enrolment = _enrolment_key(keys, passphrase)
    known = keys.directory.sites.get(site)
    user = broker_user or (known.broker_user if known else site)
    new = {client: _client_key(keys, client, entropy) for client in clients}
    directory = with_clients(keys.directory, site, user, {client: key.public for client, key in new.items()})
    for client, key in new.items():
        path = key_file(keys.client_key_directory, client)
        if not path.exists():
            save_signing_key(path, key)
    return _publish(keys, directory, enrolment)


def revoke_clients(keys: FederationKeys, clients: Iterable[str], *, passphrase: bytes | None = None) -> FederationKeys:
    """Make the next directory, in which `clients` are revoked.

    Raises:
        DirectoryError: one of them is not enrolled or is revoked already, or a key does not open.
    """
    enrolment = _enrolment_key(keys, passphrase)
    return _publish(keys, without_clients(keys.directory, clients), enrolment)


def _publish(keys: FederationKeys, directory: Directory, enrolment: SigningKey) -> FederationKeys:
    _replace(keys.directory_file, sign_directory(directory, enrolment))
    return FederationKeys(keys.root, directory)


def _enrolment_key(keys: FederationKeys, passphrase: bytes | None) -> SigningKey:
    path = keys.enrolment_key_file
    key = load_signing_key(path, passphrase)
    if key.public != load_verifying_key(keys.enrolment_public_file):
        raise DirectoryError(f"{path}: is not the private half of {keys.enrolment_public_file}")
    return key


def _client_key(keys: FederationKeys, client: str, entropy: Entropy) -> SigningKey:
    path = key_file(keys.client_key_directory, client)
    # There, but not enrolled: an earlier command was cut short.
    return load_signing_key(path) if path.exists() else SigningKey.from_seed(entropy(KEY_BYTES))


def numbered_names(directory: Directory, count: int) -> list[str]:
    """Choose names ``client-001`` … for new clients, none of which was ever given.

    Raises:
        SettingsError: not between 1 and `CLIENTS_PER_COMMAND_MAX`.
    """
    if not 1 <= count <= CLIENTS_PER_COMMAND_MAX:
        raise SettingsError(f"clients: {count} is not between 1 and {CLIENTS_PER_COMMAND_MAX}")
    free = (name for number in itertools.count(1) if (name := numbered_client(number)) not in directory.clients)
    return list(itertools.islice(free, count))


def _check_names(field: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            _NAME.validate_python(name)
        except ValidationError as error:
            raise SettingsError(
                f"{field}: {name!r} is not a name; use 1 to 63 of a-z, 0-9, - and _, but not - or _ at an end"
            ) from error


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be made: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f"{path.name}.new")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be written: {error.strerror}") from error
