"""The record of a run: one note per version, the best and the final model, the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.aggregator.convergence import Evaluation
from coordinator.events import (
    ClientLost,
    DrawMade,
    Evaluate,
    EvaluationFinished,
    Event,
    Finish,
    GroupSummed,
    KeepModel,
    RateLowered,
    StepTaken,
    Tell,
    Tick,
    TookOffice,
)
from coordinator.kept import Kept, SchedulerMemory
from coordinator.status.record import RunRecord
from shared.codec.validation import Spread, validation_slots
from shared.effects import Note
from shared.modellog.chain import GENESIS
from shared.modellog.reader import weights_digest
from shared.wire.log_messages import ChangeEntry, DrawEntry
from tests.builders import tiny_plan
from tests.coordinator.builders import Desk


class Run:
    """A record of a run of `rounds` versions; every round takes 4 seconds and moves 100 bytes up, 10 down."""

    def __init__(self, rounds: int = 3, **fields: Any) -> None:
        self.desk = Desk(tiny_plan(round={"rounds": rounds}, **fields))
        self.traffic = (0, 0)
        self.record = RunRecord(self.desk.plan, self.desk.log, lambda: self.traffic)

    def handle(self, event: Event, now: float = 0.0) -> tuple[Any, ...]:
        return self.record.handle(event, now)

    def change(self, started: float, **validation: Spread) -> tuple[Any, ...]:
        """Draw at +1 s, step at +3 s, read back at +4 s; `validation` is what the clients measured."""
        chain = self.desk.chain
        draw = self.desk.append(
            DrawEntry(parent=GENESIS, term=0, version=chain.version, groups=3, offers=3, root=bytes(32))
        )
        assert self.handle(DrawMade(draw.accepted.digest, chain.version, 3, ("a", "b", "c")), started + 1) == ()
        weights = np.full(8, chain.version + 1.0, np.float32)
        step = StepTaken(chain.version + 1, 2, 3, 0, 1, 0.5, {"loss": 2.0}, validation)
        assert self.handle(step, started + 3) == ()
        self.traffic = (self.traffic[0] + 100, self.traffic[1] + 10)
        entry = ChangeEntry(
            parent=GENESIS,
            term=0,
            version=chain.version + 1,
            draw=draw.accepted.digest,
            groups=(0,),
            weights_sha256=weights_digest(weights),
            clipping_norm=0.5,
            coordinates="all",
        )
        return self.handle(self.desk.append(entry, weights, weights), started + 4)

    def evaluated(self, version: int, accuracy: float | None, loss: float = 1.0) -> EvaluationFinished:
        metrics = {} if accuracy is None else {"accuracy": accuracy}
        evaluation = Evaluation(version=version, loss=loss, metrics=metrics)
        return EvaluationFinished(version, np.full(8, version, np.float32), evaluation)


def test_a_change_is_evaluated_and_then_reported() -> None:
    run = Run()
    assert run.handle(TookOffice(), 10.0) == ()
    run.handle(ClientLost("c", 0, "offer"))
    run.handle(ClientLost("c", 0, "joining"))

    (evaluate,) = run.change(started=10.0)
    assert isinstance(evaluate, Evaluate)
    assert evaluate.version == 1
    np.testing.assert_array_equal(evaluate.weights, np.ones(8))
    keep, report = run.handle(run.evaluated(1, 0.75))
    assert (keep.name, keep.version) == ("best", 1)
    assert isinstance(report, Note)
    assert report.fields == {
        "version": 1,
        "seconds": 4.0,
        "seconds_offers": 1.0,
        "seconds_sums": 2.0,
        "seconds_log": 1.0,
        "seconds_in_groups": {},
        "accuracy": 0.75,
        "loss": 1.0,
        "metrics": {"accuracy": 0.75},
        "train_metrics": {"loss": 2.0},
        "validation": {},
        "clients_counted": 2,
        "clients_lost": 1,
        "groups": 3,
        "groups_rejected": 0,
        "groups_given_up": 1,
        "recovered": 0,
        "bytes_up": 100,
        "bytes_down": 10,
        "clipping_norm": 0.5,
        "epsilon_max": None,
        "epsilon_mean": None,
    }


def test_the_time_of_the_groups_is_split_by_what_they_waited_for() -> None:
    run = Run()
    run.handle(TookOffice(), 0.0)
    for late in (0.0, 0.5):
        began = {"shares": 1.25 + late, "words": 1.5 + late, "summed": 2.0 + late}
        run.handle(GroupSummed(bytes(32), 0, ("a",), (), (), (), np.zeros(1, np.uint16), began=began))
    run.change(0.0)

    *_, report = run.handle(run.evaluated(1, 0.75))
    assert report.fields["seconds_in_groups"] == {"job": 0.5, "shares": 0.25, "words": 0.5}


def watching(**steering: Any) -> Run:
    """A run of 9 versions that is steered by its clients."""
    return Run(
        rounds=9,
        evaluation={"client_share": 0.2},
        metric_bounds=validation_slots({"loss": 5.0}),
        steering={"watch": "clients", **steering},
    )


def measured(accuracy: float, loss: float = 1.0) -> dict[str, Spread]:
    return {
        "accuracy": Spread(mean=accuracy, deviation=0.1, share=0.75),
        "loss": Spread(mean=loss, deviation=0.2, share=0.5),
    }


def test_what_clients_measured_is_reported_with_the_version_that_they_measured() -> None:
    run = Run()
    run.handle(TookOffice(), 0.0)
    run.change(0.0, **measured(0.5))

    *_, report = run.handle(run.evaluated(1, 0.75))
    assert report.fields["validation"] == {
        "version": 0,
        "share": 0.75,
        "accuracy": 0.5,
        "accuracy_std": 0.1,
        "loss": 1.0,
        "loss_std": 0.2,
    }


def test_where_clients_are_watched_the_best_is_the_version_that_they_measured() -> None:
    run = watching()
    run.handle(TookOffice(), 0.0)
    kept = []
    # Held-out accuracy rises all the time, and is not asked. At equal accuracy the lower loss is better.
    for version, (accuracy, loss) in enumerate([(0.1, 2.0), (0.6, 1.0), (0.6, 0.9), (0.5, 0.1)], 1):
        run.change(4.0 * version, **measured(accuracy, loss))
        effects = run.handle(run.evaluated(version, version / 10))
        kept += [(effect.version, effect.weights[0]) for effect in effects if isinstance(effect, KeepModel)]
    assert kept == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_where_clients_are_watched_they_stop_the_run_and_silence_starts_nothing() -> None:
    run = watching(stop_patience=2)
    run.handle(TookOffice(), 0.0)
    ended = []
    for version, figures in enumerate([measured(0.5), {}, measured(0.4), measured(0.3)], 1):
        run.change(4.0 * version, **figures)
        effects = run.handle(EvaluationFinished(version, np.zeros(8, np.float32), None))
        ended.append([effect for effect in effects if isinstance(effect, Finish)])
    assert ended == [[], [], [Finish("no better version for 2 versions; the best is 0")], [Finish(ended[3][0].reason)]]


def summed(*unheard: str) -> GroupSummed:
    words = np.zeros(1, np.uint16)
    return GroupSummed(bytes(32), 0, ("a", "b", "c"), ("d",), unheard, (), words)


def test_a_client_counts_as_recovered_when_it_is_lost_and_its_sum_was_opened_all_the_same() -> None:
    run = Run()
    run.handle(TookOffice(), 0.0)
    run.handle(summed("c", "d"))
    run.handle(ClientLost("d", 0, "shares"))
    run.handle(ClientLost("d", 0, "shares"))
    run.handle(ClientLost("x", 0, "training"))
    # Late, but there: silence in one group is no loss.
    run.change(started=0.0)
    (figures,) = (note.fields for note in run.handle(run.evaluated(1, 0.5)) if isinstance(note, Note))

    assert (figures["clients_lost"], figures["recovered"]) == (2, 1)


def test_a_loss_of_another_version_recovers_nothing() -> None:
    run = Run()
    run.handle(TookOffice(), 0.0)
    run.handle(summed("d"))
    run.change(started=0.0)
    run.handle(ClientLost("d", 1, "training"))
    run.change(started=4.0)
    reports = [
        note.fields
        for version in (1, 2)
        for note in run.handle(run.evaluated(version, 0.5))
        if isinstance(note, Note) and note.event == "round_finished"
    ]

    assert [(f["clients_lost"], f["recovered"]) for f in reports] == [(0, 0), (1, 0)]


def test_rounds_are_counted_apart_although_their_evaluations_overlap() -> None:
    run = Run()
    run.handle(TookOffice(), 0.0)
    run.change(started=0.0)
    run.handle(ClientLost("a", 1, "offer"))
    run.change(started=4.0)

    second = run.handle(run.evaluated(2, 0.5))[-1]
    first = run.handle(run.evaluated(1, 0.4))[-1]
    assert [(note.fields["version"], note.fields["clients_lost"]) for note in (first, second)] == [(1, 0), (2, 1)]
    assert [note.fields["bytes_up"] for note in (first, second)] == [100, 100]
    assert [note.fields["seconds"] for note in (first, second)] == [4.0, 4.0]


def test_a_version_that_was_passed_over_is_reported_without_figures() -> None:
    run = Run()
    run.handle(TookOffice(), 0.0)
    run.change(started=0.0)

    (report,) = run.handle(EvaluationFinished(1, np.zeros(8, np.float32), None))
    assert (report.fields["accuracy"], report.fields["loss"], report.fields["metrics"]) == (None, None, {})


def test_the_best_version_is_kept_whatever_order_evaluations_finish_in() -> None:
    run = Run(rounds=9)
    run.handle(TookOffice(), 0.0)

    kept = [
        effect.version
        for version, accuracy in ((2, 0.5), (1, 0.4), (3, 0.9), (4, 0.9), (5, 0.8))
        for effect in run.handle(run.evaluated(version, accuracy))
        if isinstance(effect, KeepModel)
    ]
    assert kept == [2, 3]


def test_the_last_version_ends_the_run() -> None:
    run = Run(rounds=2)
    run.handle(TookOffice(), 0.0)
    run.change(started=0.0)
    assert Finish() not in run.handle(run.evaluated(1, 0.5))

    run.change(started=4.0)
    effects = run.handle(run.evaluated(2, 0.4))
    assert [effect.name for effect in effects if isinstance(effect, KeepModel)] == ["final"]
    assert effects[-1] == Finish()


def test_a_plateau_is_told_and_an_early_stop_keeps_the_newest_version() -> None:
    run = Run(rounds=9, steering={"plateau_patience": 1, "stop_patience": 2})
    run.handle(TookOffice(), 0.0)
    for version in range(4):
        run.change(started=4.0 * version)
    run.handle(run.evaluated(1, 0.5))

    *_, lowered, tell = run.handle(run.evaluated(2, 0.4))
    assert (lowered.event, lowered.fields) == ("rate_lowered", {"version": 2, "factor": 0.5})
    assert tell == Tell(RateLowered(0.5))
    *_, said, final, finish = run.handle(run.evaluated(3, 0.4))
    reason = "no better version for 2 versions; the best is 1"
    assert (said.event, said.fields) == ("stopped_early", {"version": 3, "reason": reason})
    assert (final.name, final.version, final.weights.tolist()) == ("final", 4, [4.0] * 8)
    assert finish == Finish(reason)


def test_a_federation_that_is_done_already_only_writes_its_model() -> None:
    run = Run(rounds=1)
    run.change(started=0.0)

    (evaluate,) = run.handle(TookOffice(), 0.0)
    assert (evaluate.version, evaluate.weights.tolist()) == (1, [1.0] * 8)
    _, final, finish = run.handle(run.evaluated(1, 0.5), 1.0)
    assert (final.name, final.version) == ("final", 1)
    np.testing.assert_array_equal(final.weights, np.ones(8))
    assert finish == Finish()


def successor(run: Run, **memory: Any) -> RunRecord:
    """The record of another session, which has read the same log."""
    record = RunRecord(run.desk.plan, run.desk.log, lambda: run.traffic)
    chain = run.desk.chain
    record.observe(
        ChangeEntry(
            parent=GENESIS,
            term=0,
            version=chain.version,
            draw=bytes(32),
            groups=(0,),
            weights_sha256=chain.weights_sha256,
            clipping_norm=0.5,
            coordinates="all",
        )
    )
    run.record = record
    return record


def test_the_best_version_and_the_plateau_outlive_a_session() -> None:
    run = Run(rounds=9, steering={"plateau_patience": 2, "rate_drop": 0.1})
    run.handle(TookOffice(), 0.0)
    run.change(0.0)
    assert [e.name for e in run.handle(run.evaluated(1, 0.9)) if isinstance(e, KeepModel)] == ["best"]
    run.change(4.0)
    run.handle(run.evaluated(2, 0.8))
    memory = run.record.keep()
    successor(run)

    assert run.handle(TookOffice(Kept(SchedulerMemory((), (), 30.0), memory, 0)), 8.0) == ()
    run.change(8.0)
    effects = run.handle(run.evaluated(3, 0.85))
    assert not [e for e in effects if isinstance(e, KeepModel)]
    assert Tell(RateLowered(0.1)) in effects


def test_the_version_whose_evaluation_was_lost_with_a_session_is_evaluated_again() -> None:
    run = Run(rounds=9)
    run.handle(TookOffice(), 0.0)
    run.change(0.0)
    memory = run.record.keep()
    successor(run)

    (evaluate,) = run.handle(TookOffice(Kept(SchedulerMemory((), (), 30.0), memory, 0)), 4.0)
    assert (evaluate.version, evaluate.weights.tolist()) == (1, [1.0] * 8)
    (keep,) = run.handle(run.evaluated(1, 0.5))
    assert (keep.name, keep.version) == ("best", 1)


def test_what_clients_measured_is_in_the_record_of_the_step_that_brought_it() -> None:
    run = watching(stop_patience=1)
    run.handle(TookOffice(), 0.0)
    run.change(0.0, loss=Spread(mean=0.5, deviation=0.1, share=1.0))
    run.change(4.0, loss=Spread(mean=0.9, deviation=0.1, share=1.0))

    state = run.record.keep().steering
    assert (state.newest, state.best.best and state.best.best.version) == (1, 0)


def test_draws_are_counted_on_where_the_session_before_stopped() -> None:
    run = Run(rounds=9)
    run.handle(TookOffice(), 0.0)
    run.change(0.0)
    run.handle(DrawMade(bytes(32), 1, 3, ("a", "b", "d")), 5.0)
    memory = run.record.keep()
    successor(run)
    run.handle(TookOffice(Kept(SchedulerMemory((), (), 30.0), memory, 0)), 6.0)
    run.handle(DrawMade(bytes(32), 1, 3, ("a", "b", "d"), resumed=True), 6.0)

    assert run.record.keep().draws == {"a": 2, "b": 2, "c": 1, "d": 1}


def test_what_is_evaluated_and_kept_is_the_average_of_the_versions() -> None:
    run = Run(rounds=2, steering={"ema": 0.75})
    run.handle(TookOffice(), 0.0)
    (first,) = run.change(started=0.0)
    (second,) = run.change(started=4.0)

    average = (0.75 * 1.0 + 2.0) / (0.75 + 1.0)
    assert first.weights.tolist() == [1.0] * 8
    np.testing.assert_allclose(second.weights, average, rtol=1e-6)
    evaluated = EvaluationFinished(2, second.weights, Evaluation(version=2, loss=1.0))
    kept = {effect.name: effect.weights for effect in run.handle(evaluated) if isinstance(effect, KeepModel)}
    assert all(kept[name] is second.weights for name in ("best", "final"))
    assert run.desk.log.weights.tolist() == [2.0] * 8


@pytest.mark.parametrize("event", [Tick(), ClientLost("a", 0, "offer"), DrawMade(bytes(32), 0, 1, ())])
def test_before_office_and_for_other_events_nothing_is_done(event: Event) -> None:
    assert Run().handle(event) == ()
