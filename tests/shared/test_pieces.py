"""A vector in pieces: it comes together from any order, and from nothing but its own pieces."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import RefusalReason, RemoteProtocolError
from shared.modellog.entries import cut
from shared.wire.messages import PIECE_BYTES_MAX
from shared.wire.pieces import PieceCollector, check_piece, piece_count

SIZES = st.one_of(
    st.integers(1, 3 * PIECE_BYTES_MAX),
    st.sampled_from([1, PIECE_BYTES_MAX - 1, PIECE_BYTES_MAX, PIECE_BYTES_MAX + 1, 2 * PIECE_BYTES_MAX]),
)


@given(size=SIZES, seed=st.integers(0, 1 << 30))
def test_pieces_in_any_order_make_the_vector(size: int, seed: int) -> None:
    source = random.Random(seed)
    vector = source.randbytes(size)
    pieces = [bytes(piece) for piece in cut(memoryview(vector))]
    order = source.sample(range(len(pieces)), len(pieces))
    collector = PieceCollector(size)
    for part in order:
        assert not collector.complete
        collector.put(part, len(pieces), pieces[part])
    assert collector.complete
    assert bytes(collector.buffer) == vector


@given(size=SIZES, part=st.integers(0, 5), parts=st.integers(0, 5), length=st.integers(0, PIECE_BYTES_MAX + 1))
def test_only_pieces_that_a_vector_is_cut_into_are_taken(size: int, part: int, parts: int, length: int) -> None:
    sizes = [len(piece) for piece in cut(memoryview(bytes(size)))]
    fits = parts == len(sizes) and part < parts and length == sizes[part]
    with nullcontext() if fits else pytest.raises(RemoteProtocolError, match=RefusalReason.WRONG_SIZE):
        check_piece(size, part, parts, length)
    if part < len(sizes):
        check_piece(size, part, len(sizes), sizes[part])


@given(size=SIZES)
def test_a_vector_is_cut_into_as_many_pieces_as_both_sides_count(size: int) -> None:
    assert len(list(cut(memoryview(bytes(size))))) == piece_count(size)


def test_a_piece_that_comes_again_is_a_duplicate_and_changes_nothing() -> None:
    collector = PieceCollector(PIECE_BYTES_MAX + 4)
    collector.put(1, 2, b"good")
    with pytest.raises(RemoteProtocolError, match="duplicate"):
        collector.put(1, 2, b"evil")
    assert collector.buffer[-4:] == b"good"
    assert not collector.complete


def test_a_refused_piece_leaves_no_trace() -> None:
    collector = PieceCollector(8)
    collector.buffer[:] = bytes(8)
    with pytest.raises(RemoteProtocolError, match="wrong_size"):
        collector.put(0, 1, bytes([1] * 7))
    assert bytes(collector.buffer) == bytes(8)
    assert not collector.complete
