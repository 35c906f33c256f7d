"""What stands in the transition tables happens; whatever does not stand there changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

from coordinator.events import CoordinatorEffect, GroupReplyArrived, Tell
from coordinator.summing.group import GroupSum
from coordinator.summing.steps import TRANSITIONS as GROUP_TRANSITIONS
from coordinator.summing.steps import GroupState, GroupStep
from shared.effects import Note, Publish
from shared.wire.group_messages import (
    Agreement,
    Arrived,
    GroupMessage,
    Participants,
    Reveal,
    Roster,
    Shares,
    Unmask,
    Words,
)
from shared.wire.messages import Message
from tests.protocol.circle import Circle, Letter
from tests.protocol.diagrams import PAGE, drawn
from worker.events import SpendUpdate, WorkerEffect
from worker.member import ANSWERS_MAX
from worker.policy import Policy
from worker.steps import TRANSITIONS, MemberState, Step

ME = "client-1"
SAID = {Step.ROSTER: Roster, Step.PARTICIPANTS: Participants, Step.ARRIVED: Arrived, Step.UNMASK: Unmask}
BEFORE = {
    MemberState.OUT: (),
    MemberState.SHARED: (Step.ROSTER,),
    MemberState.SPENDING: (Step.ROSTER, Step.PARTICIPANTS),
    MemberState.MASKED: (Step.ROSTER, Step.PARTICIPANTS, Step.SPENT),
    MemberState.AGREED: (Step.ROSTER, Step.PARTICIPANTS, Step.SPENT, Step.ARRIVED),
    MemberState.REVEALED: (Step.ROSTER, Step.PARTICIPANTS, Step.SPENT, Step.ARRIVED, Step.UNMASK),
}
"""What brings a member of a group into each state."""


def conversation(circle: Circle) -> list[Letter]:
    """Run a group to its end; returns every letter."""
    letters: list[Letter] = []

    def passes(letter: Letter) -> bool:
        letters.append(letter)
        return True

    circle.run(passes)
    return letters


class Subject:
    """One member of a group of four, to which every event can happen at any time, and what it has sent."""

    def __init__(self) -> None:
        circle = Circle(4)
        circle.start()
        letters = conversation(circle)
        self.messages: dict[Step, GroupMessage] = {
            step: letter.message
            for step, kind in SAID.items()
            for letter in letters
            if letter.to == ME and isinstance(letter.message, kind)
        }
        circle.again()
        self.circle = circle
        self.party = circle.parties[ME]
        self.sent: list[bytes] = []

    def happen(self, step: Step) -> list[WorkerEffect]:
        """Let it happen; returns the effects."""
        machine, book = self.party.machine, self.circle.book
        if step is Step.SPENT:
            return list(machine.spent())
        if step is Step.CLOSED:
            if book.chain.draw is not None:
                book.void()
            return list(machine.follow(book.chain, self.party.update))
        return list(machine.handle(self.messages[step], self.party.update))

    def reach(self, state: MemberState) -> None:
        for step in BEFORE[state]:
            self.sent += frames(self.happen(step))
        assert self.party.state is state

    def secrets(self) -> dict[str, Any]:
        """All that the member holds for its group, but whom it speaks to and what it counts."""
        session = self.party.machine._session
        if session is None:
            return {}
        held = {name: getattr(session, name) for name in session.__slots__ if name not in ("stage", "refused")}
        return copy.deepcopy(held)


def frames(effects: Iterable[WorkerEffect | CoordinatorEffect]) -> list[bytes]:
    return [effect.frame for effect in effects if isinstance(effect, Publish)]


LISTED = sorted(pair for pair in TRANSITIONS if pair[0] in BEFORE)
OTHERS = sorted(set(product(MemberState, Step)) - set(TRANSITIONS))


@pytest.mark.parametrize(("state", "step"), LISTED)
def test_a_listed_event_moves_a_member_to_a_listed_state(state: MemberState, step: Step) -> None:
    subject = Subject()
    subject.reach(state)

    effects = subject.happen(step)
    assert subject.party.state in TRANSITIONS[state, step]
    # The words wait for the disk; nobody is told that a group is over; every other step has an answer.
    assert bool(frames(effects)) == (step not in (Step.PARTICIPANTS, Step.CLOSED))
    assert [e for e in effects if isinstance(e, SpendUpdate)] == [SpendUpdate(1)] * (step is Step.PARTICIPANTS)


@pytest.mark.parametrize(("state", "step"), OTHERS)
def test_any_other_event_changes_nothing_in_a_member(state: MemberState, step: Step) -> None:
    subject = Subject()
    subject.reach(state)
    before = subject.secrets()

    for _ in range(2):
        effects = subject.happen(step)
        assert subject.party.state is state
        assert subject.secrets() == before
        assert set(frames(effects)) <= set(subject.sent)
        assert not [e for e in effects if isinstance(e, SpendUpdate)]
        if step in SAID and step not in BEFORE[state]:
            assert not frames(effects)
            assert [e.event for e in effects if isinstance(e, Note)] == ["refused"]
        if step in SAID and step in BEFORE[state] and state is not MemberState.SPENDING:
            assert frames(effects), "a repeat is answered"


def test_a_group_of_one_goes_from_its_roster_to_its_words() -> None:
    circle = Circle(1, max_colluders=0, policy=Policy(allow_groups_of_one=True, max_colluders=0, min_summed=1))
    (party,) = circle.parties.values()
    circle.start()
    (letter,) = circle.post
    assert isinstance(letter.message, Roster)
    effects = list(party.machine.handle(letter.message, party.update))
    assert party.state is MemberState.SPENDING
    assert frames(effects) == []
    assert len(frames(party.machine.spent())) == 1
    assert party.state is MemberState.MASKED


def test_every_target_of_the_members_table_is_reached() -> None:
    # The one that this file reaches by a group of one, and those that `LISTED` goes through.
    assert {target for targets in TRANSITIONS.values() for target in targets} == set(MemberState)
    assert TRANSITIONS[MemberState.OUT, Step.ROSTER] == (MemberState.SHARED, MemberState.SPENDING)
    assert all(len(targets) == 1 for pair, targets in TRANSITIONS.items() if pair != (MemberState.OUT, Step.ROSTER))


@pytest.mark.parametrize(("state", "step"), [pair for pair in OTHERS if pair[1] in (Step.PARTICIPANTS, Step.ARRIVED)])
def test_another_message_for_a_step_is_refused_and_answered_ten_times_at_most(state: MemberState, step: Step) -> None:
    subject = Subject()
    subject.reach(state)
    before = subject.secrets()
    # The same step for members 0, 1, 2 instead of all four.
    message = subject.messages[step]
    other: dict[str, Any] = {"participants": b"\x07"} if isinstance(message, Participants) else {"arrived": b"\x07"}
    subject.messages[step] = message.model_copy(update=other)

    answers = [subject.happen(step) for _ in range(ANSWERS_MAX + 2)]
    assert subject.party.state is state
    assert subject.secrets() == before
    assert all(set(frames(effects)) <= set(subject.sent) for effects in answers)
    assert all([e.event for e in effects if isinstance(e, Note)] == ["refused"] for effects in answers)
    answered = step in BEFORE[state] and state is not MemberState.SPENDING
    assert sum(bool(frames(effects)) for effects in answers) == (ANSWERS_MAX if answered else 0)


# ── the sum of a group ───────────────────────────────────────────────────────────────────────────────────────────────

LATE = 11.0
"""A time after the deadline of the state that began at 0."""

HEARD = {GroupStep.DEALT: Shares, GroupStep.ARRIVED: Words, GroupStep.AGREED: Agreement, GroupStep.OPENED: Reveal}
LEADS = {
    GroupState.SHARES: (),
    GroupState.WORDS: (GroupStep.DEALT,),
    GroupState.AGREEMENT: (GroupStep.DEALT, GroupStep.ARRIVED),
    GroupState.REVEAL: (GroupStep.DEALT, GroupStep.ARRIVED, GroupStep.AGREED),
    GroupState.SUMMED: (GroupStep.DEALT, GroupStep.ARRIVED, GroupStep.AGREED, GroupStep.OPENED),
    GroupState.GIVEN_UP: (GroupStep.FAILED,),
}


class Sum:
    """A stage's sum of a group of four, to which the members' answers happen step by step, in any order."""

    def __init__(self) -> None:
        circle = Circle(4)
        circle.start()
        (self.machine,) = circle.stage._open.values()
        setting = self.machine._setting
        letters = conversation(circle)
        self.machine = GroupSum(setting)
        self.said: dict[GroupStep, list[tuple[str, Message, bytes]]] = {
            step: [(x.sender, x.message, x.frame) for x in letters if isinstance(x.message, kind)]
            for step, kind in HEARD.items()
        }
        self.sent = set(frames(self.machine.start(0.0)))

    def happen(self, step: GroupStep) -> list[CoordinatorEffect]:
        """All members answer, or the deadline passes."""
        if step is GroupStep.FAILED:
            return list(self.machine.tick(LATE))
        effects: list[CoordinatorEffect] = []
        for client, message, frame in self.said[step]:
            assert isinstance(message, Shares | Words | Agreement | Reveal)
            effects += self.machine.handle(GroupReplyArrived(client, message, frame), 0.0)
        return effects

    def reach(self, state: GroupState) -> None:
        for step in LEADS[state]:
            self.sent |= set(frames(self.happen(step)))
        assert self.machine.state is state


GROUP_OTHERS = sorted(set(product(GroupState, GroupStep)) - set(GROUP_TRANSITIONS))


@pytest.mark.parametrize(("state", "step"), sorted(GROUP_TRANSITIONS))
def test_a_listed_event_moves_a_sum_to_a_listed_state(state: GroupState, step: GroupStep) -> None:
    subject = Sum()
    subject.reach(state)

    effects = subject.happen(step)
    assert subject.machine.state in GROUP_TRANSITIONS[state, step]
    told = [effect for effect in effects if isinstance(effect, Tell)]
    assert len(told) == subject.machine.ended
    assert bool(frames(effects)) == (not subject.machine.ended)


@pytest.mark.parametrize(("state", "step"), GROUP_OTHERS)
def test_any_other_event_moves_no_sum(state: GroupState, step: GroupStep) -> None:
    subject = Sum()
    subject.reach(state)

    for _ in range(2):
        effects = subject.happen(step)
        assert subject.machine.state is state
        assert set(frames(effects)) <= subject.sent
        assert not [effect for effect in effects if isinstance(effect, Tell)]


def test_the_words_of_a_group_of_one_are_its_sum() -> None:
    circle = Circle(1, max_colluders=0, policy=Policy(allow_groups_of_one=True, max_colluders=0, min_summed=1))
    circle.start()
    (machine,) = circle.stage._open.values()
    assert machine.state is GroupState.WORDS
    circle.run()
    assert machine.state is GroupState.SUMMED
    assert len(circle.results) == 1


# ── the docs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert drawn(page) == page, "python -m tests.protocol.diagrams"
    assert page.count("stateDiagram-v2") == 2
