"""A coordinator that is killed anywhere goes on with the same weights and the same open draw, here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from shared.wire.log_messages import ChangeEntry, DrawEntry, VoidEntry
from tests.simulation.federation import FederationRun


class Killed(Exception):
    """The coordinator's process is gone, in the middle of a step."""


class Nearest:
    """Rounds to the nearest integer: an update gives the same words in every run."""

    def random(self, *, out: np.ndarray) -> None:
        out[:] = 0.5


class KilledRun(FederationRun):
    """A run whose coordinator does not live to do these calls to the broker (counted from 1), and is started again."""

    rounding_of = staticmethod(lambda _: Nearest())

    def __init__(self, kill_at: Iterable[int] = (), **fields: Any) -> None:
        self.kill_at = frozenset(kill_at)
        self.calls = 0
        self.kills = 0
        super().__init__(**fields)

    def start_coordinator(self) -> None:
        super().start_coordinator()
        tap = self.coordinator._transport
        for name in ("publish", "settle", "consume", "cancel"):
            setattr(tap, name, self._counted(getattr(tap, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls in self.kill_at:
                raise Killed
            return call(*args, **kwargs)

        return counted

    def _step_coordinator(self) -> bool:
        try:
            return super()._step_coordinator()
        except Killed:
            self.kills += 1
            self.crash_coordinator()
            return True


def run_to_end(kill_at: Iterable[int] = (), **fields: Any) -> KilledRun:
    run = KilledRun(kill_at, **fields)
    run.run()
    return run


def check_same(run: KilledRun, undisturbed: KilledRun) -> None:
    """The same versions bit for bit, each of one draw, and no update lost."""
    entries, weights = run.read_log()
    _, expected = undisturbed.read_log()
    assert len(weights) == len(expected)
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kinds = [type(entry) for entry in entries]
    rounds = run.plan.round.rounds
    assert (kinds.count(DrawEntry), kinds.count(ChangeEntry), kinds.count(VoidEntry)) == (rounds, rounds, 0)
    assert {entry.offers for entry in entries if isinstance(entry, DrawEntry)} == {len(run.clients)}


def optimizer(name: str, **options: float) -> dict[str, Any]:
    return {"rule": "mean", "trim": 0, "server_optimizer": {"name": name, "options": options}}


SECURE: dict[str, Any] = {"clients": 3, "processes": 1, "plan": {"round": {"rounds": 2}, "group_size": 3}}


def test_a_coordinator_killed_at_any_call_to_the_broker_goes_on_as_if_it_had_not_been() -> None:
    undisturbed = run_to_end(**SECURE)

    for call in range(1, undisturbed.calls + 1):
        run = run_to_end([call], **SECURE)
        assert run.kills == 1
        check_same(run, undisturbed)


def test_it_may_be_killed_again_while_it_recovers() -> None:
    undisturbed = run_to_end(**SECURE)

    for call in range(8, undisturbed.calls, 4):
        run = run_to_end(range(call, call + 9, 4), **SECURE)
        assert run.kills == 3
        check_same(run, undisturbed)


PLATEAU = {"plateau_patience": 1, "rate_drop": 0.5}
ASYNC = {"mode": "async", "pool_size": 4, "max_staleness": 2, "cooldown": 1}
PLAINLY = {"clients": 4, "processes": 2}
CASES: dict[str, dict[str, Any]] = {
    "stages of their own": {**SECURE, "stages": 2},
    "FedAdam": {**PLAINLY, "plan": {"aggregation": optimizer("Adam", lr=0.1)}},
    "asynchronous mode": {**PLAINLY, "plan": {"round": ASYNC}},
    "FedAvgM": {**PLAINLY, "plan": {"aggregation": optimizer("SGD", lr=1.0, momentum=0.9)}},
    "plateau": {**PLAINLY, "plan": {"aggregation": optimizer("SGD", lr=4.0), "steering": PLATEAU}},
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_next_step_needs_survives(case: str) -> None:
    undisturbed = run_to_end(**CASES[case])
    if case == "plateau":
        assert undisturbed.count("rate_lowered") > 0

    for call in range(5, undisturbed.calls, 12):
        run = run_to_end([call], **CASES[case])
        assert run.kills == 1
        check_same(run, undisturbed)


def test_a_coordinator_on_another_machine_needs_the_brokers_streams_only() -> None:
    run = KilledRun(**CASES["FedAdam"])
    run.run(until=lambda: run.version == 3)
    run.broker.crash(run.coordinator_transport)
    other = run_to_end(**CASES["FedAdam"])
    run.start_coordinator()
    run.run()

    check_same(run, other)
