"""A set of members has exactly one form on the wire, and nothing else is one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import RefusalReason, RemoteProtocolError
from shared.wire.member_sets import decode_members, encode_members, participants_digest
from shared.wire.messages import MEMBERS_MAX

SIZES = st.integers(1, MEMBERS_MAX)


@st.composite
def sets(draw: st.DrawFn) -> tuple[frozenset[int], int]:
    members = draw(SIZES)
    return frozenset(draw(st.sets(st.integers(0, members - 1)))), members


@given(sets())
def test_what_was_written_is_read(case: tuple[frozenset[int], int]) -> None:
    places, members = case
    data = encode_members(places, members)

    assert len(data) == (members + 7) // 8
    assert decode_members(data, members) == places


@given(st.binary(max_size=9), st.integers(1, 64))
def test_every_set_has_one_form(data: bytes, members: int) -> None:
    """Whatever is read at all is what would have been written: two forms would be two transcripts of one group."""
    try:
        places = decode_members(data, members)
    except RemoteProtocolError:
        return
    assert encode_members(places, members) == data


@pytest.mark.parametrize(
    ("places", "members", "data"),
    [
        ((), 1, "00"),
        ((0,), 1, "01"),
        ((0, 2), 3, "05"),
        ((7,), 8, "80"),
        ((8,), 9, "0001"),
        ((0, 1, 2, 3, 4, 5, 6, 7, 8), 9, "ff01"),
        ((511,), 512, "00" * 63 + "80"),
    ],
)
def test_the_lowest_place_is_the_lowest_bit_of_the_first_byte(places: tuple[int, ...], members: int, data: str) -> None:
    assert encode_members(places, members).hex() == data
    assert participants_digest(places, members) == hashlib.sha256(bytes.fromhex(data)).digest()


@pytest.mark.parametrize(
    ("data", "members", "reason"),
    [
        (b"", 1, RefusalReason.WRONG_SIZE),
        (b"\1\0", 8, RefusalReason.WRONG_SIZE),
        (b"\1", 9, RefusalReason.WRONG_SIZE),
        (b"\2", 1, RefusalReason.OUT_OF_RANGE),
        (b"\x08", 3, RefusalReason.OUT_OF_RANGE),
        (b"\0\2", 9, RefusalReason.OUT_OF_RANGE),
    ],
)
def test_another_length_or_a_place_that_nobody_has_is_refused(data: bytes, members: int, reason: RefusalReason) -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        decode_members(data, members)

    assert refusal.value.reason is reason


@given(sets(), st.data())
def test_the_order_of_places_and_repeats_mean_nothing(case: tuple[frozenset[int], int], data: st.DataObject) -> None:
    places, members = case
    shuffled = data.draw(st.permutations([*places, *list(places)[:3]]))

    assert encode_members(shuffled, members) == encode_members(places, members)


@given(sets(), sets())
def test_different_sets_have_different_digests(
    one: tuple[frozenset[int], int], other: tuple[frozenset[int], int]
) -> None:
    same = encode_members(*one) == encode_members(*other)

    assert (participants_digest(*one) == participants_digest(*other)) == same
