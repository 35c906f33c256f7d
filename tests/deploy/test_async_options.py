"""What the demonstration's options of asynchronous mode become, and which of them are refused."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.settings import plan_of
from deploy.demo.options import DemoOptions, settings_from
from shared.errors import PlanError
from shared.plan import Plan
from shared.workloads.loading import load_workload
from tests.builders import make_federation


def plan(**given: Any) -> Plan:
    options = DemoOptions(**given)
    clients = tuple(f"client-{number:03}" for number in range(1, options.clients + 1))
    settings = settings_from(options.coordinator_environment(clients))
    workload = load_workload(settings.workload, settings.workload_options)
    return plan_of(settings, make_federation(options.clients).directory, workload)


def test_the_options_reach_the_plan() -> None:
    rounds = plan(mode="async", pool_size=16, max_staleness=7, cooldown=3).round
    assert (rounds.mode, rounds.pool_size, rounds.max_staleness, rounds.cooldown) == ("async", 16, 7, 3)
    assert plan().round.mode == "sync"


@pytest.mark.parametrize(
    "given", [{"pool_size": 16}, {"mode": "async", "pool_size": 4}, {"mode": "async", "selection": "restricted"}]
)
def test_options_that_would_do_nothing_or_cannot_hold_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        plan(**given)
