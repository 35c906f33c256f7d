"""A fixed set of seeds, the seeds that find planted bugs, and the simulation's own promise: one seed, one history."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.__main__ import parse_seeds, report
from tests.sim.coverage import FAULTS, Coverage
from tests.sim.planted import PLANTED
from tests.sim.world import Outcome, run_seed

ROOT = Path(__file__).parents[2]
SEEDS = 60
AT_ONCE = 10

FOUND_BY = {
    "acknowledge before saving": 0,
    "reuse of offer keys": 2,
    "no parent check": 1,
    "no agreement round": 2,
    "spend after sending": 0,
}
"""For each planted bug a seed that finds it."""

SEARCHED = 40
"""What a seed leads to changes with the code. If one does not find its bug any more, the next ones are tried."""


ONCE_VIOLATED = {
    566: "a coordinator that was cut off turned away, for good, offers of versions that its log did not show yet",
}
"""Seeds that have found something in Comitia itself, and what."""


@pytest.fixture(scope="module")
def covered() -> Coverage:
    """What the seeds of this module cover together."""
    return Coverage()


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_nothing_is_violated(first: int, covered: Coverage) -> None:
    failures = []
    for seed in range(first, first + AT_ONCE):
        outcome = run_seed(seed)
        covered.add(outcome.coverage)
        failures += [outcome] if outcome.failure else []

    assert not failures, "\n".join(report([outcome.seed for outcome in failures], Coverage(), failures))


@pytest.mark.parametrize("seed", ONCE_VIOLATED)
def test_what_was_found_once_is_mended(seed: int) -> None:
    outcome = run_seed(seed)
    assert not outcome.failure, "\n".join(report([seed], Coverage(), [outcome]))


def test_these_seeds_go_through_every_row_and_see_every_fault(covered: Coverage) -> None:
    if covered.seeds < SEEDS:
        pytest.fail("this test looks at what the others of this module have covered: run them together")
    assert covered.missed_rows == []
    assert [fault for fault in FAULTS if not covered.faults[fault]] == []
    assert covered.seeds_of_five >= SEEDS / 2


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    seed, found = _search(bug)

    assert found.failure.startswith("Violation: ")
    assert run_seed(seed).failure == ""


def _search(bug: str) -> tuple[int, Outcome]:
    for seed in (FOUND_BY[bug], *range(SEARCHED)):
        with PLANTED[bug]():
            outcome = run_seed(seed)
        if outcome.failure:
            return seed, outcome
    raise AssertionError(f"no seed up to {SEARCHED} finds this bug: {bug}")


def test_one_seed_has_one_history_also_in_another_process() -> None:
    digests = [run_seed(seed).digest for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]

    code = "from tests.sim.world import run_seed; print(run_seed(3).digest)"
    # Sets of names have another order there.
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == digests[0]


def test_seeds_are_numbers_and_ranges() -> None:
    assert list(parse_seeds("7, 10-12,3")) == [7, 10, 11, 12, 3]
    with pytest.raises(Exception, match="'x' is neither"):
        list(parse_seeds("x"))


def test_a_failing_seed_is_reported_with_its_trace_and_how_to_see_it_again() -> None:
    seed, outcome = _search("spend after sending")

    text = "\n".join(report([seed], outcome.coverage, [outcome]))
    assert f"again: make sim SEEDS={seed}\n" in text
    assert "coordinator-a starts" in text
    assert f"seed {seed} FAILED: Violation: " in text
    assert len(outcome.trace) <= 400
