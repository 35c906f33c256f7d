"""Which pseudo-random words belong to a key? The keystream of AES-256 in counter mode, read as little-endian words.

    Keystream(key).fill(words)          overwrites `words` with the next words of the stream

Block i is AES(key, i + 2), the number as 16 bytes, big endian: what AES-256-GCM with a nonce of zeros adds to its
plaintext. It is taken from the library's GCM, whose tag nobody asks for, because OpenSSL's GCM uses the wide AES
instructions of newer processors and its plain counter mode does not: 17 GB/s beside 7.5 on one machine. With those
instructions switched off there, it was 4.9 beside 7.5. The words are the same everywhere.

Every stream starts at its first block: a key is for one stream and for nothing else, and `shared.crypto.keys` derives a
new one for every mask.

Guarantee: words that nobody without the key can tell from uniform ones, as long as AES-256 is a pseudo-random
permutation. A stream ends after 64 GiB. No statistical generator and no short seed gives that.

Reference: M. Dworkin, "Recommendation for Block Cipher Modes of Operation", NIST SP 800-38A, section 6.5, and
"Galois/Counter Mode (GCM) and GMAC", NIST SP 800-38D, section 7.1.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from shared.codec.quantize import Words
from shared.errors import LocalProtocolError

KEY_BYTES = 32
BLOCK_BYTES = 128 * 1024
"""Bytes per call into the cipher: long enough to hide the call, short enough to stay in the second-level cache."""

_ZEROS = memoryview(bytes(BLOCK_BYTES))
_NONCE = bytes(12)


class Keystream:
    """The words of one key, from the first one on. Words of 16 and of 32 bits are the same bytes."""

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        """Start the stream of a key (32 bytes).

        Raises:
            LocalProtocolError: the key has another size.
        """
        if len(key) != KEY_BYTES:
            raise LocalProtocolError(f"a keystream's key has {KEY_BYTES} bytes, not {len(key)}")
        self._encryptor = Cipher(algorithms.AES(key), modes.GCM(_NONCE)).encryptor()

    def fill(self, words: Words) -> None:
        """Overwrite `words`, a contiguous little-endian vector, with the next words of the stream."""
        target = words.view(np.uint8).data
        for start in range(0, len(target), BLOCK_BYTES):
            part = target[start : start + BLOCK_BYTES]
            self._encryptor.update_into(_ZEROS[: len(part)], part)
