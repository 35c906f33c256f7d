"""How an entry is written: its body cut into pieces, the pieces named by hash, the signed manifest behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shared.wire.framing import digest_of
from shared.wire.messages import INLINE_BYTES_MAX, PIECE_BYTES_MAX, Entry, Message, Piece

E = TypeVar("E", bound=Entry)
Sealer = Callable[[Message], bytes]
"""Signs one message as the coordinator and returns its frame."""


@dataclass(frozen=True)
class SealedEntry:
    """An entry ready to be appended: `frames()` yields the frames of its pieces, then its own."""

    entry: Entry
    frame: bytes
    digest: bytes
    _body: memoryview
    _seal: Sealer

    def frames(self) -> Iterator[bytes]:
        """Frames in the order of the log. Pieces are sealed one at a time: a model never exists twice in frames."""
        if self.entry.pieces:
            for piece in cut(self._body):
                yield self._seal(Piece(body=bytes(piece)))
        yield self.frame


def seal_entry(entry: E, body: np.ndarray | bytes, seal: Sealer) -> SealedEntry:
    """Attach `body` to an entry, inline if it is small, and sign it.

    Args:
        entry: all fields but `body` and `pieces`.
        body: raw bytes, or a C-contiguous array in little-endian order that stays unchanged until it was appended.
        seal: the coordinator's signature.
    """
    view = (memoryview(body) if isinstance(body, bytes) else body.data).cast("B")
    if view.nbytes <= INLINE_BYTES_MAX:
        complete = entry.model_copy(update={"body": bytes(view)})
    else:
        pieces = tuple(hashlib.sha256(piece).digest() for piece in cut(view))
        complete = entry.model_copy(update={"pieces": pieces})
    frame = seal(complete)
    return SealedEntry(complete, frame, digest_of(frame), view, seal)


def cut(view: memoryview) -> Iterator[memoryview]:
    """Consecutive pieces of at most `PIECE_BYTES_MAX` bytes; no copies."""
    for start in range(0, view.nbytes, PIECE_BYTES_MAX):
        yield view[start : start + PIECE_BYTES_MAX]


class PieceBuffer:
    """Pieces of entries that are still to come, by hash, within a bound.

    A reader cannot know how long a half-written entry's pieces will be of use, so the oldest go first when the
    bound is reached. `forget_bodies` keeps hashes only: a writer that reads its own entries back needs no more.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._pieces: dict[bytes, tuple[bytes, int, int]] = {}
        self.forget_bodies = False

    def put(self, body: bytes, offset: int) -> None:
        """Keep a piece that stands at `offset`; a repeat counts from its newest place."""
        digest = hashlib.sha256(body).digest()
        self._drop(digest)
        self._pieces[digest] = (b"" if self.forget_bodies else body, len(body), offset)
        self._bytes += len(body)
        self._keep_bound()

    def has(self, digests: tuple[bytes, ...]) -> bool:
        """Whether every one of these pieces is here."""
        return all(digest in self._pieces for digest in digests)

    def first_offset(self, digests: tuple[bytes, ...], otherwise: int) -> int:
        """Where the first of these pieces stands in the log."""
        return min((self._pieces[d][2] for d in digests), default=otherwise)

    def bodies(self, digests: tuple[bytes, ...]) -> Iterator[bytes]:
        """The bodies of these pieces in order (a piece may occur twice)."""
        return (self._pieces[digest][0] for digest in digests)

    def discard(self, digests: tuple[bytes, ...]) -> None:
        """Forget pieces whose entry has been read."""
        for digest in digests:
            self._drop(digest)

    def shrink(self, bytes_max: int) -> None:
        """Set a lower bound."""
        self._bytes_max = bytes_max
        self._keep_bound()

    def _keep_bound(self) -> None:
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._pieces)))

    def _drop(self, digest: bytes) -> None:
        found = self._pieces.pop(digest, None)
        if found is not None:
            self._bytes -= found[1]


def assemble(entry: Entry, buffer: PieceBuffer, count: int) -> np.ndarray | None:
    """The body of an entry as `count` float32 values (a new array), or None if its size is another."""
    values = np.empty(count, dtype="<f4")
    target = values.data.cast("B")
    at = 0
    for body in buffer.bodies(entry.pieces) if entry.pieces else (entry.body,):
        if at + len(body) > target.nbytes:
            return None
        target[at : at + len(body)] = body
        at += len(body)
    return values if at == target.nbytes else None
