"""The lease: every pair of state and event; what a session does while it waits, and when its turn has come."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from coordinator.events import Tick, TookOffice
from coordinator.lease import CANDIDACY_S, HandOver, Lease, LeaseState, StandBy, StopWaiting, TakeOffice
from shared.effects import Note, Publish
from shared.errors import RefusalReason
from shared.modellog.chain import GENESIS
from shared.modellog.reader import Accepted, Marked, Skipped
from shared.transport.port import ConsumerWaiting, Delivered, Disconnected
from shared.wire.log_messages import Entry, Mark, RunEntry, TermEntry, VoidEntry
from shared.wire.messages import Candidacy, RunState
from tests.builders import make_delivery, make_federation

OURS, THEIRS = b"o" * 16, b"t" * 16
FEDERATION = make_federation(1)
FIRST = Delivered("test.offers", (make_delivery(b"first"),))
SECOND = Delivered("test.offers", (make_delivery(b"second"),))


def accepted(entry: Entry) -> Accepted:
    return Accepted(entry, bytes(32), 0)


def run_entry(run: RunState) -> Accepted:
    return accepted(RunEntry(parent=GENESIS, term=1, run=run, issued_us=1, version=0))


def doubt(losses: int) -> Marked:
    """The mark that a session publishes when it has lost a connection so many times."""
    return Marked(hashlib.sha256(OURS + losses.to_bytes(8, "big")).digest()[:16])


EVENTS: dict[str, Any] = {
    "own mark": Marked(OURS),
    "another's mark": Marked(THEIRS),
    "tick": Tick(),
    "delivery": FIRST,
    "stopping": run_entry(RunState.STOPPING),
    "paused": run_entry(RunState.PAUSED),
    "another's term": accepted(TermEntry(parent=GENESIS, term=2, session=THEIRS)),
    "void": accepted(VoidEntry(parent=GENESIS, term=1, draw=bytes(32), reason="")),
    "skipped": Skipped(RefusalReason.WRONG_PARENT, "late"),
    "in office": TookOffice(),
    "connection lost": Disconnected("reset"),
    "channel lost": ConsumerWaiting("test.offers", "closed"),
    "mark of the first doubt": doubt(1),
    "mark of the second doubt": doubt(2),
}
PATHS: dict[LeaseState, tuple[str, ...]] = {
    LeaseState.READING: (),
    LeaseState.STANDING_BY: ("own mark",),
    LeaseState.ENTERING: ("own mark", "delivery"),
    LeaseState.IN_OFFICE: ("own mark", "delivery", "in office"),
    LeaseState.IN_DOUBT: ("own mark", "delivery", "in office", "connection lost"),
    LeaseState.OVER: ("own mark", "stopping"),
}
TABLE: dict[tuple[LeaseState, str], tuple[LeaseState, tuple[str, ...]]] = {
    (LeaseState.READING, "own mark"): (LeaseState.STANDING_BY, ("StandBy", "Candidacy")),
    (LeaseState.STANDING_BY, "tick"): (LeaseState.STANDING_BY, ("standing_by", "Candidacy")),
    (LeaseState.STANDING_BY, "delivery"): (LeaseState.ENTERING, ("TakeOffice",)),
    (LeaseState.STANDING_BY, "stopping"): (LeaseState.OVER, ("StopWaiting",)),
    (LeaseState.ENTERING, "delivery"): (LeaseState.ENTERING, ()),
    (LeaseState.ENTERING, "stopping"): (LeaseState.OVER, ("StopWaiting",)),
    (LeaseState.ENTERING, "in office"): (LeaseState.IN_OFFICE, ("HandOver",)),
    (LeaseState.IN_OFFICE, "delivery"): (LeaseState.IN_OFFICE, ("HandOver",)),
    (LeaseState.ENTERING, "connection lost"): (LeaseState.ENTERING, ("Mark",)),
    (LeaseState.ENTERING, "channel lost"): (LeaseState.ENTERING, ("Mark",)),
    (LeaseState.IN_OFFICE, "connection lost"): (LeaseState.IN_DOUBT, ("Mark",)),
    (LeaseState.IN_OFFICE, "channel lost"): (LeaseState.IN_DOUBT, ("Mark",)),
    (LeaseState.IN_DOUBT, "delivery"): (LeaseState.IN_DOUBT, ()),
    (LeaseState.IN_DOUBT, "connection lost"): (LeaseState.IN_DOUBT, ("Mark",)),
    (LeaseState.IN_DOUBT, "channel lost"): (LeaseState.IN_DOUBT, ("Mark",)),
    (LeaseState.IN_DOUBT, "mark of the first doubt"): (LeaseState.IN_OFFICE, ()),
}


def make_lease(state: LeaseState = LeaseState.READING) -> Lease:
    lease = Lease(FEDERATION.names, OURS, FEDERATION.seal)
    lease.start()
    for event in PATHS[state]:
        lease.handle(EVENTS[event], 0.0)
    assert lease.state is state
    return lease


def words(effects: Sequence[object]) -> tuple[str, ...]:
    """Each effect by its type; a publish by its message, a note by its event."""
    said = []
    for effect in effects:
        match effect:
            case Publish(exchange, key, frame, persistent):
                message = FEDERATION.opener().open(frame).message
                if isinstance(message, Mark):
                    assert (exchange, key, persistent) == (FEDERATION.names.down, FEDERATION.names.log, True)
                    said.append("Mark")
                    continue
                assert (exchange, key) == (FEDERATION.names.up, FEDERATION.names.operator_key)
                assert isinstance(message, Candidacy)
                assert message.session == OURS
                assert not persistent
                said.append("Candidacy")
            case Note(event):
                said.append(event)
            case _:
                said.append(type(effect).__name__)
    return tuple(said)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", LeaseState)
def test_every_pair_of_state_and_event(state: LeaseState, event: str) -> None:
    lease = make_lease(state)
    following, effects = TABLE.get((state, event), (state, ()))

    assert words(lease.handle(EVENTS[event], CANDIDACY_S)) == effects
    assert lease.state is following


def test_it_begins_with_a_mark_of_its_session() -> None:
    start = Lease(FEDERATION.names, OURS, FEDERATION.seal).start()
    assert (start.exchange, start.routing_key) == (FEDERATION.names.down, FEDERATION.names.log)
    assert FEDERATION.opener().open(start.frame).message == Mark(session=OURS)


def test_candidacies_come_at_their_time_and_the_wait_is_noted_once() -> None:
    lease = make_lease(LeaseState.STANDING_BY)
    times = [CANDIDACY_S * share for share in (0.5, 1.0, 1.5, 2.0, 2.9, 3.0)]

    said = [words(lease.handle(Tick(), now)) for now in times]
    assert said == [(), ("standing_by", "Candidacy"), (), ("Candidacy",), (), ("Candidacy",)]


def test_what_came_before_the_office_is_handed_over_in_its_order_and_once() -> None:
    lease = make_lease(LeaseState.STANDING_BY)
    assert lease.handle(FIRST, 0.0) == (TakeOffice(),)
    assert lease.handle(SECOND, 0.0) == ()

    assert lease.handle(TookOffice(), 0.0) == (HandOver(FIRST), HandOver(SECOND))
    assert lease.handle(TookOffice(), 0.0) == ()
    assert lease.handle(FIRST, 0.0) == (HandOver(FIRST),)


def test_a_stop_from_before_this_session_came_ends_nothing() -> None:
    lease = make_lease()
    assert lease.handle(EVENTS["stopping"], 0.0) == ()
    assert StandBy() in lease.handle(EVENTS["own mark"], 0.0)
    assert lease.handle(EVENTS["stopping"], 0.0) == (StopWaiting(),)


def test_what_is_delivered_after_a_loss_waits_until_the_log_is_read_to_where_it_stood() -> None:
    lease = make_lease(LeaseState.IN_DOUBT)
    assert lease.handle(FIRST, 0.0) == ()
    lease.handle(EVENTS["connection lost"], 0.0)
    assert lease.handle(SECOND, 0.0) == ()

    # Another may have been in office between the two losses: the first mark says nothing about that.
    assert lease.handle(doubt(1), 0.0) == ()
    assert lease.handle(doubt(2), 0.0) == (HandOver(FIRST), HandOver(SECOND))
    assert lease.handle(FIRST, 0.0) == (HandOver(FIRST),)


@pytest.mark.parametrize("read_first", ["in office", "mark of the first doubt"])
def test_a_loss_on_the_way_into_office_is_a_doubt_too(read_first: str) -> None:
    lease = make_lease(LeaseState.ENTERING)
    lease.handle(EVENTS["connection lost"], 0.0)
    then = {"in office", "mark of the first doubt"} - {read_first}

    assert lease.handle(EVENTS[read_first], 0.0) == ()
    assert lease.handle(EVENTS[then.pop()], 0.0) == (HandOver(FIRST),)
    assert lease.state is LeaseState.IN_OFFICE
