"""The shell around a stage of its own: order of log and jobs, pauses, outages, and a result before its job's end."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pytest

from coordinator.summing.service import StageService
from shared.effects import Note
from shared.errors import PlanError
from shared.modellog.entries import cut
from shared.rounds import ground_of, transcript_of
from shared.telemetry import Telemetry
from shared.transport.port import Confirmed, Connected, Delivered, Delivery, Disconnected, Outcome, Queue, StreamStart
from shared.wire.framing import pack_batches, split_batch
from shared.wire.group_messages import GivenUp, Group, GroupJob, Member, Roster, Sum, Words
from shared.wire.messages import PIECE_BYTES_MAX, Message
from tests.builders import LogBook, make_federation, make_offer, tiny_plan

M = TypeVar("M", bound=Message)

HEARTBEAT_S = 8.0
BIG = PIECE_BYTES_MAX // 4 + 1000
"""Parameters whose 32-bit words take two pieces."""


class Line:
    """A transport that writes down what is asked of it; nothing is confirmed until the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.sequence = 0

    def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
        self.sequence += 1
        self.asked.append(("publish", routing_key, bytes(body), persistent))
        return self.sequence

    def consume(self, queue: Queue, *, prefetch: int, start: StreamStart | None = None) -> None:
        self.asked.append(("consume", queue.name))

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        self.asked.append(("settle", delivery.handle, outcome))


class Stage:
    """A stage of a federation of three groups of one, and the log that it reads when the test says so."""

    def __init__(self, dimension: int = 8) -> None:
        self.federation = make_federation(3)
        codec = {"selection": "dense", "density": 1.0, "bits": 32}
        plan = tiny_plan(dimension, codec=codec, aggregation={"rule": "mean", "trim": 0})
        self.book = LogBook(self.federation, plan)
        self.line = Line()
        self.notes: list[Note] = []
        self.names = self.federation.names
        self.service = StageService(
            self.federation.members(),
            self.federation.coordinator,
            self.line,  # type: ignore[arg-type]
            session=bytes(16),
            heartbeat_s=HEARTBEAT_S,
            telemetry=Telemetry(self.notes.append),
        )
        self.service.start()
        self.stage_id = "stage-000000000000"
        self._read = 0

    def step(self, *items: Any, now: float = 0.0) -> list[tuple[Any, ...]]:
        """What is asked of the broker meanwhile."""
        before = len(self.line.asked)
        self.service.step(items, now)
        return self.line.asked[before:]

    def log(self) -> Delivered:
        """What the log holds and the stage has not read yet."""
        new = range(self._read, len(self.book.stream))
        self._read = len(self.book.stream)
        return Delivered(self.names.log, tuple(self._delivery(self.names.log, self.book.stream[i], i) for i in new))

    def job(self, handle: str = "job") -> Delivered:
        """The groups of the open draw: of one each, or of all together if the plan asks for it."""
        clients = sorted(self.federation.clients)
        offers = [self.federation.seal_as(client, make_offer()) for client in clients]
        members = [
            Member(client=client, site="site-0", worker="w-0", offer=offer)
            for client, offer in zip(clients, offers, strict=True)
        ]
        rosters = [(member,) for member in members] if self.book.plan.group_size == 1 else [tuple(members)]
        self.groups = tuple(Group(index=index, members=roster, path=()) for index, roster in enumerate(rosters))
        chain = self.book.chain
        assert chain.draw is not None
        self.draw = chain.draw.entry
        job = GroupJob(draw=self.draw, version=chain.version, groups=len(rosters), members=self.groups)
        return self.to_stage(self.names.groups, job, handle)

    def words(self, *clients: int) -> Delivered:
        """All words of these clients."""
        frames = []
        form = self.book.plan.sum_format(1, self.book.chain.clipping_norm)
        body = bytes(form.length * form.word_type.itemsize)
        for client in clients:
            transcript = transcript_of(
                ground_of(self.book.reader, self.draw), self.draw, self.book.chain.version, self.groups[client]
            )
            pieces = [bytes(piece) for piece in cut(memoryview(body))]
            for part, piece in enumerate(pieces):
                words = Words(transcript=transcript, participants=b"\x01", part=part, parts=len(pieces), body=piece)
                frames.append(self.federation.seal_as(f"client-{client}", words))
        queue = self.names.stage(self.stage_id)
        return Delivered(queue, tuple(self._delivery(queue, body, "words") for body in pack_batches(frames)))

    def to_stage(self, queue: str, message: Message, handle: str) -> Delivered:
        bodies = list(pack_batches([self.federation.seal(message)]))
        return Delivered(queue, tuple(self._delivery(queue, body, handle) for body in bodies))

    def _delivery(self, queue: str, body: bytes, handle: object) -> Delivery:
        offset = handle if isinstance(handle, int) else None
        return Delivery(queue=queue, body=body, routing_key=queue, redelivered=False, handle=handle, offset=offset)

    def confirm(self, now: float = 0.0) -> list[tuple[Any, ...]]:
        return self.step(Confirmed(self.line.sequence), now=now)

    def published(self, asked: list[tuple[Any, ...]], kind: type[M]) -> list[M]:
        opener = self.federation.opener()
        bodies = [entry[2] for entry in asked if entry[0] == "publish"]
        messages = [opener.open(frame).message for body in bodies for frame in split_batch(body)]
        return [message for message in messages if isinstance(message, kind)]


