"""The summing stage: jobs and their groups, as many at a time as fit; groups of one from roster to sum."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.events import (
    DrawMade,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupReplyArrived,
    GroupSummed,
    JobArrived,
    Tell,
    Tick,
)
from coordinator.scheduler.draw import Draw, make_draw
from coordinator.scheduler.pool import WaitingOffer
from coordinator.summing import stage as stage_module
from coordinator.summing.group import REPEAT_S, GroupSum
from coordinator.summing.stage import SummingStage
from shared.effects import Append, Publish, Settle
from shared.errors import RefusalReason
from shared.modellog.chain import GENESIS
from shared.plan import Plan
from shared.rounds import ground_of, transcript_of
from shared.transport.port import Outcome
from shared.wire.group_messages import Group, GroupJob, Roster, Words
from shared.wire.log_messages import VoidEntry
from shared.wire.messages import PIECE_BYTES_MAX, PublicKeys
from tests.builders import make_status, tiny_plan
from tests.coordinator.builders import Desk, Settled, notes, only, receipt, told

STAGE = "stage-1"
BIG = 2 * PIECE_BYTES_MAX // 4 + 1000
"""Coordinates whose 32-bit words take three pieces."""


class Stage:
    """A stage whose draw over all clients is made, and its jobs."""

    def __init__(self, clients: int = 3, plan: Plan | None = None) -> None:
        self.desk = Desk(plan, clients)
        self.stage = self.desk_stage(STAGE)
        self.settled = Settled()
        self.draw = self.make_draw()
        self.jobs = [JobArrived(job, receipt()) for job in self.draw.jobs()]

    def desk_stage(self, name: str) -> SummingStage:
        desk = self.desk
        return SummingStage(name, desk.plan, desk.log, desk.federation.opener(), desk.federation.seal)

    def make_draw(self, counter: int = 1) -> Draw:
        size = self.desk.plan.group_size
        keys = None if size == 1 else PublicKeys(sealing=b"s" * 32, masking=b"m" * 32)
        events = [self.desk.offer(client, counter, worker=f"w-{client}", keys=keys) for client in self.desk.clients]
        offers = [WaitingOffer(e.client, e.offer, e.digest, e.frame, e.receipt) for e in events]
        draw, self.sealed = make_draw(offers, size, self.desk.sites, self.desk.writer)
        self.handle(DrawMade(draw.entry, draw.version, len(draw.groups), tuple(self.desk.clients)))
        return draw

    def read_draw_back(self) -> None:
        self.desk.read_back([Append(self.sealed)])

    def handle(self, event: Event, now: float = 0.0) -> tuple[Any, ...]:
        effects = self.stage.handle(event, now)
        self.settled.watch(effects)
        return effects

    def rosters(self, effects: tuple[Any, ...]) -> list[Roster]:
        messages = self.desk.open(effects)
        assert all(isinstance(message, Roster) for message in messages)
        return [message for message in messages if isinstance(message, Roster)]

    def group_of(self, client: str) -> Group:
        return next(group for group in self.draw.groups if group.members[0].client == client)

    def vector(self, client: str) -> np.ndarray:
        """The words of one client: no two clients have the same."""
        form = self.desk.plan.sum_format(1, self.desk.chain.clipping_norm)
        start = self.desk.clients.index(client) * 7 + 1
        return (np.arange(form.length) + start).astype(form.word_type)

    def words(self, client: str, **fields: Any) -> list[GroupReplyArrived]:
        """All pieces of one client's words, with some fields replaced."""
        body = self.vector(client).tobytes()
        cuts = range(0, len(body), PIECE_BYTES_MAX)
        good = {"transcript": self.transcript(client), "participants": b"\1", "parts": len(cuts)}
        return [
            GroupReplyArrived(
                client, Words(**{**good, "part": part, "body": body[at : at + PIECE_BYTES_MAX], **fields}), b"frame"
            )
            for part, at in enumerate(cuts)
        ]

    def transcript(self, client: str) -> bytes:
        ground = ground_of(self.desk.log, self.draw.entry)
        return transcript_of(ground, self.draw.entry, 0, self.group_of(client))

    def close(self) -> EntryAccepted:
        void = VoidEntry(parent=GENESIS, term=0, draw=self.draw.entry, reason="test")
        return self.desk.append(void)


def sums(effects: tuple[Any, ...]) -> list[GroupSummed]:
    return [event for event in told(effects) if isinstance(event, GroupSummed)]


