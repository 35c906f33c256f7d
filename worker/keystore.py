"""Where does a client's identity key come from? A key directory with one file ``<client>.key`` for each client.

The files are private (mode 0600), and so must be their directory against writing by others. A key is used
only if the signed directory names it: a worker that holds a wrong or revoked key says so before it sends anything.
"""

from __future__ import annotations

import stat
from pathlib import Path

from shared.crypto.signing import SigningKey, load_signing_key
from shared.directory import Directory
from shared.errors import DirectoryError, RemoteProtocolError
from shared.identity import ClientId

CLIENT_KEYS_DIRECTORY = "clients"
"""Where the keys lie beside the signed directory."""

_SUFFIX = ".key"


def key_file(key_directory: Path, client: str) -> Path:
    """The file of one client's identity key."""
    return key_directory / f"{client}{_SUFFIX}"


def clients_with_keys(key_directory: Path, directory: Directory) -> tuple[ClientId, ...]:
    """The clients in good standing whose keys are here, sorted: whom this worker may serve.

    Raises:
        DirectoryError: the key directory is missing, or others may write to it.
    """
    _check_directory(key_directory)
    present = {path.name.removesuffix(_SUFFIX) for path in key_directory.glob(f"*{_SUFFIX}")}
    return tuple(client for client in directory.active_clients() if client in present)


def identity_key(key_directory: Path, client: str, directory: Directory) -> SigningKey:
    """Load a client's identity key and see that the directory of identities names it.

    Raises:
        DirectoryError: no key, a key open to others, a client that is not enrolled or is revoked, or another key
            than the directory's.
    """
    _check_directory(key_directory)
    try:
        enrolled = directory.client_key(client)
    except RemoteProtocolError as error:
        raise DirectoryError(f"directory {directory.number} of {directory.federation}: {error.detail}") from error
    path = key_file(key_directory, client)
    key = load_signing_key(path)
    if key.public != enrolled:
        raise DirectoryError(
            f"{path}: has key {key.public.fingerprint}, but directory {directory.number} of {directory.federation} "
            f"names {enrolled.fingerprint} for client {client!r}"
        )
    return key


def _check_directory(key_directory: Path) -> None:
    try:
        mode = stat.S_IMODE(key_directory.stat().st_mode)
    except OSError as error:
        raise DirectoryError(f"{key_directory}: cannot be read: {error.strerror}") from error
    if mode & 0o022:
        raise DirectoryError(
            f"{key_directory}: others may exchange these keys (mode {mode:04o}); run: chmod go-w {key_directory}"
        )
