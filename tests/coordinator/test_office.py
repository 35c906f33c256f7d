"""Taking office: read to the end, found or claim, and give way to who comes later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.log_writer import Fenced, LogWriter
from coordinator.office import JournalRead, Office, OfficeState
from shared.effects import Append, Effect, Publish
from shared.errors import PlanError
from shared.modellog.chain import GENESIS
from shared.modellog.reader import weights_digest
from shared.plan import Plan
from shared.wire.log_messages import DrawEntry, Mark, SnapshotEntry, TermEntry, VoidEntry
from tests.builders import tiny_plan
from tests.coordinator.builders import Desk, notes, only

OURS, THEIRS = b"o" * 16, b"t" * 16
WEIGHTS = np.arange(8, dtype=np.float32)


class Session:
    """A coordinator's session that reads a desk's stream."""

    def __init__(self, desk: Desk, plan: Plan | None = None, session: bytes = OURS) -> None:
        self.desk = desk
        plan = plan or desk.plan
        desk.writer = LogWriter(desk.log, plan, desk.federation.seal)
        self.office = Office(plan, desk.writer, WEIGHTS, desk.federation.seal)
        self.mark = self.office.start(session).frame

    def read(self, *frames: bytes) -> list[Effect]:
        return [effect for event in self.desk.write(*frames) for effect in self.office.handle(event)]

    def claim(self) -> list[Effect]:
        """The log is read, the term is claimed, the journal is read: the effects of office."""
        marks = self.read_back(self.read(self.mark))
        assert self.office.state is OfficeState.RECALLING
        assert [(mark.routing_key, mark.frame) for mark in only(Publish, marks)] == [
            (self.desk.federation.names.journal, self.mark)
        ]
        return list(self.office.handle(JournalRead(OURS)))

    def read_back(self, effects: list[Effect]) -> list[Effect]:
        return self.read(*(frame for append in only(Append, effects) for frame in append.sealed.frames()))


def entries(effects: list[Effect]) -> list[Any]:
    return [append.sealed.entry for append in only(Append, effects)]


def test_an_empty_log_is_founded() -> None:
    session = Session(Desk(founded=False))

    effects = session.read(session.mark)
    assert [type(entry) for entry in entries(effects)] == [SnapshotEntry]
    assert session.office.state is OfficeState.FOUNDING
    assert notes(session.read_back(effects)) == ["in_office"]
    assert session.office.state is OfficeState.IN_OFFICE
    np.testing.assert_array_equal(session.desk.log.weights, WEIGHTS)


def test_a_log_that_exists_is_claimed() -> None:
    session = Session(Desk())

    effects = session.read(session.mark)
    (entry,) = entries(effects)
    assert isinstance(entry, TermEntry)
    assert (entry.term, entry.session) == (2, OURS)
    assert session.office.state is OfficeState.CLAIMING
    assert notes(session.read_back(effects)) == []
    assert session.office.state is OfficeState.RECALLING
    assert notes(session.office.handle(JournalRead(OURS))) == ["in_office"]
    assert session.office.state is OfficeState.IN_OFFICE
    assert session.desk.log.weights.tolist() == [0.0] * 8


@pytest.mark.parametrize("state", OfficeState)
def test_a_mark_in_the_journal_counts_only_if_it_is_ours_and_awaited(state: OfficeState) -> None:
    session = Session(Desk())
    session.office.state = state

    assert session.office.handle(JournalRead(THEIRS)) == ()
    assert session.office.state is state
    if state is not OfficeState.RECALLING:
        assert session.office.handle(JournalRead(OURS)) == ()
        assert session.office.state is state


@pytest.mark.parametrize("founded", [False, True])
def test_another_sessions_mark_means_nothing(founded: bool) -> None:
    session = Session(Desk(founded=founded))

    assert session.read(session.desk.federation.seal(Mark(session=THEIRS))) == []
    assert session.office.state is OfficeState.READING


def test_a_second_mark_of_ours_means_nothing() -> None:
    session = Session(Desk())
    effects = session.read(session.mark, session.mark)

    assert len(effects) == 1
    assert session.read(session.mark) == []


def test_whoever_founds_second_is_fenced_and_never_in_office() -> None:
    session = Session(Desk(founded=False))
    founding = session.read(session.mark)
    theirs = Desk(founded=False).writer.snapshot(WEIGHTS + 1)

    assert session.read_back([theirs]) == []
    assert session.office.state is OfficeState.FOUNDING
    with pytest.raises(Fenced):
        session.read_back(founding)


def test_whoever_claims_second_is_fenced() -> None:
    desk = Desk()
    session = Session(desk)
    claim = session.read(session.mark)
    other = Desk()
    theirs = other.writer.append(TermEntry(parent=GENESIS, term=2, session=THEIRS))

    assert session.read_back([theirs]) == []
    assert session.office.state is OfficeState.CLAIMING
    with pytest.raises(Fenced):
        session.read_back(claim)


@pytest.mark.parametrize("state", [OfficeState.RECALLING, OfficeState.IN_OFFICE])
def test_a_higher_term_ends_the_session_at_once(state: OfficeState) -> None:
    desk = Desk()
    session = Session(desk)
    claim = session.read(session.mark)
    session.read_back(claim)
    if state is OfficeState.IN_OFFICE:
        session.office.handle(JournalRead(OURS))
    assert session.office.state is state
    other = Desk()
    other.read_back(only(Append, claim))
    theirs = other.writer.append(TermEntry(parent=GENESIS, term=3, session=THEIRS))

    with pytest.raises(Fenced, match="taken over"):
        session.read_back([theirs])


def test_another_plan_is_refused_with_the_fields_that_differ() -> None:
    plan = tiny_plan(weight_records_max=99, group_size=1)
    session = Session(Desk(), plan)

    with pytest.raises(PlanError, match="different: weight_records_max"):
        session.read(session.mark)


def test_a_federation_is_founded_only_with_the_weights_that_its_plan_names() -> None:
    named = tiny_plan(initial_weights_sha256=weights_digest(WEIGHTS).hex())
    session = Session(Desk(named, founded=False))
    session.read_back(session.read(session.mark))
    assert session.office.state is OfficeState.IN_OFFICE

    other = Session(Desk(tiny_plan(initial_weights_sha256="0" * 64), founded=False))
    with pytest.raises(PlanError, match="not the weights that the plan names"):
        other.read(other.mark)


def longer_plan(rounds: int = 99) -> Plan:
    return tiny_plan(round={"rounds": rounds})


def test_more_rounds_are_told_by_a_snapshot_of_the_present_version() -> None:
    session = Session(Desk(), longer_plan())

    effects = session.claim()
    assert notes(effects) == ["in_office", "rounds_changed"]
    (entry,) = entries(effects)
    assert isinstance(entry, SnapshotEntry)
    weights = session.desk.chain.weights_sha256
    assert session.read_back(effects) == []
    assert session.desk.log.plan == longer_plan()
    assert (session.desk.chain.version, session.desk.chain.weights_sha256) == (0, weights)


def test_other_rounds_are_told_when_the_open_draw_is_closed() -> None:
    desk = Desk()
    draw = desk.append(DrawEntry(parent=GENESIS, term=0, version=0, groups=1, offers=1, root=bytes(32)))
    session = Session(desk, longer_plan())

    assert entries(session.claim()) == []
    void = desk.writer.append(VoidEntry(parent=GENESIS, term=0, draw=draw.accepted.digest, reason="test"))
    effects = session.read_back([void])
    assert [type(entry) for entry in entries(effects)] == [SnapshotEntry]
    assert session.read_back(effects) == []
    assert desk.log.plan == longer_plan()


def test_of_another_plan_the_rounds_are_not_among_what_differs() -> None:
    session = Session(Desk(), tiny_plan(round={"rounds": 99}, weight_records_max=99))

    with pytest.raises(PlanError, match=r"different: weight_records_max\)"):
        session.read(session.mark)