def test_a_job_sends_every_member_its_roster_before_the_draw_is_read_back() -> None:
    stage = Stage()

    effects = stage.handle(stage.jobs[0])
    rosters = stage.rosters(effects)
    assert [(roster.client, roster.group) for roster in rosters] == [
        (group.members[0].client, group) for group in stage.draw.groups
    ]
    assert {(r.draw, r.version, r.groups, r.stage) for r in rosters} == {(stage.draw.entry, 0, 3, STAGE)}
    assert [(p.routing_key, p.persistent) for p in effects] == [
        (f"test.talk.site-0.w-{roster.client}", False) for roster in rosters
    ]


def with_body(reply: GroupReplyArrived, body: bytes) -> GroupReplyArrived:
    return replace(reply, message=reply.message.model_copy(update={"body": body}))


def test_positions_behind_the_words_are_handed_on_as_they_came() -> None:
    plan = tiny_plan(64, codec={"selection": "top_k", "density": 0.1})
    stage = Stage(plan=plan)
    stage.handle(stage.jobs[0])
    client = stage.desk.clients[0]
    (good,) = stage.words(client)
    positions = bytes(range(plan.positions_bytes))
    for wrong in (b"", positions[:-1], positions + b"x"):
        (refused,) = stage.handle(with_body(good, good.message.body + wrong))
        assert refused.fields["reason"] == RefusalReason.WRONG_SIZE

    (summed,) = sums(stage.handle(with_body(good, good.message.body + positions)))
    assert summed.positions == positions
    assert np.array_equal(summed.words, stage.vector(client))


def test_words_become_a_sum() -> None:
    stage = Stage()
    stage.handle(stage.jobs[0])
    client = stage.desk.clients[1]

    (total,) = sums(stage.handle(stage.words(client)[0], 1.0))
    assert (total.draw, total.group) == (stage.draw.entry, stage.group_of(client).index)
    assert (total.arrived, total.dropped, total.unheard, total.blamed) == ((client,), (), (), ())
    np.testing.assert_array_equal(total.words, stage.vector(client))
    assert total.words.dtype == stage.vector(client).dtype


def test_pieces_may_come_in_any_order_and_more_than_once() -> None:
    stage = Stage(clients=2, plan=tiny_plan(BIG, codec={"selection": "dense", "density": 1.0, "bits": 32}))
    stage.handle(stage.jobs[0])
    pieces = [piece for client in stage.desk.clients for piece in stage.words(client)]
    assert len(pieces) == 6
    repeated = [*pieces, *pieces[:5]]
    random.Random(3).shuffle(repeated)

    totals: dict[str, np.ndarray] = {}
    for piece in repeated:
        for total in sums(stage.handle(piece, 1.0)):
            assert total.arrived[0] not in totals
            totals[total.arrived[0]] = total.words
    assert sorted(totals) == stage.desk.clients
    for client, words in totals.items():
        np.testing.assert_array_equal(words, stage.vector(client))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"transcript": b"x" * 32}, RefusalReason.LATE),
        ({"participants": b"\2"}, RefusalReason.NOT_ALLOWED),
        ({"participants": b"\0"}, RefusalReason.NOT_ALLOWED),
        ({"participants": b"\1\0"}, RefusalReason.NOT_ALLOWED),
        ({"body": b""}, RefusalReason.WRONG_SIZE),
        ({"body": b"123"}, RefusalReason.WRONG_SIZE),
        ({"parts": 2}, RefusalReason.WRONG_SIZE),
        ({"parts": 2, "part": 1}, RefusalReason.WRONG_SIZE),
        ({"part": 1}, RefusalReason.WRONG_SIZE),
    ],
)
def test_words_that_do_not_fit_are_refused_and_the_right_ones_still_count(
    fields: dict[str, Any], reason: RefusalReason
) -> None:
    stage = Stage()
    stage.handle(stage.jobs[0])
    client = stage.desk.clients[0]

    effects = stage.handle(stage.words(client, **fields)[0], 1.0)
    assert notes(effects) == [f"refused {reason}"]
    assert sums(effects) == []
    assert len(sums(stage.handle(stage.words(client)[0], 1.0))) == 1


