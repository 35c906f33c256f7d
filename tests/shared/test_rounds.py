"""Coordinator and worker compute the same ground and transcript of a group, each from plan and log alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shared.codec.coordinates import coordinates_digest
from shared.rounds import ground_of, threshold, transcript_of
from shared.wire.messages import Member
from tests.builders import LogBook, make_federation, tiny_plan

FEDERATION = make_federation()
MEMBERS = (Member(client="client-0", site="site-0", worker="w-0", offer=b"o" * 32),)
DRAW = b"d" * 32


def log_of(**plan: object) -> LogBook:
    book = LogBook(FEDERATION, tiny_plan(**plan))
    book.snapshot()
    return book


def test_two_readers_compute_the_same_transcript() -> None:
    book = log_of()
    other = FEDERATION.reader()
    other.feed(0, book.stream[0])

    ours, theirs = (ground_of(reader) for reader in (book.reader, other))

    assert ours == theirs
    assert transcript_of(ours, DRAW, 0, 0, MEMBERS) == transcript_of(theirs, DRAW, 0, 0, MEMBERS)


def test_the_ground_holds_the_coordinates_of_the_round() -> None:
    book = log_of(dimension=64)
    first = ground_of(book.reader)
    assert first.coordinates_digest == coordinates_digest(book.reader.coordinates, 64)

    book.step(np.ones(64, np.float32))
    assert ground_of(book.reader).coordinates_digest != first.coordinates_digest


def test_all_coordinates_need_no_digest_because_the_plan_says_so() -> None:
    book = log_of(codec={"selection": "dense", "density": 1})

    assert ground_of(book.reader).coordinates_digest == bytes(32)


def test_everything_that_members_must_see_alike_changes_the_transcript() -> None:
    ground = ground_of(log_of().reader)
    other_plan = ground_of(log_of(weight_records_max=11).reader)
    others = [
        (ground, b"x" * 32, 0, 0, MEMBERS),
        (ground, DRAW, 1, 0, MEMBERS),
        (ground, DRAW, 0, 1, MEMBERS),
        (ground, DRAW, 0, 0, (MEMBERS[0].model_copy(update={"client": "client-1"}),)),
        (ground, DRAW, 0, 0, (MEMBERS[0].model_copy(update={"offer": b"x" * 32}),)),
        (other_plan, DRAW, 0, 0, MEMBERS),
        (replace(ground, directory_digest=b"x" * 32), DRAW, 0, 0, MEMBERS),
        (replace(ground, coordinates_digest=b"x" * 32), DRAW, 0, 0, MEMBERS),
    ]

    transcripts = {transcript_of(*arguments) for arguments in others}

    assert len(transcripts | {transcript_of(ground, DRAW, 0, 0, MEMBERS)}) == len(others) + 1


def test_only_groups_of_one_have_a_threshold() -> None:
    assert threshold(1) == 1
    for members in (0, 2):
        with pytest.raises(ValueError, match=f"group of {members}"):
            threshold(members)
