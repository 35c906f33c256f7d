"""Who signed these bytes? Ed25519 keys, the separation of what they sign, and their files.

Every signature covers ``b"comitia/1/" + purpose + b"\\0" + message``: a signature made for one purpose means nothing
for another, and none of them means anything outside this protocol.

Verification raises and never returns a bool: a result that must not be ignored is not a return value.

Private keys are PKCS8 PEM files that only their owner may read, optionally under a passphrase.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.disk import sync_directory
from shared.errors import DirectoryError, RefusalReason, RemoteProtocolError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
VERIFICATION_CACHE_ENTRIES = 4096
"""Enough for every offer, share and agreement of a version with hundreds of clients; 32 bytes each, plus the dict."""

_SIGNATURES_PER_CLIENT = 4

_TAG = b"comitia/1/"
_SECRET_FILE_BYTES_MAX = 16 * 1024


class Purpose(StrEnum):
    """What a signature is for. Values are part of the signed bytes: they never change and are never reused."""

    MESSAGE = "message"
    DIRECTORY = "directory"


def _signed_bytes(purpose: Purpose, message: tuple[bytes | memoryview, ...]) -> bytes:
    # No purpose contains a NUL, so the prefix ends where the message begins, whatever the message holds.
    return b"".join((_TAG, purpose.encode(), b"\0", *message))


class VerifyingKey:
    """An Ed25519 public key. Equal and hashable by its 32 bytes."""

    __slots__ = ("_key", "raw")

    def __init__(self, raw: bytes) -> None:
        """Take the 32 bytes of a public key.

        Raises:
            DirectoryError: not 32 bytes.
        """
        if len(raw) != KEY_BYTES:
            raise DirectoryError(f"a public key has {KEY_BYTES} bytes, not {len(raw)}")
        self.raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    def verify(self, purpose: Purpose, signature: bytes, *message: bytes | memoryview) -> None:
        """Return if `signature` (64 bytes) was made by this key over `message` for `purpose`.

        Raises:
            RemoteProtocolError: it was not (`BAD_SIGNATURE`).
        """
        try:
            self._key.verify(signature, _signed_bytes(purpose, message))
        except InvalidSignature:
            detail = f"{purpose} of {sum(map(len, message))} bytes does not verify with key {self.fingerprint}"
            raise RemoteProtocolError(RefusalReason.BAD_SIGNATURE, detail) from None

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits: enough to tell keys apart by eye, never to compare them."""
        return self.raw[:8].hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyingKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"VerifyingKey({self.fingerprint}…)"


class SigningKey:
    """An Ed25519 private key. It shows only its public half, and cannot be pickled."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyingKey(key.public_key().public_bytes_raw())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Derive the key pair of a 32-byte secret seed (RFC 8032, section 5.1.5).

        The caller owns the entropy. Tests and simulations pass fixed seeds; everything else passes fresh ones.
        """
        if len(seed) != KEY_BYTES:
            raise ValueError(f"an Ed25519 seed has {KEY_BYTES} bytes, not {len(seed)}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, purpose: Purpose, *message: bytes | memoryview) -> bytes:
        """Sign a message, given whole or in pieces; 64 bytes. The same key, purpose and message give the same."""
        return self._key.sign(_signed_bytes(purpose, message))

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """Encode the private key as PKCS8 PEM, encrypted if there is a passphrase."""
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    def __reduce__(self) -> str:
        raise TypeError("a private key is never pickled")

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.fingerprint}…)"


