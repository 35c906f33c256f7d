"""The body of a change that lists its positions: ``count (4) | positions (Elias-Fano) | new weights (float32)``.

For rounds whose coordinates are not implied, as when every client chooses its own. Integers and floats little endian.
"""

from __future__ import annotations

import numpy as np

from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector
from shared.codec.positions import decode_positions, encode_positions, positions_size
from shared.errors import RemoteProtocolError

_COUNT_BYTES = 4


def listed_size(dimension: int, count: int) -> int:
    """Bytes of a body that lists `count` of `dimension` weights."""
    return _COUNT_BYTES + positions_size(dimension, count) + 4 * count


def worth_listing(dimension: int, count: int) -> bool:
    """Whether listing positions takes fewer bytes than the whole model does."""
    return listed_size(dimension, count) < 4 * dimension


def encode_listed(before: FloatVector, after: FloatVector) -> bytes | None:
    """The body that leads from one version's weights (d,) to the next one's; None if the whole model is smaller."""
    positions = np.flatnonzero(before.view(np.uint32) != after.view(np.uint32)).astype(np.int64, copy=False)
    if not worth_listing(len(after), len(positions)):
        return None
    values = after[positions].astype("<f4", copy=False).tobytes()
    return len(positions).to_bytes(_COUNT_BYTES, "little") + encode_positions(positions, len(after)) + values


def decode_listed(body: bytes, dimension: int) -> tuple[Coordinates, FloatVector] | None:
    """Positions and new weights of a body, or None if it is not one. Allocates no more than a valid one needs."""
    count = int.from_bytes(body[:_COUNT_BYTES], "little")
    if count > dimension or not worth_listing(dimension, count) or len(body) != listed_size(dimension, count):
        return None
    split = len(body) - 4 * count
    try:
        positions = decode_positions(memoryview(body)[_COUNT_BYTES:split], dimension, count)
    except RemoteProtocolError:
        return None
    return positions, np.frombuffer(body, dtype="<f4", offset=split).astype(np.float32, copy=False)