def test_words_of_somebody_else_are_refused() -> None:
    stage = Stage()
    stage.handle(stage.jobs[0])
    victim, liar = stage.desk.clients[:2]
    forged = GroupReplyArrived(liar, stage.words(victim)[0].message, b"frame")

    assert notes(stage.handle(forged, 1.0)) == [f"refused {RefusalReason.NOT_ALLOWED}"]


def test_words_after_the_sum_change_nothing() -> None:
    stage = Stage()
    stage.handle(stage.jobs[0])
    words = stage.words(stage.desk.clients[0])[0]
    stage.handle(words, 1.0)

    assert notes(stage.handle(words, 1.0)) == ["after_sum"]


def test_a_roster_is_repeated_to_silent_members_only() -> None:
    stage = Stage()
    stage.handle(stage.jobs[0], 0.0)
    stage.handle(stage.words(stage.desk.clients[0])[0], 1.0)

    assert stage.handle(Tick(), REPEAT_S - 0.1) == ()
    for repeat in (1, 2, 3):
        again = stage.rosters(stage.handle(Tick(), repeat * REPEAT_S))
        assert sorted(roster.client for roster in again) == stage.desk.clients[1:]
        assert stage.handle(Tick(), repeat * REPEAT_S + 0.1) == ()


def test_a_member_that_is_still_sending_is_not_asked_again_nor_given_up() -> None:
    stage = Stage(clients=1, plan=tiny_plan(BIG, codec={"selection": "dense", "density": 1.0, "bits": 32}))
    step_s = stage.desk.plan.round.group_step_s
    stage.handle(stage.jobs[0], 0.0)
    first, second, third = stage.words(stage.desk.clients[0])
    stage.handle(first, step_s - 0.5)

    assert stage.handle(Tick(), step_s + 0.5) == ()
    stage.handle(second, step_s + 1.0)
    assert stage.handle(Tick(), step_s + 2.5) == ()
    assert len(sums(stage.handle(third, step_s + 2.6))) == 1


def test_a_silent_group_is_given_up_by_name() -> None:
    stage = Stage()
    step_s = stage.desk.plan.round.group_step_s
    stage.handle(stage.jobs[0], 0.0)
    answered = stage.desk.clients[0]
    stage.handle(stage.words(answered)[0], 1.0)

    given_up = told(stage.handle(Tick(), step_s))
    assert given_up == [
        GroupGivenUp(stage.draw.entry, group.index, "words of 0 members, 1 needed", (group.members[0].client,), ())
        for group in stage.draw.groups
        if group.members[0].client != answered
    ]
    assert told(stage.handle(Tick(), 2 * step_s)) == []
    late = stage.words(stage.desk.clients[1])[0]
    assert notes(stage.handle(late, 2 * step_s)) == ["after_sum"]


def test_only_so_many_groups_are_open_as_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(clients=4)
    size = stage.vector(stage.desk.clients[0]).nbytes
    monkeypatch.setattr(stage_module, "OPEN_BYTES_MAX", 2 * size)

    opened = stage.rosters(stage.handle(stage.jobs[0], 0.0))
    assert [roster.group.index for roster in opened] == [0, 1]
    effects = stage.handle(stage.words(opened[0].client)[0], 1.0)
    assert [roster.group.index for roster in stage.rosters(effects)] == [2]
    # The step time of a group begins when it is opened.
    effects = stage.handle(Tick(), stage.desk.plan.round.group_step_s)
    assert [event.group for event in told(effects) if isinstance(event, GroupGivenUp)] == [1]
    assert sorted(roster.group.index for roster in stage.rosters(effects)) == [2, 3]  # one again, one anew


def test_one_group_is_open_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setattr(stage_module, "OPEN_BYTES_MAX", 1)

    assert len(stage.rosters(stage.handle(stage.jobs[0]))) == 1


def test_a_job_that_is_delivered_again_opens_nothing_twice_and_is_settled_too() -> None:
    stage = Stage()
    client = stage.desk.clients[0]
    stage.read_draw_back()
    stage.handle(stage.jobs[0], 0.0)
    stage.handle(stage.words(client)[0], 0.1)
    again = JobArrived(stage.jobs[0].job, receipt())

    assert stage.handle(again, 1.0) == ()
    assert not stage.settled
    effects = stage.handle(Tick(), 10.0)
    given_up = [e for e in told(effects) if isinstance(e, GroupGivenUp)]
    assert client not in {name for event in given_up for name in event.silent}
    assert only(Settle, effects) == [Settle(stage.jobs[0].receipt), Settle(again.receipt)]
    assert stage.handle(stage.close(), 11.0) == ()


