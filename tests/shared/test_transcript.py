"""Two groups that differ in anything have different transcripts."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.transcript import GroupContext, group_transcript
from shared.identity import ClientId

CONTEXT = GroupContext(
    federation=UUID("00112233-4455-6677-8899-aabbccddeeff"),
    plan_digest=b"p" * 32,
    draw_hash=b"d" * 32,
    group=3,
    version=7,
    directory_digest=b"r" * 32,
    coordinates_digest=b"c" * 32,
    threshold=2,
    members=((ClientId("client-1"), b"1" * 32), (ClientId("client-2"), b"2" * 32)),
)


def test_golden_vector() -> None:
    # Provenance: made by `test_encoding_is_the_documented_one`'s concatenation below, written out by hand from
    # the format in the module docstring, and hashed with coreutils' sha256sum. It must never change in version 1.
    assert group_transcript(CONTEXT).hex() == "76319eb5527b4c7d4ebfca425a1d1d37952df1e0b482b5186cb7db0714ae6b82"


def test_encoding_is_the_documented_one() -> None:
    encoded = (
        b"\x00\x00\x00\x0fcomitia/1/group"
        b"\x00\x00\x00\x10\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
        b"\x00\x00\x00\x20pppppppppppppppppppppppppppppppp"
        b"\x00\x00\x00\x20dddddddddddddddddddddddddddddddd"
        b"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x03"
        b"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x07"
        b"\x00\x00\x00\x20rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr"
        b"\x00\x00\x00\x20cccccccccccccccccccccccccccccccc"
        b"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x02"
        b"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x02"
        b"\x00\x00\x00\x08client-1\x00\x00\x00\x2011111111111111111111111111111111"
        b"\x00\x00\x00\x08client-2\x00\x00\x00\x2022222222222222222222222222222222"
    )
    assert group_transcript(CONTEXT) == hashlib.sha256(encoded).digest()


def test_every_field_counts() -> None:
    changed: dict[str, Any] = {
        "federation": UUID(int=1),
        "plan_digest": b"x" * 32,
        "draw_hash": b"x" * 32,
        "group": 4,
        "version": 8,
        "directory_digest": b"x" * 32,
        "coordinates_digest": b"x" * 32,
        "threshold": 3,
        "members": CONTEXT.members[:1],
    }
    assert changed.keys() == {field.name for field in fields(GroupContext)}
    hashes = {group_transcript(replace(CONTEXT, **{name: value})) for name, value in changed.items()}
    assert len(hashes | {group_transcript(CONTEXT)}) == len(changed) + 1


def test_the_order_of_members_counts() -> None:
    turned = replace(CONTEXT, members=CONTEXT.members[::-1])
    assert group_transcript(turned) != group_transcript(CONTEXT)


names = st.text("ab1-", min_size=1, max_size=3).map(ClientId)
digests = st.sampled_from([b"1" * 32, b"a" * 32])
members = st.lists(st.tuples(names, digests), max_size=3).map(tuple)


@given(left=members, right=members)
def test_different_rosters_never_share_a_transcript(left: Any, right: Any) -> None:
    same = group_transcript(replace(CONTEXT, members=left)) == group_transcript(replace(CONTEXT, members=right))
    assert same == (left == right)


@pytest.mark.parametrize(
    "change",
    [{"plan_digest": b"short"}, {"group": -1}, {"version": 1 << 64}, {"members": ((ClientId("a"), b"short"),)}],
)
def test_fields_of_the_wrong_size_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"32 bytes|64 bits"):
        group_transcript(replace(CONTEXT, **change))
