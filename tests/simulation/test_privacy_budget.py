"""A budget that is reached in mid-run: who stops, when, and what becomes of the run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from deploy.demo.options import DemoOptions
from shared.plan import Plan
from shared.privacy.charges import RecordCharge
from tests.simulated import notes_of
from worker.budget import Terms
from worker.policy import Policy, PrivacyBudget

CLIENTS = 4
DELTA = 1e-5
SIGMA = 4.0


def epsilon_after(runs: int) -> float:
    """Of full-batch Gaussian runs, by hand: Renyi a/(2 sigma^2) each, and the conversion of Canonne et al. (2020)."""
    orders = np.arange(1.01, 200, 0.01)
    bounds = runs * orders / (2 * SIGMA**2) + np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)
    return float(bounds.min())


@pytest.fixture(autouse=True)
def private(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run costs the same, whatever the plan says."""

    def terms_of(plan: Plan) -> Terms:
        return Terms(charge=RecordCharge(noise_multiplier=SIGMA, sampling_rate=1.0, steps=1), delta=DELTA)

    monkeypatch.setattr("worker.client.terms_of", terms_of)
    monkeypatch.setattr("worker.plan_check.terms_of", terms_of)


def run(budgets: list[float | None], rounds: int, *, requiring: Sequence[str | None] = ()) -> list[Any]:
    """Notes of a run in which client i has budget i."""
    own: dict[str, Any] = {"allow_groups_of_one": True, "min_summed": 1, "max_colluders": 0}
    policies: Iterator[Policy] = iter(
        Policy(**own, privacy_budget=PrivacyBudget(epsilon=budget), require_privacy=required)
        for budget, required in zip_longest(budgets, requiring)
    )

    class Options(DemoOptions):
        @property
        def policy(self) -> Policy:
            return next(policies)

    count = len(budgets)
    options: dict[str, Any] = {
        "clients": count,
        "processes": count,
        "group_size": 1,
        "max_colluders": 0,
        "partition": "iid",
    }
    return list(notes_of(Options(rounds=rounds, robust="mean", **options)))


def between(runs: int) -> float:
    """A budget that allows `runs` of them, and no more."""
    return (epsilon_after(runs) + epsilon_after(runs + 1)) / 2


@pytest.mark.parametrize("runs", [1, 3])
def test_a_client_stops_at_exactly_the_round_that_its_budget_does_not_cover(runs: int) -> None:
    notes = run([between(runs), None, None, None], 5)

    rounds = {note.fields["version"]: note.fields for note in notes if note.event == "round_finished"}
    assert [rounds[version]["clients_counted"] for version in range(1, 6)] == [4] * runs + [3] * (5 - runs)
    (told,) = [note.fields for note in notes if note.event == "client_budget_exhausted"]
    assert told["client"] == "client-001"
    figures = [float(number) for number in re.findall(r"\d+\.\d+", told["reason"])]
    assert figures[:3] == pytest.approx([epsilon_after(runs), epsilon_after(runs + 1), between(runs)], rel=0.01)
    assert notes[-1].fields["reason"] == ""


def test_when_too_few_are_left_the_run_ends_and_keeps_its_model() -> None:
    budgets: list[float | None] = [between(2)] * CLIENTS

    notes = run(budgets, 9)

    assert [note.fields["version"] for note in notes if note.event == "round_finished"] == [1, 2]
    end = notes[-1].fields
    assert end["version"] == 2
    assert "privacy budget of 4 clients is exhausted, 0 are left" in end["reason"]


def test_with_the_budget_of_all_planned_rounds_nobody_ends_early() -> None:
    notes = run([epsilon_after(3) * 1.001] * CLIENTS, 3)

    assert notes[-1].fields["version"] == 3
    assert not [note for note in notes if note.event == "client_budget_exhausted"]


def test_a_plan_without_the_privacy_that_a_client_requires_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.plan_check.terms_of", lambda plan: Terms())
    notes = run([None] * CLIENTS, 2, requiring=[None, None, None, "record"])

    (told,) = [note.fields for note in notes if note.event == "client_policy"]
    assert told["client"] == "client-004"
    assert "policy.require_privacy='record'" in told["reason"]
    assert [note.fields["clients_counted"] for note in notes if note.event == "round_finished"] == [3, 3]
