"""Several summing stages over one group, each with its own queue and clock, and letters delivered one by one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

from coordinator.events import CoordinatorEffect, GroupGivenUp, GroupReplyArrived, GroupSummed, JobArrived, Tell, Tick
from coordinator.summing.stage import SummingStage
from shared.effects import Publish, Receipt, Settle
from shared.wire.group_messages import GroupMessage
from tests.builders import make_delivery
from tests.protocol.circle import Circle, Letter

SETTLED_S = 90.0
"""Longer than all deadlines of a group together."""


class Relay:
    """Several stages over one circle, each with its own clock, and letters that tests deliver one by one."""

    def __init__(self, circle: Circle) -> None:
        circle.again()
        self.circle = circle
        self.stages: dict[str, SummingStage] = {}
        self.clocks: dict[str, float] = {}
        self.letters: deque[Letter] = deque()
        self.results: list[GroupSummed | GroupGivenUp] = []
        self.sent: Counter[str] = Counter()
        self.lost_clients: set[str] = set()
        self.settled = 0

    def open(self, name: str) -> None:
        """A stage starts and is given the job."""
        self.stages[name], self.clocks[name] = self.circle.new_stage(name), 0.0
        self.deliver_job(name)

    def deliver_job(self, name: str) -> None:
        job = JobArrived(self.circle.job, Receipt(make_delivery(b""), 1))
        self._drive(name, self.stages[name].handle(job, self.clocks[name]))

    def kill(self, name: str) -> None:
        del self.stages[name]

    def tick(self, name: str, seconds: float) -> None:
        self.clocks[name] += seconds
        self._drive(name, self.stages[name].handle(Tick(), self.clocks[name]))

    def deliver(self, letter: Letter) -> None:
        """Hand a letter over, unless nobody is there any more."""
        if letter.to:
            if letter.to not in self.lost_clients:
                assert isinstance(letter.message, GroupMessage)
                self.letters.extend(self.circle.parties[letter.to].take(letter.message))
        elif letter.stage in self.stages:
            reply = GroupReplyArrived(letter.sender, letter.message, letter.frame)  # type: ignore[arg-type]
            self._drive(letter.stage, self.stages[letter.stage].handle(reply, self.clocks[letter.stage]))

    def settle(self) -> None:
        """Everything that is left to happen, in order."""
        for _ in range(int(SETTLED_S)):
            while self.letters:
                self.deliver(self.letters.popleft())
            for name in self.stages:
                self.tick(name, 1.0)

    def _drive(self, name: str, effects: Iterable[CoordinatorEffect]) -> None:
        for effect in effects:
            match effect:
                case Publish(frame=frame):
                    message = self.circle.open(frame).message
                    assert isinstance(message, GroupMessage)
                    self.sent[name] += 1
                    self.letters.append(Letter(name, message.client, message, frame, name))
                case Tell(GroupSummed() | GroupGivenUp() as result):
                    self.results.append(result)
                case Settle():
                    self.settled += 1

    def check(self) -> GroupSummed | None:
        """Whatever happened: every sum is the same, and right; what is no sum has a reason. Returns the sum."""
        assert self.results, "the group did not end"
        sums = [result for result in self.results if isinstance(result, GroupSummed)]
        assert all(result.reason for result in self.results if isinstance(result, GroupGivenUp))
        assert all(result.blamed == () for result in self.results)
        assert all(len(party.spent) <= 1 for party in self.circle.parties.values())
        for one in sums:
            assert one.arrived == sums[0].arrived
            np.testing.assert_array_equal(one.words, self.circle.plain_sum(one.arrived))
        return sums[0] if sums else None
