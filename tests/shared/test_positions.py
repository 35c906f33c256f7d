"""The code of positions: what comes back, how long it is, and that nothing but a valid one is ever accepted."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.codec.positions import decode_positions, encode_positions, largest, positions_size
from shared.errors import LocalProtocolError, RemoteProtocolError


@st.composite
def sets(draw: st.DrawFn) -> tuple[int, list[int]]:
    dimension = draw(st.integers(1, 400))
    return dimension, sorted(draw(st.sets(st.integers(0, dimension - 1))))


def encode(positions: list[int], dimension: int) -> bytes:
    return encode_positions(np.array(positions, dtype=np.int64), dimension)


def slow_code(positions: list[int], dimension: int) -> bytes:
    """The code bit by bit, as its definition says it."""
    count = len(positions)
    width = int(math.log2(dimension // count))
    low = [position >> bit & 1 for position in positions for bit in range(width)]
    high = [0] * (count + (dimension - 1 >> width))
    for index, position in enumerate(positions):
        high[(position >> width) + index] = 1
    packed = b""
    for bits in (low, high):
        padded = bits + [0] * (-len(bits) % 8)
        packed += bytes(sum(padded[i + j] << j for j in range(8)) for i in range(0, len(padded), 8))
    return packed


@given(sets())
def test_positions_come_back_and_the_code_is_the_definitions(given: tuple[int, list[int]]) -> None:
    dimension, positions = given
    code = encode(positions, dimension)

    assert code == (slow_code(positions, dimension) if positions else b"")
    assert len(code) == positions_size(dimension, len(positions))
    assert decode_positions(code, dimension, len(positions)).tolist() == positions


def test_a_golden_vector() -> None:
    # By hand: d = 20, k = 4, so l = 2. Low bits 1, 3, 0, 3 (two each, least significant first): 10 11 00 11 -> 0xcd.
    # High parts 0, 0, 2, 4 mark bits 0, 1, 4, 7 of 4 + 4: 11001001 -> 0x93.
    assert encode([1, 3, 8, 19], 20).hex() == "cd93"


def test_a_tenth_of_a_million_takes_little_more_than_entropy() -> None:
    dimension, count = 1_000_000, 100_000
    entropy = dimension * -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)) / 8
    positions = np.sort(np.random.default_rng(0).choice(dimension, count, replace=False))

    code = encode_positions(positions, dimension)

    assert len(code) == positions_size(dimension, count) == 65_625
    assert len(code) < 1.13 * entropy
    assert np.array_equal(decode_positions(code, dimension, count), positions)


@given(sets(), st.data())
def test_whatever_bytes_come_they_are_refused_or_are_the_code_of_what_they_decode_to(
    given: tuple[int, list[int]], data: st.DataObject
) -> None:
    dimension, positions = given
    size = positions_size(dimension, len(positions))
    forged = bytearray(encode(positions, dimension))
    for _ in range(data.draw(st.integers(1, 3))):
        if forged:
            forged[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        forged = bytearray(data.draw(st.binary(min_size=0, max_size=size + 2)))
    try:
        decoded = decode_positions(bytes(forged), dimension, len(positions))
    except RemoteProtocolError:
        return
    assert len(decoded) == len(positions)
    assert encode_positions(decoded, dimension) == forged, "there is one code for each set"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("cd", id="too short"),
        pytest.param("cd9300", id="too long"),
        pytest.param("cd13", id="a mark too few"),
        pytest.param("cdd3", id="a mark too many"),
        pytest.param("cf93", id="twice position 3"),
        pytest.param("cd0f", id="descending within one high part"),
    ],
)
def test_malformed_positions_are_refused(code: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_positions(bytes.fromhex(code), 20, 4)


def test_a_position_beyond_the_model_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="ascend"):
        decode_positions(encode([1, 3, 8, 19], 20), 19, 4)


@pytest.mark.parametrize(("dimension", "count"), [(10, 11), (10, -1), (10, 1 << 40)])
def test_a_count_that_cannot_be_allocates_nothing(dimension: int, count: int) -> None:
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        decode_positions(b"1234", dimension, count)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 16


@pytest.mark.parametrize("positions", [[1, 1], [2, 1], [-1, 3], [0, 8]])
def test_positions_that_are_none_are_not_encoded(positions: list[int]) -> None:
    with pytest.raises(LocalProtocolError):
        encode(positions, 8)


@given(st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=40), st.data())
def test_the_largest_are_those_that_sorting_finds(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    slow = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count])
    assert largest(np.array(values, dtype=np.float32), count).tolist() == slow


def test_more_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(LocalProtocolError):
        largest(np.ones(3, dtype=np.float32), 4)
