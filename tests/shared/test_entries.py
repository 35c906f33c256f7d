"""An entry's body comes back from its pieces byte for byte, and pieces never take more memory than their bound."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.modellog.chain import GENESIS
from shared.modellog.entries import PIECE_COST_BYTES, PieceBuffer, assemble, body_size, cut, holds, seal_entry
from shared.wire.framing import digest_of
from shared.wire.log_messages import INLINE_BYTES_MAX, Entry, Piece, VoidEntry
from shared.wire.messages import PIECE_BYTES_MAX
from tests.builders import make_federation

FEDERATION = make_federation(clients=1)
DRAFT = VoidEntry(parent=GENESIS, term=1, draw=GENESIS, reason="")


def floats(count: int) -> np.ndarray:
    return np.arange(count, dtype="<f4")


def sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def with_pieces(*bodies: bytes) -> Entry:
    return DRAFT.model_copy(update={"pieces": tuple(sha256(body) for body in bodies)})


def buffer_of(*bodies: bytes, bytes_max: int = 1 << 20) -> PieceBuffer:
    buffer = PieceBuffer(bytes_max)
    for offset, body in enumerate(bodies):
        buffer.put(body, offset)
    return buffer


# ── sealing ──


def test_a_small_body_travels_inside_its_entry() -> None:
    values = floats(INLINE_BYTES_MAX // 4)

    sealed = seal_entry(DRAFT, values, FEDERATION.seal)

    assert sealed.entry.body == values.tobytes()
    assert sealed.entry.pieces == ()
    assert list(sealed.frames()) == [sealed.frame]
    assert sealed.digest == digest_of(sealed.frame)
    assert assemble(sealed.entry, PieceBuffer(0), len(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("count", [INLINE_BYTES_MAX // 4 + 1, PIECE_BYTES_MAX // 4, 600_001])
def test_a_large_body_comes_back_from_pieces_that_stand_before_the_entry(count: int) -> None:
    values = floats(count)
    opener, buffer = FEDERATION.opener(), PieceBuffer(4 << 20)

    sealed = seal_entry(DRAFT, values, FEDERATION.seal)
    *pieces, last = (opener.open(frame).message for frame in sealed.frames())

    assert len(pieces) == -(-values.nbytes // PIECE_BYTES_MAX)
    assert last == sealed.entry
    for offset, piece in enumerate(pieces):
        assert isinstance(piece, Piece)
        buffer.put(piece.body, offset)
    assert np.array_equal(assemble(sealed.entry, buffer, count), values)
    assert {digest: bytes(view) for digest, view in sealed.pieces().items()} == {
        sha256(piece.body): piece.body for piece in pieces
    }


def test_cutting_copies_nothing() -> None:
    values = floats(600_000)

    pieces = list(cut(values.data.cast("B")))

    assert [piece.nbytes for piece in pieces] == [PIECE_BYTES_MAX, PIECE_BYTES_MAX, values.nbytes - 2 * PIECE_BYTES_MAX]
    assert all(np.shares_memory(np.frombuffer(piece, np.uint8), values) for piece in pieces)


# ── assembling ──


@pytest.mark.parametrize(
    ("bodies", "named"),
    [
        ((b"abcd",), (b"abcd", b"efgh")),
        ((b"abcd", b"efgh", b"ijkl"), (b"abcd", b"efgh", b"ijkl")),
        ((b"abcd", b"efg"), (b"abcd", b"efg")),
        ((b"abcd", b"efghi"), (b"abcd", b"efghi")),
        ((b"abcd",), (b"abcd",)),
    ],
    ids=["piece missing", "piece too many", "too short", "too long", "too few"],
)
def test_a_body_of_another_size_is_none(bodies: tuple[bytes, ...], named: tuple[bytes, ...]) -> None:
    buffer, entry = buffer_of(*bodies), with_pieces(*named)

    assert assemble(entry, buffer, 2) is None
    assert not holds(entry, buffer, floats(2))


@pytest.mark.parametrize("body", [b"", bytes(4), bytes(12)])
def test_an_inline_body_of_another_size_is_none(body: bytes) -> None:
    assert assemble(DRAFT.model_copy(update={"body": body}), PieceBuffer(0), 2) is None


def test_a_wrong_size_is_found_before_any_memory_is_taken() -> None:
    tracemalloc.start()
    assert assemble(DRAFT, PieceBuffer(0), 1 << 31) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20


def test_a_piece_may_occur_twice() -> None:
    buffer, entry = buffer_of(b"abcd"), with_pieces(b"abcd", b"abcd")

    assert body_size(entry, buffer) == 8
    assert assemble(entry, buffer, 2).tobytes() == b"abcdabcd"


@given(values=st.lists(st.floats(width=32), max_size=20), at=st.integers(0, 79), sizes=st.integers(1, 9))
def test_a_body_is_compared_bit_for_bit(values: list[float], at: int, sizes: int) -> None:
    array = np.array(values, dtype="<f4")
    body = array.tobytes()
    pieces = [body[start : start + sizes] for start in range(0, len(body), sizes)]
    assert holds(with_pieces(*pieces), buffer_of(*pieces), array)
    if at < len(body):
        wrong = bytearray(body)
        wrong[at] ^= 1
        changed = [bytes(wrong[start : start + sizes]) for start in range(0, len(body), sizes)]
        assert not holds(with_pieces(*changed), buffer_of(*changed), array)


# ── the buffer ──


def test_a_flood_of_pieces_stays_within_the_bound_and_the_newest_are_kept() -> None:
    bodies = [number.to_bytes(4, "little") * 250 for number in range(1000)]
    room = 10 * (1000 + PIECE_COST_BYTES)

    buffer = buffer_of(*bodies, bytes_max=room)

    kept = [body for body in bodies if buffer.size((sha256(body),)) is not None]
    assert kept == bodies[-10:]


def test_tiny_pieces_cannot_take_more_memory_than_large_ones() -> None:
    tracemalloc.start()
    buffer = buffer_of(*(number.to_bytes(4, "little") for number in range(50_000)), bytes_max=1 << 20)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 4 << 20
    assert buffer.size((sha256((49_999).to_bytes(4, "little")),)) == 4


def test_a_repeated_piece_counts_once_and_from_its_newest_place() -> None:
    bytes_max = 2 * (4 + PIECE_COST_BYTES)
    buffer = buffer_of(b"aaaa", b"bbbb", b"aaaa", b"cccc", bytes_max=bytes_max)

    assert buffer.size((sha256(b"bbbb"),)) is None
    assert buffer.size((sha256(b"aaaa"), sha256(b"cccc"))) == 8
    assert buffer.first_offset((sha256(b"aaaa"), sha256(b"cccc")), 9) == 2
    assert buffer.first_offset((), 9) == 9
    assert buffer.first_offset((sha256(b"bbbb"),), 9) == 9


def test_what_is_discarded_cleared_or_beyond_a_lower_bound_makes_room() -> None:
    cost = 4 + PIECE_COST_BYTES
    buffer = buffer_of(b"aaaa", b"bbbb", b"cccc", bytes_max=3 * cost)

    buffer.discard((sha256(b"bbbb"), sha256(b"never here")))
    buffer.put(b"dddd", 3)
    assert buffer.size((sha256(b"aaaa"), sha256(b"cccc"), sha256(b"dddd"))) == 12
    buffer.shrink(2 * cost)
    assert buffer.size((sha256(b"aaaa"),)) is None
    assert buffer.size((sha256(b"cccc"), sha256(b"dddd"))) == 8
    buffer.clear()
    assert buffer.size((sha256(b"cccc"),)) is None
    buffer.put(b"eeee", 4)
    buffer.put(b"ffff", 5)
    assert buffer.size((sha256(b"eeee"), sha256(b"ffff"))) == 8


def test_a_writers_own_pieces_are_kept_as_views_of_its_body() -> None:
    values = floats(600_000)
    sealed = seal_entry(DRAFT, values, FEDERATION.seal)
    buffer = PieceBuffer(4 << 20)

    buffer.own(sealed.pieces())
    for offset, piece in enumerate(cut(values.data.cast("B"))):
        buffer.put(bytes(piece), offset)
    buffer.put(b"another's", 3)

    kept = list(buffer.bodies(sealed.entry.pieces))
    assert all(np.shares_memory(np.frombuffer(body, np.uint8), values) for body in kept)
    assert next(buffer.bodies((sha256(b"another's"),))) == b"another's"
