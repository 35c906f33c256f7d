"""Groups that a hostile coordinator attacks, and the rules of the product that tests switch off one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from shared.crypto.threshold import threshold
from shared.plan import Plan
from tests.protocol.adversary import Hub, Place
from tests.protocol.circle import Circle, Party
from worker import rules
from worker.policy import Policy

SIZES = [(5, 3, 0), (6, 4, 1), (7, 5, 2), (8, 6, 3), (10, 7, 3)]
"""(n, t, c) of the groups that are attacked; t is the plan's."""

LENIENT = Policy(min_summed=1, min_members=1, max_colluders=0)
"""Leaves everything to the plan."""


@dataclass
class Scene:
    """A group of n in which everybody has dealt: the victim comes first, the colluders last."""

    circle: Circle
    hub: Hub
    transcript: bytes
    threshold: int
    colluding: int

    @property
    def everybody(self) -> frozenset[Place]:
        return frozenset(range(len(self.circle.clients)))

    @property
    def honest(self) -> list[Place]:
        return list(range(len(self.circle.clients) - self.colluding))

    @property
    def colluders(self) -> frozenset[Place]:
        return self.everybody - set(self.honest)

    @property
    def victim(self) -> Party:
        return self.party(0)

    def party(self, place: Place) -> Party:
        return self.circle.parties[self.circle.clients[place]]

    def is_isolated(self) -> bool:
        """Whether the victim's words are known; if they are, to the last bit."""
        opening = self.hub.smallest_sum(self.victim.client)
        if opening is None or opening.members != {0}:
            return False
        assert self.victim.words is not None
        np.testing.assert_array_equal(opening.words, self.victim.words)
        return True

    def refusals(self) -> set[str]:
        """All that was refused by anybody."""
        return {detail for party in self.circle.parties.values() for detail in party.refusals}


def scene(members: int, t: int, colluding: int, *, policy: Policy = LENIENT, t_known: bool = True) -> Scene:
    """A group up to its shares."""
    if t_known:
        assert threshold(members, colluding) == t
    circle = Circle(members, max_colluders=colluding, policy=policy, seed=members)
    hub = Hub(circle, circle.clients[members - colluding :])
    transcript = hub.open_group(circle.group)
    hub.roster(circle.group, circle.clients)
    return Scene(circle, hub, transcript, circle.plan.threshold(members), colluding)


class Rule:
    """A check of the product that a test may switch off."""

    def __init__(self, name: str, says: str) -> None:
        self.name, self.says = name, says

    def __repr__(self) -> str:
        return self.name

    def switch_off(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rules, self.name, lambda *_: True)


class ThresholdRule(Rule):
    """2t > n + c: without it, t of the honest members and colluders fit twice into the group."""

    def switch_off(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Plan, "threshold", lambda plan, members: (members + plan.max_colluders) // 2)


TAKES_PART = Rule("check_takes_part", "we are not among the participants")
ENOUGH = Rule("check_enough", "needed")
SAME_PARTICIPANTS = Rule("check_same_participants", "other participants than we masked over")
TOOK_PART = Rule("check_arrived_took_part", "somebody arrived who is no participant")
WE_ARRIVED = Rule("check_arrived", "we are not among those who arrived")
SIGNER_ARRIVED = Rule("may_agree", "valid agreements")
SAME_AGREEMENT = Rule("is_same_agreement", "valid agreements")
QUORUM = Rule("check_quorum", "valid agreements")
THRESHOLD = ThresholdRule("threshold", "valid agreements")
GROUP = Rule("check_group", "of another group")