def settles(asked: list[tuple[Any, ...]], handle: str = "job") -> list[Outcome]:
    return [entry[2] for entry in asked if entry[:2] == ("settle", handle)]


def working(dimension: int = 8) -> Stage:
    """A stage that has taken the job of the open draw; its rosters have left."""
    stage = Stage(dimension)
    stage.book.snapshot()
    stage.book.draw(groups=3)
    stage.step(stage.log(), stage.job())
    stage.confirm()
    return stage


def test_jobs_are_taken_when_the_log_has_told_the_plan_and_replies_can_be_heard() -> None:
    stage = Stage()
    assert stage.line.asked == [("consume", stage.names.log)]
    stage.book.snapshot()
    consumed = [entry[1] for entry in stage.step(stage.log()) if entry[0] == "consume"]
    assert consumed == [stage.names.stage(stage.stage_id), stage.names.groups]


def test_every_member_hears_where_to_answer() -> None:
    stage = Stage()
    stage.book.snapshot()
    stage.book.draw(groups=3)
    asked = stage.step(stage.log(), stage.job())
    assert {(roster.client, roster.stage) for roster in stage.published(asked, Roster)} == {
        (f"client-{number}", stage.stage_id) for number in range(3)
    }
    assert all(entry[1:4:2] == (stage.names.talk("site-0", "w-0"), False) for entry in asked if entry[0] == "publish")


def test_a_job_is_settled_when_the_sums_of_all_its_groups_are_confirmed() -> None:
    stage = working()
    asked = stage.step(stage.words(0, 1))
    assert {(s.stage, s.group, s.arrived) for s in stage.published(asked, Sum)} == {
        (stage.stage_id, number, (f"client-{number}",)) for number in range(2)
    }
    assert settles(stage.confirm()) == []
    asked = stage.step(stage.words(2))
    assert len(stage.published(asked, Sum)) == 1
    assert all(entry[1:4:2] == (stage.names.sums, True) for entry in asked if entry[0] == "publish")
    assert settles(asked) == []
    assert settles(stage.confirm()) == [Outcome.ACK]


def test_a_sum_larger_than_a_message_leaves_in_pieces() -> None:
    stage = working(BIG)
    pieces = stage.published(stage.step(stage.words(0)), Sum)
    assert [(piece.part, piece.parts) for piece in pieces] == [(0, 2), (1, 2)]
    form = stage.book.plan.sum_format(1, 1.0)
    assert sum(len(piece.body) for piece in pieces) == form.length * form.word_type.itemsize


def test_groups_of_silent_members_are_given_up_by_name() -> None:
    stage = working()
    deadline = stage.book.plan.round.group_step_s
    for second in range(1, int(deadline) + 1):
        asked = stage.step(now=float(second))
    given_up = stage.published(asked, GivenUp)
    assert {(end.group, end.unheard) for end in given_up} == {(number, (f"client-{number}",)) for number in range(3)}
    assert settles(stage.confirm(deadline)) == [Outcome.ACK]


# ── the log and the jobs come on two ways ───────────────────────────────────────────────────────────────────────────


def test_a_job_waits_until_the_log_shows_its_draw() -> None:
    stage = Stage()
    stage.book.snapshot()
    stage.step(stage.log())
    stage.book.draw(groups=3)
    asked = stage.step(stage.job())
    assert (stage.published(asked, Roster), settles(asked)) == ([], [])
    assert len(stage.published(stage.step(stage.log()), Roster)) == 3


def test_a_job_waits_while_older_versions_are_read() -> None:
    """Whoever starts late has the whole log before it, whose draws are not the job's."""
    stage = Stage()
    stage.book.snapshot()
    first = stage.log()
    stage.book.step(np.ones(8, np.float32))
    stage.book.draw()
    draws = [stage.log()]
    stage.book.change(np.zeros(8, np.float32))
    stage.book.draw(groups=3)
    job = stage.job()
    stage.step(first, job)
    for old in draws:
        asked = stage.step(old)
        assert (stage.published(asked, Roster), settles(asked)) == ([], [])
    assert len(stage.published(stage.step(stage.log()), Roster)) == 3


