"""How do ascending positions travel in few bits, where they are not the same for everybody?

As an Elias-Fano code. With l = floor(log2(d / k)), the l low bits of every position stand in one array; of the high
parts, which ascend, only the differences are written, in unary. This takes between 2 + l and 3 + l bits a position
(5.25 at k = d/10, where no code can do with fewer than 4.7 on average), and its size is a function of d and k alone: a
receiver knows it before anything comes, and no forged length can make it allocate anything.

    low (k * l bits) | high: bit (position_i >> l) + i is set for i = 0 ... k - 1, k + ((d - 1) >> l) bits

Bits are numbered from the least significant one of the first byte; both arrays are padded with zeros to whole bytes.

Reference: Elias, Efficient Storage and Retrieval by Content and Address of Static Files (1974); Vigna, Quasi-Succinct
Indices (2013), section 3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError

_BIT_BLOCK = 1 << 18


def positions_size(dimension: int, count: int) -> int:
    """Bytes that `count` of `dimension` positions take."""
    low, high = _bit_counts(dimension, count)
    return -(-low // 8) + -(-high // 8)


def encode_positions(positions: Coordinates, dimension: int) -> bytes:
    """Encode strictly ascending positions.

    Args:
        positions: (k,) int64, 0 <= k <= d.
        dimension: d, every position is below it.

    Returns:
        `positions_size(d, k)` bytes; the same positions always give the same.

    Raises:
        LocalProtocolError: they do not ascend, or lie outside of 0 ... d - 1.
    """
    count = len(positions)
    if count and not (positions[0] >= 0 and positions[-1] < dimension and bool((np.diff(positions) > 0).all())):
        raise LocalProtocolError(f"{count} positions do not ascend within 0 to {dimension - 1}")
    if not count:
        return b""
    width = _low_width(dimension, count)
    high = np.zeros(_bit_counts(dimension, count)[1], dtype=np.uint8)
    high[(positions >> width) + np.arange(count)] = 1
    return _pack_low(positions, width) + np.packbits(high, bitorder="little").tobytes()


def decode_positions(data: bytes | memoryview, dimension: int, count: int) -> Coordinates:
    """Decode what `encode_positions` made of `count` positions; nothing else is accepted.

    Returns:
        (k,) int64, strictly ascending, each in 0 ... d - 1. Needs about 9 bytes per bit of the high array.

    Raises:
        RemoteProtocolError: the bytes are no such code; nothing larger than for a valid one was allocated.
    """
    if not 0 <= count <= dimension:
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"{count} positions of {dimension}")
    raw = np.frombuffer(data, dtype=np.uint8)
    if raw.size != positions_size(dimension, count):
        detail = f"{raw.size} bytes of positions instead of {positions_size(dimension, count)}"
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, detail)
    if not count:
        return np.empty(0, dtype=np.int64)
    low_bits, high_bits = _bit_counts(dimension, count)
    split = -(-low_bits // 8)
    # Bits of the padding count as well: they would make one of too many.
    marks = np.flatnonzero(np.unpackbits(raw[split:], bitorder="little"))
    if marks.size != count or marks[-1] >= high_bits:
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"{marks.size} positions are marked instead of {count}")
    width = _low_width(dimension, count)
    low = _unpack_low(raw[:split], count, width)
    positions: Coordinates = ((marks - np.arange(count)) << width) | low
    if positions[-1] >= dimension or not bool((np.diff(positions) > 0).all()):
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"positions do not ascend within 0 to {dimension - 1}")
    return positions


def largest(values: FloatVector, count: int) -> Coordinates:
    """Return the positions of the `count` largest absolute values, ascending; of equal ones the first.

    Args:
        values: (d,) float32, finite.
        count: k, 1 to d.
    """
    if not 1 <= count <= len(values):
        raise LocalProtocolError(f"cannot choose {count} of {len(values)} values")
    sizes = np.abs(values)
    least = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    chosen = sizes > least
    ties = np.flatnonzero(sizes == least)
    chosen[ties[: count - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen).astype(np.int64, copy=False)


def _low_width(dimension: int, count: int) -> int:
    return (dimension // count).bit_length() - 1


def _bit_counts(dimension: int, count: int) -> tuple[int, int]:
    """Bits of the low and of the high array."""
    if not count:
        return 0, 0
    width = _low_width(dimension, count)
    return count * width, count + ((dimension - 1) >> width)


def _pack_low(positions: Coordinates, width: int) -> bytes:
    """The `width` low bits of each position, one after the other."""
    parts = []
    for start in range(0, len(positions), _BIT_BLOCK):
        block = positions[start : start + _BIT_BLOCK, None] >> np.arange(width)
        parts.append((block & 1).astype(np.uint8).ravel())
    return np.packbits(np.concatenate(parts), bitorder="little").tobytes()


def _unpack_low(raw: npt.NDArray[np.uint8], count: int, width: int) -> Coordinates:
    """Reverse `_pack_low`.

    Raises:
        RemoteProtocolError: a bit of the padding is set.
    """
    bits = np.unpackbits(raw, bitorder="little")
    if bits[count * width :].any():
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, "bits are set behind the positions")
    low = np.zeros(count, dtype=np.int64)
    for bit in range(width):
        low |= bits[bit : count * width : width].astype(np.int64) << bit
    return low
