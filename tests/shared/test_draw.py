"""A draw is a public function of the head and the offers: anybody can check it, and nobody can steer it by order."""

from __future__ import annotations

import hashlib
import hmac
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.draw import cut_groups, draw_order, group_leaf

HEAD = b"h" * 32
digests = st.lists(st.binary(min_size=32, max_size=32), unique=True, max_size=20)


def offer(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


@given(offers=digests, seed=st.integers(0, 1000))
def test_the_order_of_arrival_does_not_matter(offers: list[bytes], seed: int) -> None:
    shuffled = random.Random(seed).sample(offers, len(offers))

    drawn = [offers[position] for position in draw_order(HEAD, offers)]

    assert drawn == [shuffled[position] for position in draw_order(HEAD, shuffled)]
    assert sorted(drawn) == sorted(offers)


def test_the_order_is_the_one_that_an_auditor_computes() -> None:
    """A slow reference, from the definition."""
    offers = [offer(number) for number in range(9)]
    pool = hashlib.sha256(b"".join(sorted(offers))).digest()
    key = hashlib.sha256(b"comitia/1/draw order\0" + HEAD + pool).digest()
    expected = sorted(offers, key=lambda digest: hmac.new(key, digest, hashlib.sha256).digest())

    assert [offers[position] for position in draw_order(HEAD, offers)] == expected


def test_head_and_every_offer_decide_the_whole_order() -> None:
    offers = [offer(number) for number in range(30)]
    order = draw_order(HEAD, offers)

    assert draw_order(b"i" * 32, offers) != order
    changed = draw_order(HEAD, [*offers[:-1], offer(99)])
    assert [position for position in changed if position != 29] != [position for position in order if position != 29]


def test_every_offer_comes_first_about_equally_often() -> None:
    """1,000 heads, 5 offers: 200 ± 12.6 each; a deviation of 63 (five sigma) is a false alarm once in 350,000 runs."""
    offers = [offer(number) for number in range(5)]
    first = Counter(draw_order(hashlib.sha256(bytes([a, b])).digest(), offers)[0] for a in range(40) for b in range(25))

    assert all(abs(first[number] - 200) < 63 for number in range(5))


@given(count=st.integers(1, 300), size=st.integers(1, 40))
def test_groups_partition_the_offers_and_left_overs_spread(count: int, size: int) -> None:
    groups = cut_groups(count, size)
    lengths = [len(group) for group in groups]

    assert [position for group in groups for position in group] == list(range(count))
    if count < size:
        assert lengths == [count]
    else:
        assert size <= min(lengths)
        assert max(lengths) <= 2 * size - 1
        assert max(lengths) - min(lengths) <= 1
        assert len(groups) == count // size


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(5, 1, [1] * 5), (9, 4, [5, 4]), (7, 4, [7]), (11, 3, [4, 4, 3])]
)
def test_how_groups_are_cut(count: int, size: int, lengths: list[int]) -> None:
    assert [len(group) for group in cut_groups(count, size)] == lengths


def test_the_bytes_of_a_leaf_never_change() -> None:
    # Written out after the definition; the root of a draw in an old log must stay checkable.
    leaf = group_leaf(258, [("ab", b"1" * 32), ("c", b"2" * 32)])

    assert leaf == b"comitia/1/draw group\0" + b"\x02\x01\x00\x00" + b"\x02ab" + b"1" * 32 + b"\x01c" + b"2" * 32


names = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True)
rosters = st.lists(st.tuples(names, st.binary(min_size=32, max_size=32)), max_size=4)


@given(one=st.tuples(st.integers(0, 9), rosters), two=st.tuples(st.integers(0, 9), rosters))
def test_different_groups_have_different_leaves(
    one: tuple[int, list[tuple[str, bytes]]], two: tuple[int, list[tuple[str, bytes]]]
) -> None:
    assert (group_leaf(*one) == group_leaf(*two)) == (one == two)
