"""How does a vector that was cut into pieces come together again? In a buffer of its size, in any order."""

from __future__ import annotations

import numpy as np

from shared.errors import RefusalReason, RemoteProtocolError
from shared.wire.messages import PIECE_BYTES_MAX


class PieceCollector:
    """The pieces of one vector of `size` bytes; its memory is taken at once, and means nothing until it is complete."""

    __slots__ = ("_missing", "_parts", "buffer")

    def __init__(self, size: int) -> None:
        self.buffer: memoryview = np.empty(size, dtype=np.uint8).data
        self._parts = piece_count(size)
        self._missing = set(range(self._parts))

    @property
    def complete(self) -> bool:
        """Whether every piece is there."""
        return not self._missing

    def put(self, part: int, parts: int, body: bytes) -> None:
        """Take one piece in.

        Raises:
            RemoteProtocolError: not a piece of such a vector (`WRONG_SIZE`), or there already (`DUPLICATE`).
        """
        check_piece(len(self.buffer), part, parts, len(body))
        if part not in self._missing:
            raise RemoteProtocolError(RefusalReason.DUPLICATE, f"piece {part} again")
        self._missing.discard(part)
        self.buffer[part * PIECE_BYTES_MAX : part * PIECE_BYTES_MAX + len(body)] = body


def piece_count(size: int) -> int:
    """Into how many pieces a vector of `size` bytes is cut."""
    return -(-size // PIECE_BYTES_MAX)


def check_piece(size: int, part: int, parts: int, body_bytes: int) -> None:
    """Return if this can be a piece of a vector of `size` bytes.

    Raises:
        RemoteProtocolError: it cannot (`WRONG_SIZE`).
    """
    if parts != piece_count(size) or part >= parts or body_bytes != min(PIECE_BYTES_MAX, size - part * PIECE_BYTES_MAX):
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"piece {part} of {parts}, {body_bytes} bytes of {size}")
