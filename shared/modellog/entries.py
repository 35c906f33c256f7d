"""How an entry is written: its body cut into pieces, the pieces named by hash, the signed manifest behind them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shared.wire.framing import digest_of
from shared.wire.log_messages import INLINE_BYTES_MAX, Entry, Piece
from shared.wire.messages import PIECE_BYTES_MAX, Message

PIECE_COST_BYTES = 256
"""What a piece takes besides its body: a flood of tiny ones is bounded as well."""

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
    _ahead: bytes = b""

    def frames(self) -> Iterator[bytes]:
        """Frames in the order of the log. Pieces are sealed one at a time: a model never exists twice in frames."""
        for piece in cut(memoryview(self._ahead)):
            yield self._seal(Piece(body=bytes(piece)))
        if self.entry.pieces:
            for piece in cut(self._body):
                yield self._seal(Piece(body=bytes(piece)))
        yield self.frame

    def pieces(self) -> Mapping[bytes, memoryview]:
        """The bodies of its pieces by their hash; no copies."""
        return dict(zip(self.entry.pieces, cut(self._body), strict=True)) if self.entry.pieces else {}


def seal_entry(entry: E, body: np.ndarray | bytes, seal: Sealer, ahead: bytes = b"") -> SealedEntry:
    """Attach `body` to an entry, inline if it is small, and sign it.

    Args:
        entry: all fields but `body` and `pieces`.
        body: raw bytes, or a C-contiguous array in little-endian order that stays unchanged until it was appended.
        seal: the coordinator's signature.
        ahead: what else the entry names by hash (`hashes_of`); its pieces come first.
    """
    view = (memoryview(body) if isinstance(body, bytes) else body.data).cast("B")
    if view.nbytes <= INLINE_BYTES_MAX:
        complete = entry.model_copy(update={"body": bytes(view)})
    else:
        complete = entry.model_copy(update={"pieces": hashes_of(view)})
    frame = seal(complete)
    return SealedEntry(complete, frame, digest_of(frame), view, seal, ahead)


def hashes_of(view: memoryview | bytes) -> tuple[bytes, ...]:
    """The hashes of the pieces that these bytes are cut into."""
    return tuple(hashlib.sha256(piece).digest() for piece in cut(memoryview(view)))


def cut(view: memoryview) -> Iterator[memoryview]:
    """Consecutive pieces of at most `PIECE_BYTES_MAX` bytes; no copies."""
    for start in range(0, view.nbytes, PIECE_BYTES_MAX):
        yield view[start : start + PIECE_BYTES_MAX]


class PieceBuffer:
    """Pieces of entries that are still to come, by hash, within a bound.

    A reader cannot know how long a half-written entry's pieces will be of use, so the oldest go first when the
    bound is reached.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._pieces: OrderedDict[bytes, tuple[bytes | memoryview, int]] = OrderedDict()
        self._own: Mapping[bytes, memoryview] = {}

    def own(self, pieces: Mapping[bytes, memoryview]) -> None:
        """A writer's own pieces: when they come back, these views are kept instead of copies."""
        self._own = pieces

    def put(self, body: bytes, offset: int) -> None:
        """Keep a piece that stands at `offset`; a repeat counts from its newest place."""
        digest = hashlib.sha256(body).digest()
        self._drop(digest)
        self._pieces[digest] = (self._own.get(digest, body), offset)
        self._bytes += len(body) + PIECE_COST_BYTES
        self._keep_bound()

    def size(self, digests: tuple[bytes, ...]) -> int | None:
        """The bytes of these pieces together (a piece may occur twice), or None if one is not here."""
        if not all(digest in self._pieces for digest in digests):
            return None
        return sum(len(self._pieces[digest][0]) for digest in digests)

    def first_offset(self, digests: tuple[bytes, ...], otherwise: int) -> int:
        """Where the first of these pieces stands in the log; `otherwise` if none is here."""
        return min((self._pieces[digest][1] for digest in digests if digest in self._pieces), default=otherwise)

    def joined(self, digests: tuple[bytes, ...]) -> bytes | None:
        """These pieces as one, or None if one is not here."""
        return None if self.size(digests) is None else b"".join(self.bodies(digests))

    def bodies(self, digests: tuple[bytes, ...]) -> Iterator[bytes | memoryview]:
        """The bodies of these pieces in order."""
        return (self._pieces[digest][0] for digest in digests)

    def discard(self, digests: tuple[bytes, ...]) -> None:
        """Forget some pieces."""
        for digest in digests:
            self._drop(digest)

    def clear(self) -> None:
        """Forget all pieces."""
        self._pieces.clear()
        self._bytes = 0
        self._own = {}

    def shrink(self, bytes_max: int) -> None:
        """Set a lower bound."""
        self._bytes_max = bytes_max
        self._keep_bound()

    def _keep_bound(self) -> None:
        while self._bytes > self._bytes_max:
            _, (body, _) = self._pieces.popitem(last=False)
            self._bytes -= len(body) + PIECE_COST_BYTES

    def _drop(self, digest: bytes) -> None:
        found = self._pieces.pop(digest, None)
        if found is not None:
            self._bytes -= len(found[0]) + PIECE_COST_BYTES


def body_size(entry: Entry, buffer: PieceBuffer) -> int | None:
    """The bytes of an entry's body, or None if a piece of it is missing."""
    return buffer.size(entry.pieces) if entry.pieces else len(entry.body)


def assemble(entry: Entry, buffer: PieceBuffer, count: int) -> np.ndarray | None:
    """The body of an entry as `count` float32 values (a new array), or None if it is not there or of another size."""
    if body_size(entry, buffer) != 4 * count:
        return None
    values = np.empty(count, dtype="<f4")
    target = values.data.cast("B")
    at = 0
    for body in _bodies(entry, buffer):
        target[at : at + len(body)] = body
        at += len(body)
    return values


def join(entry: Entry, buffer: PieceBuffer, bytes_max: int) -> bytes | None:
    """The body of an entry as it is, or None if it is not there or larger than `bytes_max`."""
    size = body_size(entry, buffer)
    return b"".join(_bodies(entry, buffer)) if size is not None and size <= bytes_max else None


def holds(entry: Entry, buffer: PieceBuffer, values: np.ndarray) -> bool:
    """Whether the body of an entry is exactly these float32 values; no copies."""
    mine = np.ascontiguousarray(values, dtype="<f4").view(np.uint8)
    if body_size(entry, buffer) != mine.nbytes:
        return False
    at = 0
    for body in _bodies(entry, buffer):
        if not np.array_equal(mine[at : at + len(body)], np.frombuffer(body, dtype=np.uint8)):
            return False
        at += len(body)
    return True


def contents(entry: Entry, buffer: PieceBuffer, bytes_max: int) -> bytes | None:
    """The body of an entry as bytes, or None if it is not there or larger than `bytes_max`."""
    size = body_size(entry, buffer)
    return None if size is None or size > bytes_max else b"".join(_bodies(entry, buffer))


def _bodies(entry: Entry, buffer: PieceBuffer) -> Iterable[bytes | memoryview]:
    return buffer.bodies(entry.pieces) if entry.pieces else (entry.body,)
