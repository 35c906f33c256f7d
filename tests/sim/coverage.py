"""What has been seen over many seeds: faults, rows of the transition tables, ways in which a group can end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from coordinator.aggregator.buffer import Aggregator
from coordinator.events import GroupSummed
from coordinator.summing import steps as group_steps
from coordinator.summing.group import GroupSum
from shared.crypto.signing import VerificationCache
from worker import steps as member_steps
from worker.member import GroupMember

TABLES: dict[str, dict[Any, Any]] = {"member": member_steps.TRANSITIONS, "group": group_steps.TRANSITIONS}
"""Every transition table that is data, by the name under which its rows are counted."""

UNREACHABLE = {
    ("member", "spending", "closed"): "a worker's shell reads the log before anything else, and syncs in the same step",
}
"""Rows that no message and no crash can lead to, with the reason; `tests/worker` shows them on the machine itself."""

FAULTS = (
    "delay",
    "duplicate",
    "overtaking",
    "drop_transient",
    "lost_confirm",
    "connection_loss",
    "network_cut",
    "stages_split_from_clients",
    "broker_restart",
    "broker_blocked",
    "crash_coordinator",
    "crash_stage",
    "crash_worker",
    "crash_before_publish",
    "crash_after_publish",
    "crash_before_settle",
    "crash_after_settle",
    "crash_in_disk_write",
    "power_cut",
    "freeze_coordinator",
    "coordinator_woken_beside_successor",
    "freeze_stage",
    "stage_woken_beside_successor",
    "freeze_worker",
    "worker_woken_after_heartbeat",
    "two_coordinators",
    "slow_client",
    "vanished_worker",
    "training_failed",
)
"""Every kind of fault."""

WANTED = 100
"""Each kind of fault should happen so often in 2,000 seeds."""

ENDS = (
    "summed",
    "shares of # members, # needed",
    "words of # members, # needed",
    "# agreements, # needed",
    "# shares of a member's secret, # needed",
)
"""How a group of honest members can end. What a dishonest one can do beyond them, `tests/protocol` shows."""


@dataclass(slots=True)
class Coverage:
    """Counts of one run, or of many added up."""

    faults: Counter[str] = field(default_factory=Counter)
    rows: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    choices: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    seeds: int = 0
    seeds_of_five: int = 0
    versions: int = 0

    def add(self, other: Coverage) -> None:
        """Take another run in."""
        for name in ("faults", "rows", "ends", "choices", "stops"):
            getattr(self, name).update(getattr(other, name))
        self.seeds += other.seeds
        self.seeds_of_five += other.seeds_of_five
        self.versions += other.versions

    @property
    def missed_rows(self) -> list[tuple[str, str, str]]:
        """Rows of the tables that nothing has gone through."""
        return [row for row in all_rows() if not self.rows[row] and row not in UNREACHABLE]

    def lines(self) -> Iterator[str]:
        """The report."""
        share = self.seeds_of_five / max(1, self.seeds)
        yield f"{self.seeds} seeds, {self.versions} versions; {share:.0%} of the seeds reached 5 versions or more"
        yield "faults: " + ", ".join(f"{fault} {self.faults[fault]}" for fault in FAULTS)
        yield "rows of the transition tables:"
        for row in all_rows():
            why = f"  (unreachable: {UNREACHABLE[row]})" if row in UNREACHABLE else ""
            yield f"  {row[0]:<8} {row[1]:<10} {row[2]:<14} {self.rows[row]}{why}"
        yield "groups ended: " + ", ".join(f"{end!r} {self.ends[end]}" for end in dict.fromkeys((*ENDS, *self.ends)))
        yield "runs ended: " + ", ".join(f"{why!r} {count}" for why, count in self.stops.most_common())
        yield "plans: " + ", ".join(f"{choice} {count}" for choice, count in sorted(self.choices.items()))

    def gaps(self) -> list[str]:
        """What many seeds should have shown and did not."""
        rare = [f"fault {fault}: {self.faults[fault]} times" for fault in FAULTS if self.faults[fault] < WANTED]
        ends = [f"no group ended by {end!r}" for end in ENDS if not self.ends[end]]
        rows = [f"no {' '.join(row)}" for row in self.missed_rows]
        few = [] if 2 * self.seeds_of_five >= self.seeds else ["fewer than half of the seeds reached 5 versions"]
        return [*rare, *rows, *ends, *few]


def all_rows() -> list[tuple[str, str, str]]:
    """(table, state, event) of every row of every table."""
    return [(name, str(state), str(step)) for name, table in TABLES.items() for state, step in table]


def ending(reason: str) -> str:
    """A reason with its numbers left out."""
    return re.sub(r"\d+", "#", reason)


@contextmanager
def watched(coverage: Coverage, summed: Callable[[GroupSummed], None]) -> Iterator[None]:
    """Let the machines of this process be watched from here on: the tables' rows, groups' ends, and every sum."""
    member_moves, group_moves, group_gives_up = GroupMember._move, GroupSum._move, GroupSum._give_up
    aggregator_handles = Aggregator.handle

    def member_move(self: GroupMember, step: Any, state: Any) -> None:
        before = self.state
        member_moves(self, step, state)
        coverage.rows["member", str(before), str(step)] += 1

    def group_move(self: GroupSum, step: Any, state: Any, now: float) -> None:
        before = self.state
        group_moves(self, step, state, now)
        coverage.rows["group", str(before), str(step)] += 1
        if state is group_steps.GroupState.SUMMED:
            coverage.ends["summed"] += 1

    def give_up(self: GroupSum, reason: str) -> Any:
        coverage.ends[ending(reason)] += 1
        return group_gives_up(self, reason)

    def handle(self: Aggregator, event: Any, now: float) -> Any:
        if isinstance(event, GroupSummed):
            summed(event)
        return aggregator_handles(self, event, now)

    # Each signature is verified for real, once: that the other processes come to the same costs most of a run.
    known, verifies, remembers = VerificationCache(), VerificationCache.verify, VerificationCache.made

    def verify(self: VerificationCache, *signed: Any) -> None:
        verifies(known, *signed)

    def made(self: VerificationCache, *signed: Any) -> None:
        remembers(known, *signed)

    with ExitStack() as stack:
        stack.enter_context(patch.object(GroupMember, "_move", member_move))
        stack.enter_context(patch.object(GroupSum, "_move", group_move))
        stack.enter_context(patch.object(GroupSum, "_give_up", give_up))
        stack.enter_context(patch.object(Aggregator, "handle", handle))
        stack.enter_context(patch.object(VerificationCache, "verify", verify))
        stack.enter_context(patch.object(VerificationCache, "made", made))
        yield
