"""Which coordinates does everybody send this round, and how much does the server scale what it gets?

The set is a function of a seed that stands in the model log, so positions cost nothing on the wire, and
all members of a group send the same ones. It has to come out the same on every platform and in every version of every
library: it rests on AES-256 in counter mode and on exact integer comparison alone.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import LocalProtocolError

Coordinates: TypeAlias = npt.NDArray[np.int64]

RESCALE_MAX = 10.0
"""Above this the rescaled step of a plain federated average diverged in measurements (20 did, 10 did not)."""

_DIMENSION_MAX = 2**32 - 1
_WORD_BYTES = 8
_BLOCK_WORDS = 32 * 1024  # 256 KiB of keystream: stays in the second-level cache
_MARGIN_DEVIATIONS = 8.0
_DIGEST_TAG = b"comitia/coordinates/1"


def coordinate_count(dimension: int, density: float) -> int:
    """Return k = density * d, rounded half to even, at least 1 and at most d."""
    if not 0.0 < density <= 1.0:
        raise LocalProtocolError(f"density must be in (0, 1], not {density}")
    return min(dimension, max(1, round(density * dimension)))


def rescale(dimension: int, count: int) -> float:
    """Return r = min(d/k, 10): the factor that makes a step on k of d random coordinates unbiased, up to its cap."""
    return min(dimension / count, RESCALE_MAX)


def random_seed(entry_hash: bytes, purpose: str) -> bytes:
    """Derive a 32-byte seed from a log entry's hash by HKDF-SHA256; `purpose` keeps different uses independent.

    Reference: Krawczyk and Eronen, RFC 5869 (2010).
    """
    info = b"comitia/seed/1/" + purpose.encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(entry_hash)


def select_coordinates(seed: bytes, dimension: int, count: int) -> Coordinates:
    """Return the positions of the `count` smallest of `dimension` 64-bit pseudo-random words, in ascending order.

    Word i is the i-th little-endian 64-bit word of the AES-256-CTR keystream under `seed` (counter from 0); of equal
    words the one with the lower index is smaller. The words are never all in memory: one pass keeps those below a
    threshold that `count` words undercut almost surely, then the exact ones among them are chosen. So it
    takes about 20 bytes per selected coordinate, not per dimension.

    Args:
        seed: 32 bytes.
        dimension: d, below 2**32.
        count: k, 1 to d.

    Returns:
        (k,) int64, strictly ascending.

    Raises:
        LocalProtocolError: a seed of another length, or k and d out of range.
    """
    if len(seed) != 32:
        raise LocalProtocolError(f"a coordinate seed has 32 bytes, not {len(seed)}")
    if not 1 <= count <= dimension <= _DIMENSION_MAX:
        raise LocalProtocolError(f"cannot select {count} of {dimension} coordinates")
    if count == dimension:
        return np.arange(dimension, dtype=np.int64)
    limit = _threshold(dimension, count)
    while True:
        positions, words = _words_up_to(seed, dimension, limit)
        if len(positions) >= count:
            return _smallest(positions, words, count)
        limit = min(2 * limit + 1, 2**64 - 1)


def coordinates_digest(coordinates: Coordinates, dimension: int) -> bytes:
    """Return SHA-256 over d and the positions as little-endian 64-bit integers (32 bytes)."""
    hasher = hashlib.sha256(_DIGEST_TAG)
    hasher.update(dimension.to_bytes(8, "little") + len(coordinates).to_bytes(8, "little"))
    hasher.update(np.ascontiguousarray(coordinates, dtype="<i8").data)
    return hasher.digest()


def _threshold(dimension: int, count: int) -> int:
    """A word value that at least `count` of `dimension` uniform words stay below, but for about 1 case in 10**15.

    The result of the selection does not depend on it, only the work does, so floating point is good enough.
    """
    expected = count + _MARGIN_DEVIATIONS * (count**0.5 + 1.0)
    return min(int(expected / dimension * 2.0**64), 2**64 - 1)


def _words_up_to(seed: bytes, dimension: int, limit: int) -> tuple[Coordinates, npt.NDArray[np.uint64]]:
    """Return positions and values of all keystream words <= limit, in the order of their positions."""
    keystream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(_BLOCK_WORDS * _WORD_BYTES)
    buffer = bytearray(_BLOCK_WORDS * _WORD_BYTES)
    positions: list[Coordinates] = []
    kept: list[npt.NDArray[np.uint64]] = []
    bound = np.uint64(limit)
    for start in range(0, dimension, _BLOCK_WORDS):
        words = _fill(keystream, zeros, buffer)[: dimension - start]
        inside = np.flatnonzero(words <= bound)
        kept.append(words[inside])
        inside += start
        positions.append(inside)
    return np.concatenate(positions).astype(np.int64, copy=False), np.concatenate(kept)


def _fill(keystream: CipherContext, zeros: bytes, buffer: bytearray) -> npt.NDArray[np.uint64]:
    keystream.update_into(zeros, buffer)
    return np.frombuffer(buffer, dtype="<u8").astype(np.uint64, copy=False)


def _smallest(positions: Coordinates, words: npt.NDArray[np.uint64], count: int) -> Coordinates:
    """Choose the `count` smallest by (word, position). An order statistic is unique, however it is found."""
    largest = np.partition(words, count - 1)[count - 1]
    chosen = words < largest
    ties = np.flatnonzero(words == largest)
    chosen[ties[: count - int(np.count_nonzero(chosen))]] = True
    selected: Coordinates = positions[chosen]
    return selected
