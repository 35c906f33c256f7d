"""A summing stage dies, or freezes and wakes up beside its successor: one sum of a group, or a reason; never two.

Each stage reads its own queue, which every message of its names; a letter to a dead stage is lost. Between one sender
and one receiver letters keep their order; otherwise anything may overtake anything.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest

from tests.protocol.circle import Circle, Letter, remembered_agreements
from tests.protocol.lies import session_of
from tests.protocol.relay import Relay

# ── a stage dies ─────────────────────────────────────────────────────────────────────────────────────────────────────


def letters_of_a_group(circle: Circle) -> int:
    relay = Relay(circle)
    relay.open("stage-a")
    relay.settle()
    return relay.sent["stage-a"]


def die_after(circle: Circle, letters: int, *, answered: bool) -> Relay:
    """The first stage sends so many letters and dies.

    Args:
        answered: whether it still hears the answers to its letters before the last one, or dies with them unread.
    """
    relay = Relay(circle)
    relay.open("stage-a")
    left = letters
    while relay.letters:
        letter = relay.letters.popleft()
        if letter.sender == "stage-a":
            if not left:
                continue
            left -= 1
            if not left and not answered:
                relay.deliver(letter)
                break
        relay.deliver(letter)
    relay.kill("stage-a")
    relay.open("stage-b")
    return relay


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(("members", "colluders"), [(4, 1), (5, 0), (5, 1)])
def test_the_group_of_a_stage_that_dies_after_any_letter_ends_in_one_sum(
    members: int, colluders: int, answered: bool
) -> None:
    circle = Circle(members, max_colluders=colluders)
    with remembered_agreements():
        total = letters_of_a_group(circle)
        # The roster, the participants and who arrived go to everybody, the agreements to t of them.
        assert total == 3 * members + circle.plan.threshold(members)
        for letters in range(total + 1):
            relay = die_after(circle, letters, answered=answered)
            relay.settle()
            summed = relay.check()
            assert summed is not None, (letters, relay.results)
            assert summed.arrived == circle.clients, letters


@pytest.mark.parametrize("members", [4, 5])
def test_a_client_may_be_lost_with_the_stage(members: int) -> None:
    circle = Circle(members, max_colluders=0)
    outcomes: Counter[bool] = Counter()
    with remembered_agreements():
        for letters, client in product(range(letters_of_a_group(circle) + 1), circle.clients):
            relay = die_after(circle, letters, answered=True)
            relay.lost_clients.add(client)
            relay.settle()
            summed = relay.check()
            outcomes[summed is not None] += 1
            assert summed is not None or letters > members, (letters, relay.results)
            # Who alone was told of the first stage's choice, with the lost client in it, has masked over that.
            others = set() if summed is None else set(circle.clients) - {client} - set(summed.arrived)
            bound = {other: session_of(circle.parties[other]).participants for other in others}
            assert all(circle.clients.index(client) in participants for participants in bound.values()), letters
            assert len(others) <= max(circle.plan.max_colluders, 1)
    # With the stage, what the lost client had said is lost as well. Nobody can be summed any more if the others have
    # masked over its shares and too few of them hold one, or have agreed that its words arrived.
    assert outcomes[True] >= 0.4 * outcomes.total()


# ── two stages at once ───────────────────────────────────────────────────────────────────────────────────────────────


class Schedule:
    """What happens in which order to two stages with the same job, from a seed."""

    def __init__(self, circle: Circle, seed: int) -> None:
        self.relay = Relay(circle)
        self.rng = random.Random(seed)
        self.frozen: set[str] = set()
        self.letters_lost = 0.0
        self.haste = 0.07

    def run(self) -> None:
        """The first stage freezes, or not; a second one gets the job at some time; the first dies, or wakes up."""
        rng, relay = self.rng, self.relay
        length = rng.randrange(20, 40 * len(relay.circle.clients))
        starts, freezes, ends = sorted(rng.randrange(length) for _ in range(3))
        if rng.random() < 0.5:
            starts, freezes = freezes, starts
        dies = rng.random() < 0.3
        relay.open("stage-a")
        for step in range(length):
            if step == freezes:
                self.frozen.add("stage-a")
            if step == starts:
                relay.open("stage-b")
            if step == ends:
                self.frozen.clear()
                if dies:
                    relay.kill("stage-a")
                else:
                    relay.tick("stage-a", rng.choice((0.0, 3.0, 40.0)))
            self._something()
        relay.settle()

    def lose_clients(self, count: int) -> None:
        self.relay.lost_clients.update(self.rng.sample(self.relay.circle.clients, count))

    def _something(self) -> None:
        """One letter arrives, of any channel, or time passes for one stage."""
        rng, relay = self.rng, self.relay
        waiting = [letter for letter in relay.letters if letter.to or letter.stage not in self.frozen]
        if waiting and rng.random() >= self.haste:
            chosen = rng.choice(waiting)
            # The oldest one between the same two.
            letter = next(one for one in waiting if channel(one) == channel(chosen))
            relay.letters.remove(letter)
            if rng.random() >= self.letters_lost:
                relay.deliver(letter)
            return
        awake = sorted(relay.stages.keys() - self.frozen)
        if awake:
            relay.tick(rng.choice(awake), rng.choice((0.1, 1.0, 2.5) if self.haste < 0.1 else (1.0, 5.0, 11.0)))


def channel(letter: Letter) -> tuple[str, str]:
    return letter.sender, letter.to or letter.stage


SCHEDULES = 150
"""Of each kind."""


@pytest.mark.parametrize("members", [4, 5])
def test_two_stages_at_once_never_open_two_different_sums(members: int) -> None:
    circle = Circle(members)
    ended: Counter[bool] = Counter()
    with remembered_agreements():
        for seed in range(SCHEDULES):
            schedule = Schedule(circle, seed)
            schedule.run()
            ended[schedule.relay.check() is not None] += 1
    # Measured with 400 seeds: 398 and 399. The others' letters waited until the deadlines of both stages were over.
    assert ended[True] >= 0.95 * SCHEDULES, ended


@pytest.mark.parametrize("colluders", [0, 1])
def test_nor_do_they_when_letters_and_clients_are_lost_and_deadlines_pass(colluders: int) -> None:
    circle = Circle(5, max_colluders=colluders)
    arrived: Counter[int] = Counter()
    with remembered_agreements():
        for seed in range(SCHEDULES):
            schedule = Schedule(circle, seed)
            schedule.letters_lost = 0.1 * (seed % 3)
            schedule.haste = (0.07, 0.15, 0.3)[seed // 3 % 3]
            schedule.lose_clients(seed % 2)
            schedule.run()
            summed = schedule.relay.check()
            arrived[len(summed.arrived) if summed else 0] += 1
    # Sums of all, of fewer, and none: every end is exercised.
    threshold = circle.plan.threshold(5)
    assert set(arrived) == {0, *range(threshold, 6)}, arrived


# ── a job published twice ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_a_stage_gets_twice_is_summed_once_and_settled_twice() -> None:
    relay = Relay(Circle(4))
    relay.open("stage-a")
    rosters = relay.sent["stage-a"]
    relay.deliver_job("stage-a")
    assert relay.sent["stage-a"] == rosters, "members are asked once"
    assert relay.settled == 0
    relay.settle()
    assert relay.settled == 2
    relay.deliver_job("stage-a")
    relay.settle()

    assert relay.settled == 3
    assert len(relay.results) == 1
    assert relay.check() is not None


def test_a_job_that_two_stages_get_at_the_same_time_has_one_sum() -> None:
    circle = Circle(4)
    relay = Relay(circle)
    relay.open("stage-a")
    relay.open("stage-b")
    relay.settle()

    assert relay.check() is not None
