"""How does a small message reach one member only, through hands that must not read it?

    seal(key, payload, associated) -> sealed            16 bytes longer than the payload
    open_sealed(key, sealed, associated) -> payload

AES-256-GCM under a key for exactly one message (`shared.crypto.keys.sealing_key`: one per group transcript, sender and
receiver, hence per direction). The nonce is therefore always zero: a nonce only has to differ between messages of one
key, and one that is never sent cannot be got wrong. Never call `seal` twice with one key and different messages; a
repeated message is sent as the bytes that were made first.

AES because the masks stand on it already (`shared.crypto.prg`): one primitive to trust, not two.

Reference: M. Dworkin, "Galois/Counter Mode (GCM) and GMAC", NIST SP 800-38D.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError

KEY_BYTES = 32
TAG_BYTES = 16
"""How much longer a sealed message is than its payload."""

_NONCE = bytes(12)


def seal(key: bytes, payload: bytes, associated: bytes) -> bytes:
    """Encrypt and authenticate `payload`; authenticate `associated` (the transcript hash) with it.

    Args:
        key: 32 bytes, used for this message and no other.

    Returns:
        len(payload) + `TAG_BYTES` bytes.

    Raises:
        LocalProtocolError: the key has another size.
    """
    return _cipher(key).encrypt(_NONCE, payload, associated)


def open_sealed(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return the payload of `sealed`.

    Raises:
        RemoteProtocolError: not what `seal` made with this key and this `associated` (`BAD_SEAL`).
        LocalProtocolError: the key has another size.
    """
    try:
        return _cipher(key).decrypt(_NONCE, sealed, associated)
    except InvalidTag:
        raise RemoteProtocolError(RefusalReason.BAD_SEAL, f"{len(sealed)} sealed bytes do not open") from None


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise LocalProtocolError(f"a sealing key has {KEY_BYTES} bytes, not {len(key)}")
    return AESGCM(key)
