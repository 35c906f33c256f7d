"""One attempt at a version: who is expected to offer, since when, and for how long they are waited for."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from coordinator.scheduler.clients import Roll
from shared.effects import Note, note
from shared.modellog.chain import ChainState
from shared.plan_sections import RoundPlan

DEADLINE_MEDIANS = 3.0
"""A round's deadline is at least this many times the median offer time of the round before."""

ROUNDING = 1e-9

VOID_DRAWS_ALARM = 3
"""So many void draws of one version raise an alarm: groups fail, or the coordinator draws until it likes them."""


@dataclass(slots=True)
class Round:
    """One attempt at a version. Times are in seconds on the coordinator's clock; `offer_times` has one per client."""

    version: int
    started_at: float
    deadline: float
    cohort: set[str]
    offer_times: dict[str, float] = field(default_factory=dict)
    quorum_at: float | None = None
    said_waiting: bool = False

    def restart(self, now: float, deadline_s: float) -> None:
        """Begin to wait anew."""
        self.started_at, self.deadline, self.quorum_at = now, now + deadline_s, None

    def reopen(self, now: float, deadline_s: float) -> None:
        """Begin anew behind a pause, with the offers that are there."""
        self.restart(now, deadline_s)
        self.said_waiting = False
        self.offer_times.clear()

    def say_waiting(self, offers: int, needed: int, roll: Roll) -> Iterator[Note]:
        """Say once that there are too few offers, or clients, and that nothing is done about it.

        Nor is a back-off cut short: whoever breaks the protocol would make the others spend an update each time.
        """
        if not self.said_waiting:
            self.said_waiting = True
            backed_off = sorted(roll.live - roll.drawable(roll.live, self.version))
            fields: dict[str, object] = {"offers": offers, "needed": needed, "live": len(roll.live)}
            fields |= {"backed_off": backed_off} if backed_off else {}
            yield note("waiting_for_clients", "warning", version=self.version, **fields)

    def is_grace_over(self, plan: RoundPlan, offered: int, expected: int, now: float) -> bool:
        """Whether enough of those expected have offered, and the others have had their grace."""
        # 0.14 of 50 are 7, although the product is a little above it.
        if offered < math.ceil(plan.offer_quorum * expected - ROUNDING):
            return False
        if self.quorum_at is None:
            self.quorum_at = now
        return now - self.quorum_at >= plan.straggler_grace_s


def next_deadline_s(plan: RoundPlan, before: Round | None, deadline_s: float) -> float:
    """How long the next round may take, by how long offers took in the one before; `deadline_s` if there were none."""
    if before is None or not before.offer_times:
        return deadline_s
    return max(plan.round_deadline_s, DEADLINE_MEDIANS * statistics.median(before.offer_times.values()))


def voids_alarm(chain: ChainState | None) -> Iterator[Note]:
    """The alarm, if there have been so many void draws of the present version."""
    if chain is not None and chain.attempt >= VOID_DRAWS_ALARM:
        text = f"{chain.attempt} draws of version {chain.version} were void; each one costs its clients an update"
        yield note("alarm", "warning", version=chain.version, text=text)


def choose_cohort(clients: Collection[str], size: int | None, chain: ChainState) -> set[str]:
    """All of these clients, or `size` of them, chosen by the hash of the log's head: always the same until it moves."""
    if size is None:
        return set(clients)
    return set(sorted(clients, key=lambda client: hashlib.sha256(chain.head + client.encode()).digest())[:size])