class VerificationCache:
    """Remembers signatures that verified, so that a repeated message costs one hash and not one curve operation.

    Only what verified is remembered, so forgeries push nothing out; the least recently used entry goes first.
    It belongs to one thread.
    """

    def __init__(self, entries_max: int = VERIFICATION_CACHE_ENTRIES) -> None:
        self._entries_max = entries_max
        self._verified: OrderedDict[bytes, None] = OrderedDict()

    @classmethod
    def for_clients(cls, clients: int) -> VerificationCache:
        """One for whoever hears all of them.

        An offer is verified when it comes, and again when its group is opened, after all that came meanwhile.
        """
        return cls(max(VERIFICATION_CACHE_ENTRIES, _SIGNATURES_PER_CLIENT * clients))

    def verify(self, key: VerifyingKey, purpose: Purpose, signature: bytes, *message: bytes | memoryview) -> None:
        """Do what `VerifyingKey.verify` does, or nothing if exactly this was verified before.

        Raises:
            RemoteProtocolError: the signature does not verify (`BAD_SIGNATURE`).
        """
        if len(signature) != SIGNATURE_BYTES:
            detail = f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}"
            raise RemoteProtocolError(RefusalReason.BAD_SIGNATURE, detail)
        name = _verification_name(key, purpose, signature, message)
        if name in self._verified:
            self._verified.move_to_end(name)
            return
        key.verify(purpose, signature, *message)
        self._remember(name)

    def made(self, key: SigningKey, purpose: Purpose, signature: bytes, *message: bytes | memoryview) -> None:
        """Take a signature as verified that the caller has just made with `key`: what comes back of it costs a hash."""
        self._remember(_verification_name(key.public, purpose, signature, message))

    def _remember(self, name: bytes) -> None:
        self._verified[name] = None
        if len(self._verified) > self._entries_max:
            self._verified.popitem(last=False)

    def __len__(self) -> int:
        return len(self._verified)


def _verification_name(
    key: VerifyingKey, purpose: Purpose, signature: bytes, message: tuple[bytes | memoryview, ...]
) -> bytes:
    # Key and signature have fixed sizes and the purpose ends with a NUL: two different calls never hash the same.
    digest = hashlib.sha256(b"".join((key.raw, signature, purpose.encode(), b"\0")))
    for piece in message:
        digest.update(piece)
    return digest.digest()


def save_signing_key(path: Path, key: SigningKey, passphrase: bytes | None = None) -> None:
    """Write a private key to a new file of mode 0600, and see it on the disk.

    Raises:
        DirectoryError: the file is there already (a key is never overwritten), or cannot be written.
    """
    _write_new(path, key.to_pem(passphrase), mode=0o600)


def load_signing_key(path: Path, passphrase: bytes | None = None) -> SigningKey:
    """Read a private key.

    Raises:
        DirectoryError: missing, readable by others, not an Ed25519 key in PEM, or the passphrase does not fit.
    """
    pem = read_secret_file(path)
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (TypeError, ValueError) as error:
        reason = _why_not_loaded(pem, passphrase)
        raise DirectoryError(f"{path}: {reason}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DirectoryError(f"{path}: not an Ed25519 key")
    return SigningKey(key)


def save_verifying_key(path: Path, key: VerifyingKey) -> None:
    """Write a public key (SubjectPublicKeyInfo PEM) to a new file.

    Raises:
        DirectoryError: the file is there already, or cannot be written.
    """
    public = Ed25519PublicKey.from_public_bytes(key.raw)
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write_new(path, pem, mode=0o644)


def load_verifying_key(path: Path) -> VerifyingKey:
    """Read a public key.

    Raises:
        DirectoryError: missing, or not an Ed25519 public key in PEM.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DirectoryError(f"{path}: not a PEM public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise DirectoryError(f"{path}: not an Ed25519 key")
    return VerifyingKey(key.public_bytes_raw())


def read_secret_file(path: Path) -> bytes:
    """Read a small file that nobody but its owner may be able to read.

    Raises:
        DirectoryError: missing, unreadable, larger than 16 KiB, or open to group or world; the last names the chmod.
    """
    try:
        with path.open("rb") as file:
            # The mode of the file that is open, not of the name: it cannot be exchanged between check and use.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise DirectoryError(f"{path}: others may read this secret (mode {mode:04o}); run: chmod 600 {path}")
            content = file.read(_SECRET_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _SECRET_FILE_BYTES_MAX:
        raise DirectoryError(f"{path}: larger than {_SECRET_FILE_BYTES_MAX} bytes, so not a key")
    return content


def _why_not_loaded(pem: bytes, passphrase: bytes | None) -> str:
    if b"ENCRYPTED" not in pem:
        return "not a PEM private key, or one without the passphrase that was given"
    return "encrypted, and no passphrase was given" if passphrase is None else "the passphrase does not open it"


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except FileExistsError as error:
        raise DirectoryError(f"{path}: exists already, and keys are never overwritten") from error
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be written: {error.strerror}") from error
