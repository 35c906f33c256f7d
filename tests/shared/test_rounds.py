"""Coordinator and worker compute the same ground and transcript of a group, each from plan and log alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shared.codec.coordinates import coordinates_digest
from shared.rounds import ground_of, transcript_of
from shared.wire.group_messages import Group, Member
from tests.builders import LogBook, make_federation, tiny_plan

FEDERATION = make_federation()
MEMBER = Member(client="client-0", site="site-0", worker="w-0", offer=b"o" * 200)
GROUP = Group(index=0, members=(MEMBER,), path=())
DRAW = b"d" * 32


def _group(**fields: object) -> Group:
    return GROUP.model_copy(update=fields)


def log_of(**plan: object) -> LogBook:
    book = LogBook(FEDERATION, tiny_plan(**plan))
    book.snapshot()
    return book


def test_two_readers_compute_the_same_transcript() -> None:
    book = log_of()
    other = FEDERATION.reader()
    other.feed(0, book.stream[0])

    ours, theirs = (ground_of(reader, bytes(32)) for reader in (book.reader, other))

    assert ours == theirs
    assert transcript_of(ours, DRAW, 0, GROUP) == transcript_of(theirs, DRAW, 0, GROUP)


def test_the_ground_holds_the_coordinates_of_the_round() -> None:
    book = log_of(dimension=64)
    first = ground_of(book.reader, bytes(32))
    assert first.coordinates_digest == coordinates_digest(book.reader.coordinates, 64)

    book.step(np.ones(64, np.float32))
    assert ground_of(book.reader, bytes(32)).coordinates_digest != first.coordinates_digest


def test_all_coordinates_need_no_digest_because_the_plan_says_so() -> None:
    book = log_of(codec={"selection": "dense", "density": 1})

    assert ground_of(book.reader, bytes(32)).coordinates_digest == bytes(32)


def test_everything_that_members_must_see_alike_changes_the_transcript() -> None:
    ground = ground_of(log_of().reader, bytes(32))
    other_plan = ground_of(log_of(weight_records_max=11).reader, bytes(32))
    others = [
        (ground, b"x" * 32, 0, GROUP),
        (ground, DRAW, 1, GROUP),
        (ground, DRAW, 0, _group(index=1)),
        (ground, DRAW, 0, _group(members=(MEMBER.model_copy(update={"client": "client-1"}),))),
        (ground, DRAW, 0, _group(members=(MEMBER.model_copy(update={"offer": b"x" * 200}),))),
        (ground, DRAW, 0, _group(members=(MEMBER, MEMBER))),
        (other_plan, DRAW, 0, GROUP),
        (replace(ground, directory_digest=b"x" * 32), DRAW, 0, GROUP),
        (replace(ground, coordinates_digest=b"x" * 32), DRAW, 0, GROUP),
    ]

    transcripts = {transcript_of(*arguments) for arguments in others}

    assert len(transcripts | {transcript_of(ground, DRAW, 0, GROUP)}) == len(others) + 1


def test_the_threshold_is_the_plans_and_part_of_the_transcript() -> None:
    group = _group(members=tuple(MEMBER.model_copy(update={"client": f"client-{n}"}) for n in range(5)))
    plans = [tiny_plan(group_size=5, **fields) for fields in ({}, {"threshold_fraction": 0.9})]
    assert [plan.threshold(5) for plan in plans] == [4, 5]

    # Only t differs: the plan's digest is held fast.
    ground = ground_of(log_of().reader, bytes(32))
    transcripts = {transcript_of(replace(ground, plan=plan), DRAW, 0, group) for plan in plans}

    assert len(transcripts) == 2


def test_a_transcript_binds_what_travels_of_a_member_only_where_it_matters() -> None:
    """Where a member is reached is no part of what it signs: another worker may take it over."""
    ground = ground_of(log_of().reader, bytes(32))
    moved = _group(members=(MEMBER.model_copy(update={"worker": "w-9", "site": "site-9"}),), path=(b"p" * 32,))

    assert transcript_of(ground, DRAW, 0, moved) == transcript_of(ground, DRAW, 0, GROUP)
