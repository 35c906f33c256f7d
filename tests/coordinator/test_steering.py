"""Steering: what follows from the evaluations of a run, and the learning rate's way along the versions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest

from coordinator.aggregator.convergence import Evaluation
from coordinator.aggregator.steering import Steering, Verdict, scheduled_rate
from shared.plan_sections import SteeringPlan


def evaluation(version: int, accuracy: float | None, loss: float = 1.0) -> Evaluation:
    return Evaluation(version=version, loss=loss, metrics={} if accuracy is None else {"accuracy": accuracy})


def judge(steering: Steering, accuracies: Sequence[float], first: int = 1) -> list[Verdict]:
    return [steering.judge(evaluation(version, value)) for version, value in enumerate(accuracies, first)]


# ── schedules ──


def test_the_schedules_are_functions_of_the_version() -> None:
    assert {scheduled_rate(SteeringPlan(), version, 10) for version in range(20)} == {1.0}

    cosine = [scheduled_rate(SteeringPlan(schedule="cosine"), version, 10) for version in range(11)]
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[9] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert cosine[10] == cosine[9] > 0
    assert all(later < earlier for earlier, later in pairwise(cosine[:10]))

    step = SteeringPlan(schedule="step", step_every=3, rate_drop=0.1)
    assert [scheduled_rate(step, version, 10) for version in (0, 2, 3, 5, 6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


# ── plateau and early stop ──


def test_without_patience_nothing_follows_but_the_best() -> None:
    verdicts = judge(Steering(SteeringPlan(), 1.0), [0.5, 0.4, 0.6, *[0.1] * 50])
    assert [verdict.best for verdict in verdicts[:3]] == [True, False, True]
    assert set(verdicts[3:]) == {Verdict()}


def test_a_plateau_lowers_the_rate_and_lowers_it_again() -> None:
    steering = Steering(SteeringPlan(plateau_patience=2, rate_drop=0.1), 1.0)
    factors = [verdict.rate_factor for verdict in judge(steering, [0.5, 0.4, 0.4, 0.4, 0.4, 0.6, 0.5, 0.5])]

    assert factors[:2] == [None, None]
    assert factors[2] == pytest.approx(0.1)
    assert factors[3] is None
    assert factors[4] == pytest.approx(0.01)
    assert factors[5:7] == [None, None]
    assert factors[7] == pytest.approx(0.001)


def test_a_run_ends_after_so_many_versions_without_a_better_one() -> None:
    steering = Steering(SteeringPlan(stop_patience=3), 1.0)
    stops = [verdict.stop for verdict in judge(steering, [0.5, 0.6, 0.5, 0.6, 0.59])]

    assert stops[:4] == [""] * 4
    assert stops[4] == "no better version for 3 versions; the best is 2"


def test_equal_accuracy_at_a_lower_loss_is_better() -> None:
    steering = Steering(SteeringPlan(stop_patience=2), 1.0)
    verdicts = [steering.judge(evaluation(version, 0.9, loss=1 / version)) for version in range(1, 8)]
    assert all(verdict.best and not verdict.stop for verdict in verdicts)


def test_without_an_accuracy_the_loss_decides() -> None:
    steering = Steering(SteeringPlan(stop_patience=2), 1.0)
    stops = [steering.judge(evaluation(version, None, loss)).stop for version, loss in enumerate([3.0, 2.0, 2.5, 2.5])]
    assert [bool(stop) for stop in stops] == [False, False, False, True]


def test_a_session_that_begins_late_counts_from_its_first_evaluation() -> None:
    steering = Steering(SteeringPlan(stop_patience=3, plateau_patience=2), 1.0)
    verdicts = judge(steering, [math.nan, math.nan, math.nan, math.nan], first=40)
    assert [bool(verdict.stop) for verdict in verdicts] == [False, False, False, True]
    assert [verdict.rate_factor for verdict in verdicts] == [None, None, 0.5, None]


def test_versions_that_were_passed_over_count_and_late_evaluations_start_nothing() -> None:
    steering = Steering(SteeringPlan(plateau_patience=3, stop_patience=5), 1.0)
    steering.judge(evaluation(1, 0.5))
    assert steering.judge(evaluation(4, 0.4)).rate_factor == 0.5
    assert steering.judge(evaluation(2, 0.4)) == Verdict()
    assert steering.judge(evaluation(3, 0.8)) == Verdict(best=True)
    assert not steering.judge(evaluation(7, 0.4)).stop
    assert steering.judge(evaluation(8, 0.4)).stop


def test_a_model_that_is_not_a_number_never_is_the_best() -> None:
    steering = Steering(SteeringPlan(stop_patience=2), 1.0)
    verdicts = [steering.judge(evaluation(version, None, math.nan)) for version in range(1, 4)]
    assert [(verdict.best, bool(verdict.stop)) for verdict in verdicts] == [(False, False)] * 2 + [(False, True)]


# ── alarms ──


def alarms(accuracies: Sequence[float | None], losses: Sequence[float] | None = None) -> list[str]:
    steering = Steering(SteeringPlan(), 1.0)
    pairs = zip(accuracies, losses or [1.0] * len(accuracies), strict=True)
    return [steering.judge(evaluation(version, *pair)).alarm for version, pair in enumerate(pairs, 1)]


def test_three_falls_in_a_row_are_an_alarm_once() -> None:
    said = alarms([0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.45, 0.44, 0.43, 0.42])
    assert [bool(alarm) for alarm in said] == [False] * 4 + [True] + [False] * 5 + [True]
    assert said[4] == "accuracy has fallen for 3 versions in a row, from 90.00% to 60.00% between versions 2 and 5"


def test_standing_still_is_no_fall() -> None:
    assert not any(alarms([0.9, 0.8, 0.7, 0.7, 0.6, 0.5, 0.6]))
    assert not any(alarms([0.9, 0.8, 0.7]))


def test_a_loss_that_rises_is_an_alarm_where_there_is_no_accuracy() -> None:
    said = alarms([None] * 4, [1.0, 2.0, 3.0, 4.5])
    assert said[3] == "the loss has risen for 3 versions in a row, from 1 to 4.5 between versions 1 and 4"


def test_an_alarm_says_whose_evaluations_it_follows() -> None:
    steering = Steering(SteeringPlan(watch="clients"), 1.0)
    said = [steering.judge(evaluation(version, 0.9 - version / 10)).alarm for version in range(4)]
    assert said[3].startswith("accuracy at the clients has fallen for 3 versions in a row, from 90.00% to 60.00%")


def test_a_loss_that_falls_at_equal_accuracy_is_progress() -> None:
    steering = Steering(SteeringPlan(stop_patience=2), 1.0)
    verdicts = [steering.judge(evaluation(version, 0.9, 1.0 / version)) for version in range(1, 9)]
    assert all(verdict.best and not verdict.stop for verdict in verdicts)


def test_a_clipping_norm_above_three_times_its_start_is_an_alarm_until_it_is_below_again() -> None:
    steering = Steering(SteeringPlan(), 2.0)
    said = [steering.watch_norm(norm) for norm in (2.0, 6.0, 6.1, 7.0, 5.0, 6.5)]
    assert [bool(alarm) for alarm in said] == [False, False, True, False, False, True]
    assert "grown from 2 to 6.1" in said[2]