def test_a_job_waits_while_a_draw_of_the_same_version_is_open_that_is_void_already() -> None:
    stage = Stage()
    stage.book.snapshot()
    stage.book.draw(groups=3)
    stage.step(stage.log())
    stage.book.append(stage.book.void_draft())
    stage.book.draw(groups=3)
    asked = stage.step(stage.job())
    assert (stage.published(asked, Roster), settles(asked)) == ([], [])
    assert len(stage.published(stage.step(stage.log()), Roster)) == 3


def test_a_job_whose_draw_is_void_or_passed_is_dropped() -> None:
    stage = working()
    late = stage.job("void")
    stage.book.append(stage.book.void_draft())
    asked = stage.step(stage.log())
    assert settles(asked) == [Outcome.ACK]
    assert settles(stage.step(late), "void") == [Outcome.ACK]

    stage.book.draw(groups=3)
    late = stage.job("passed")
    stage.book.change(np.ones(8, np.float32))
    stage.step(stage.log())
    assert settles(stage.step(late), "passed") == [Outcome.ACK]
    assert not stage.published(stage.line.asked[-4:], Sum)


def test_a_job_that_comes_twice_is_summed_once_and_settled_twice() -> None:
    stage = working()
    assert stage.published(stage.step(stage.job("again")), Roster) == []
    assert len(stage.published(stage.step(stage.words(0, 1, 2)), Sum)) == 3
    asked = stage.confirm()
    assert settles(asked) == settles(asked, "again") == [Outcome.ACK]


# ── pauses and outages ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_that_stood_still_puts_its_jobs_back_and_gives_nothing_up() -> None:
    stage = working()
    asked = stage.step(stage.words(0, 1, 2), now=HEARTBEAT_S + 40.0)
    assert settles(asked) == [Outcome.PUT_BACK]
    assert stage.published(asked, Sum) == stage.published(asked, GivenUp) == []
    assert "stage_paused" in [note.event for note in stage.notes]
    # It comes back to us, since nobody else is there: begun anew.
    assert len(stage.published(stage.step(stage.job("again"), now=HEARTBEAT_S + 41.0), Roster)) == 3
    assert len(stage.published(stage.step(stage.words(0, 1, 2), now=HEARTBEAT_S + 41.0), Sum)) == 3


def test_a_job_that_waits_for_its_draw_goes_back_too() -> None:
    stage = Stage()
    stage.book.snapshot()
    stage.step(stage.log())
    stage.book.draw(groups=3)
    stage.step(stage.job())
    asked = stage.step(stage.log(), now=HEARTBEAT_S + 1.0)
    assert settles(asked) == [Outcome.PUT_BACK]
    assert stage.published(asked, Roster) == []


def test_no_member_is_silent_while_the_broker_is_away() -> None:
    stage = working()
    step_s = stage.book.plan.round.group_step_s
    stage.step(Disconnected("gone"), now=1.0)
    for tick in range(2, int(3 * step_s)):
        assert stage.published(stage.step(now=float(tick)), GivenUp) == []
    back = 3 * step_s
    asked = stage.step(Connected("broker", 1), stage.words(0, 1, 2), now=back)
    assert len(stage.published(asked, Sum)) == 3


# ── what does not belong ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_in_the_wrong_queue_and_poison_stop_nothing() -> None:
    stage = working()
    misplaced = stage.to_stage(stage.names.stage(stage.stage_id), stage.book.void_draft(), "misplaced")
    poison = Delivered(stage.names.groups, (stage._delivery(stage.names.groups, b"poison", "poison"),))
    asked = stage.step(misplaced, poison)
    assert settles(asked, "misplaced") == [Outcome.ACK]
    assert settles(asked, "poison") == [Outcome.DEAD_LETTER]
    assert len(stage.published(stage.step(stage.words(0, 1, 2)), Sum)) == 3


def test_a_group_that_is_none_is_given_up_with_the_reason() -> None:
    stage = Stage()
    stage.book.plan = tiny_plan(8, group_size=3, aggregation={"rule": "mean", "trim": 0})
    stage.book.snapshot()
    stage.book.draw()
    asked = stage.step(stage.log(), stage.job())
    (given_up,) = stage.published(asked, GivenUp)
    assert given_up.reason == "not a group: no offer with keys of client-0"
    assert settles(stage.confirm()) == [Outcome.ACK]


def test_a_plan_of_another_version_is_an_error_that_says_so() -> None:
    stage = Stage()
    entry, weights = stage.book.snapshot_draft()
    plan = entry.plan.replace(b'"group_size"', b'"grupp_size"')
    sealed = stage.book.seal(entry.model_copy(update={"plan": plan}), weights)
    bodies = list(pack_batches(sealed.frames()))
    deliveries = tuple(stage._delivery(stage.names.log, body, number) for number, body in enumerate(bodies))
    with pytest.raises(PlanError, match="plan"):
        stage.step(Delivered(stage.names.log, deliveries))