def test_a_job_that_stands_twice_in_one_delivery_is_settled_for_both() -> None:
    stage = Stage()
    twice = JobArrived(stage.jobs[0].job, receipt(2))
    stage.handle(twice, 0.0)
    assert stage.handle(twice, 0.0) == ()

    settled = [e for client in stage.desk.clients for e in only(Settle, stage.handle(stage.words(client)[0], 1.0))]
    assert settled == [Settle(twice.receipt)] * 2


def test_a_job_of_another_draw_is_dropped_and_disturbs_nothing() -> None:
    stage = Stage()
    stage.handle(stage.jobs[0])
    job = stage.jobs[0].job.model_copy(update={"draw": b"x" * 32})
    other = JobArrived(job, receipt())

    effects = stage.handle(other, 1.0)
    assert notes(effects) == ["job_dropped"]
    assert only(Settle, effects) == [Settle(other.receipt)]
    assert len(sums(stage.handle(stage.words(stage.desk.clients[0])[0], 1.0))) == 1


def test_a_job_of_a_session_before_is_dropped() -> None:
    stage = Stage()
    fresh = stage.desk_stage("stage-2")
    stage.read_draw_back()
    # A new session begins by closing the draw of the one before.
    fresh.handle(stage.close(), 0.0)

    assert notes(fresh.handle(stage.jobs[0], 0.0)) == ["job_dropped"]


def test_a_job_is_settled_behind_the_results_of_all_its_groups() -> None:
    stage = Stage()
    stage.handle(stage.jobs[0], 0.0)
    *first, last = stage.desk.clients
    assert not [e for client in first for e in only(Settle, stage.handle(stage.words(client)[0], 1.0))]

    effects = stage.handle(stage.words(last)[0], 1.0)
    assert [type(effect) for effect in effects] == [Tell, Settle]
    # Delivered again after that, it has nothing to do any more.
    again = JobArrived(stage.jobs[0].job, receipt())
    assert stage.handle(again, 2.0) == (Settle(again.receipt),)


def test_a_stage_that_was_away_puts_its_jobs_back_and_forgets_them() -> None:
    stage = Stage()
    stage.handle(stage.jobs[0], 0.0)
    assert stage.stage.forget() == (Settle(stage.jobs[0].receipt, Outcome.PUT_BACK),)

    assert notes(stage.handle(stage.words(stage.desk.clients[0])[0], 1.0)) == [f"refused {RefusalReason.LATE}"]
    assert stage.stage.handle(Tick(), 100.0) == ()
    # The draw is still open: its job goes to whichever stage is there, and that may be this one again.
    stage.read_draw_back()
    assert len(stage.rosters(stage.handle(JobArrived(stage.jobs[0].job, receipt()), 2.0))) == 3


@pytest.mark.parametrize("reads", ["draw", "another draw"])
def test_a_job_faster_than_its_draw_is_held_until_the_log_shows_one(reads: str) -> None:
    stage = Stage()
    other = stage.desk_stage("stage-2")
    assert other.handle(stage.jobs[0], 0.0) == ()
    digest = stage.draw.entry if reads == "draw" else b"x" * 32

    effects = other.handle(DrawMade(digest, 0, 3, tuple(stage.desk.clients)), 1.0)
    if reads == "draw":
        assert {roster.stage for roster in stage.rosters(effects)} == {"stage-2"}
        assert len(stage.rosters(effects)) == 3
    else:
        assert notes(effects) == ["job_dropped"]
        assert only(Settle, effects) == [Settle(stage.jobs[0].receipt)]


def test_a_draw_that_the_log_shows_twice_is_one() -> None:
    """The coordinator's own stage is told of a draw, and reads its entry back later: what has begun goes on."""
    stage = Stage()
    stage.handle(stage.jobs[0], 0.0)
    (accepted,) = stage.desk.read_back([Append(stage.sealed)])

    assert stage.handle(accepted, 1.0) == ()
    assert len(sums(stage.handle(stage.words(stage.desk.clients[0])[0], 1.0))) == 1


def test_only_so_many_jobs_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "HELD_JOBS_MAX", 2)
    stage = Stage()
    other = stage.desk_stage("stage-2")
    jobs = [JobArrived(stage.jobs[0].job, receipt()) for _ in range(3)]

    assert [len(only(Settle, other.handle(job, 0.0))) for job in jobs] == [0, 0, 1]


