"""The best version is found in whatever order evaluations finish."""

from __future__ import annotations

import itertools
import math

from coordinator.aggregator.convergence import BestVersion, Evaluation
from shared.identity import ModelVersion


def evaluation(version: int, loss: float, accuracy: float | None = None) -> Evaluation:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return Evaluation(version=ModelVersion(version), loss=loss, metrics=metrics)


def best_of(*evaluations: Evaluation) -> set[int | None]:
    """The best version for every order of arrival."""
    found = set()
    for order in itertools.permutations(evaluations):
        best = BestVersion()
        for each in order:
            best.record(each)
        found.add(best.best.version if best.best else None)
    return found


def test_accuracy_decides_then_loss_then_age() -> None:
    assert best_of(evaluation(1, 0.2, 0.90), evaluation(2, 0.9, 0.95), evaluation(3, 0.1, 0.93)) == {2}
    assert best_of(evaluation(1, 0.5, 0.9), evaluation(2, 0.4, 0.9), evaluation(3, 0.6, 0.9)) == {2}
    assert best_of(evaluation(3, 0.5, 0.9), evaluation(2, 0.5, 0.9), evaluation(4, 0.5, 0.9)) == {2}


def test_without_accuracy_loss_decides() -> None:
    assert best_of(evaluation(1, 0.5), evaluation(2, 0.3), evaluation(3, 0.4)) == {2}


def test_a_loss_that_is_not_a_number_is_never_best() -> None:
    assert best_of(evaluation(1, math.nan, 1.0), evaluation(2, 3.0, 0.1)) == {2}
    assert best_of(evaluation(1, math.nan)) == {None}
    assert best_of(evaluation(1, 0.1, math.nan), evaluation(2, 0.9, 0.5)) == {2}


def test_record_says_whether_the_best_changed() -> None:
    best = BestVersion()

    assert [best.record(evaluation(version, loss)) for version, loss in ((1, 0.5), (2, 0.6), (3, 0.4), (3, 0.4))] == [
        True,
        False,
        True,
        False,
    ]
    assert evaluation(1, 0.5, 0.9).accuracy == 0.9