@pytest.mark.parametrize("broken", ["no offer", "an offer without keys", "another message"])
def test_a_group_without_offers_that_open_is_refused_and_its_neighbors_are_summed(broken: str) -> None:
    stage = Stage(clients=6, plan=tiny_plan(group_size=3))
    job = stage.jobs[0].job
    first, second = job.members
    client = first.members[1].client
    frame = {
        "no offer": b"nothing",
        "an offer without keys": stage.desk.offer(client).frame,
        "another message": stage.desk.federation.seal_as(client, make_status()),
    }[broken]
    members = tuple(m if m.client != client else m.model_copy(update={"offer": frame}) for m in first.members)
    bad = job.model_copy(update={"members": (first.model_copy(update={"members": members}), second)})

    effects = stage.handle(JobArrived(bad, receipt()), 0.0)
    assert [event.split()[0] for event in notes(effects)] == ["refused"]
    assert {roster.group.index for roster in stage.rosters(effects)} == {second.index}
    # It counts as ended: the job waits for its other group only.
    effects = stage.handle(Tick(), stage.desk.plan.round.group_step_s)
    assert len(only(Settle, effects)) == 1


def test_memory_is_counted_by_the_words_of_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(clients=9, plan=tiny_plan(group_size=3))
    form = stage.desk.plan.sum_format(3, 1.0)
    monkeypatch.setattr(stage_module, "OPEN_BYTES_MAX", 2 * 3 * form.length * form.word_type.itemsize)

    opened = stage.rosters(stage.handle(stage.jobs[0], 0.0))
    assert [roster.group.index for roster in opened] == [0] * 3 + [1] * 3


def test_a_closed_draw_is_forgotten_and_its_jobs_are_settled() -> None:
    stage = Stage()
    stage.read_draw_back()
    stage.handle(stage.jobs[0], 0.0)

    assert stage.handle(stage.close(), 1.0) == (Settle(stage.jobs[0].receipt),)
    assert stage.handle(Tick(), 100.0) == ()
    assert notes(stage.handle(stage.words(stage.desk.clients[0])[0], 1.0)) == [f"refused {RefusalReason.LATE}"]
    # Its job, delivered again before the next draw, would let members spend their updates for nothing.
    again = JobArrived(stage.jobs[0].job, receipt())
    effects = stage.handle(again, 2.0)
    assert only(Settle, effects) == [Settle(again.receipt)]
    assert stage.rosters(tuple(only(Publish, effects))) == []


def test_the_next_draw_is_a_new_one() -> None:
    stage = Stage()
    stage.read_draw_back()
    stage.handle(stage.jobs[0], 0.0)
    stage.handle(stage.close(), 1.0)
    stage.draw = stage.make_draw(counter=2)

    (job,) = stage.draw.jobs()
    assert isinstance(job, GroupJob)
    assert len(stage.rosters(stage.handle(JobArrived(job, receipt()), 2.0))) == 3
    assert len(sums(stage.handle(stage.words(stage.desk.clients[0])[0], 3.0))) == 1


def test_before_any_draw_nothing_happens() -> None:
    desk = Desk()
    federation = desk.federation
    stage = SummingStage(STAGE, desk.plan, desk.log, federation.opener(), federation.seal)

    assert stage.handle(Tick(), 1.0) == ()
    assert notes(stage.handle(GroupReplyArrived("client-0", _any_words(), b"frame"), 1.0)) == [
        f"refused {RefusalReason.LATE}"
    ]


def _any_words() -> Words:
    return Words(transcript=bytes(32), participants=b"\1", part=0, parts=1, body=b"")


def test_a_tick_asks_no_group_before_the_first_of_them_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    one, asked = Stage(4), []
    tick = GroupSum.tick
    monkeypatch.setattr(GroupSum, "tick", lambda group, now: asked.append(group.index) or tick(group, now))
    for job in one.jobs:
        one.handle(job)
    one.handle(Tick())
    asked.clear()

    one.handle(Tick(), 0.9 * REPEAT_S)
    assert asked == []
    assert {roster.client for roster in one.rosters(one.handle(Tick(), REPEAT_S))} == set(one.desk.clients)
    assert len(asked) == 4
    one.handle(Tick(), 1.9 * REPEAT_S)
    assert len(asked) == 4
