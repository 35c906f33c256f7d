"""What a run looks like from outside: one record per version, the best version, and when the run is over.

A client counts as recovered when it is lost, and the sum of the group that it was lost in was opened all the same.
It shows every evaluation to the steering, and tells the others what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from coordinator.aggregator.averaging import WeightAverage
from coordinator.aggregator.convergence import Evaluation
from coordinator.aggregator.steering import Steering, Verdict
from coordinator.events import (
    ClientLost,
    CoordinatorEffect,
    DrawMade,
    EntryAccepted,
    Evaluate,
    EvaluationFinished,
    Event,
    Finish,
    GroupSummed,
    KeepModel,
    RateLowered,
    RunStopped,
    StepTaken,
    Tell,
    TookOffice,
)
from coordinator.kept import RunMemory
from coordinator.status.spending import Spending
from shared.effects import Note, note
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.wire.log_messages import ChangeEntry, Entry, SnapshotEntry


@dataclass(slots=True)
class RoundRecord:
    """One version in the making. Times are seconds on the coordinator's clock.

    `weights` are those of the version before, (d,) float32, where the clients' figures of it are watched; `began` says
    of each sum that was made here when its states began. `verdict` is what follows from those figures (`watched`).
    """

    started_at: float
    bytes_up: int
    bytes_down: int
    drawn_at: float = 0.0
    stepped_at: float = 0.0
    finished_at: float = 0.0
    began: list[dict[str, float]] = field(default_factory=list)
    step: StepTaken | None = None
    weights: np.ndarray | None = None
    watched: EvaluationFinished | None = None
    verdict: Verdict = field(default_factory=Verdict)
    clients_lost: set[str] = field(default_factory=set)
    recovered: set[str] = field(default_factory=set)
    spent: dict[str, float | None] = field(default_factory=dict)


class RunRecord:
    """Follows the other machines and says what came of each version; writes nothing to the protocol."""

    def __init__(self, plan: Plan, log: LogReader, traffic: Callable[[], tuple[int, int]]) -> None:
        """
        Args:
            plan: the federation's plan.
            log: the coordinator's own reader.
            traffic: bytes received from and published to the broker so far.
        """
        self._plan = plan
        self._log = log
        self._traffic = traffic
        self._current: RoundRecord | None = None
        self._finished: dict[int, RoundRecord] = {}
        self._watches_clients = plan.steering.watch == "clients"
        self._steering = Steering(plan.steering, plan.codec.clipping_norm)
        self._average = WeightAverage(plan.steering.ema)
        self._stopped = ""
        self._over = False
        self._unheard: dict[str, int] = {}
        self._spending = Spending(plan)

    def observe(self, entry: Entry) -> None:
        """An entry was accepted, be it before this session is in office: the average is of all versions of the log."""
        begins = isinstance(entry, SnapshotEntry) and entry.version > 0 and self._average.weights is None
        if begins or isinstance(entry, ChangeEntry):
            self._average.add(self._log.weights)

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match event:
            case TookOffice(kept):
                return tuple(self._begin(None if kept is None else kept.run, now))
            case DrawMade() if self._current:
                self._current.drawn_at = now
                # Who is in a draw of the session before has been counted by it.
                self._spending.drawn(() if event.resumed else event.clients)
            case StepTaken() if self._current:
                self._current.step, self._current.stepped_at = event, now
                self._judge_clients(self._current)
                alarm = self._steering.watch_norm(event.clipping_norm)
                return (note("clipping_norm_alarm", "warning", text=alarm),) if alarm else ()
            case GroupSummed() if self._log.chain:
                if self._current and event.began:
                    self._current.began.append(event.began)
                self._unheard |= dict.fromkeys(event.unheard, self._log.chain.version)
            case ClientLost() if self._current:
                self._current.clients_lost.add(event.client)
                if self._unheard.get(event.client) == event.version:
                    self._current.recovered.add(event.client)
            case EntryAccepted(accepted) if isinstance(accepted.entry, ChangeEntry):
                return tuple(self._on_change(accepted.entry, now))
            case EvaluationFinished():
                return tuple(self._on_evaluation(event))
            case RunStopped(reason):
                self._stopped = self._stopped or reason
                return tuple(self._maybe_stop())
            case _:
                pass
        return ()

    def keep(self) -> RunMemory:
        """What a successor must know besides the log."""
        return RunMemory(self._steering.state, self._spending.before, self._spending.draws)

    def _begin(self, memory: RunMemory | None, now: float) -> Iterator[CoordinatorEffect]:
        self._current = self._open_record(now)
        chain = self._log.chain
        assert chain is not None
        if memory is None:
            self._spending.continue_from(chain.version, {})
        else:
            self._steering.state = memory.steering
            self._spending.continue_from(memory.versions_before, memory.draws)
        if (
            self._average.weights is not None
            and not self._watches_clients
            and self._steering.state.newest < chain.version
        ):
            # The session before has taken this evaluation with it, and may not have heard of it.
            yield Evaluate(chain.version, self._average.weights)
        elif chain.version >= self._plan.round.rounds:
            # The session before may have ended between the last version and its file.
            yield from self._finish("")

    def _judge_clients(self, record: RoundRecord) -> None:
        """At the step, so that the record of its entry holds what follows."""
        record.watched = _from_clients(record) if self._watches_clients else None
        if record.watched is not None and record.watched.evaluation is not None:
            record.verdict = self._steering.judge(record.watched.evaluation)

    def _on_change(self, change: ChangeEntry, now: float) -> Iterator[CoordinatorEffect]:
        record, self._current = self._current, self._open_record(now)
        if record is not None:
            record.finished_at, record.spent = now, self._spending.figures()
            record.bytes_up = self._current.bytes_up - record.bytes_up
            record.bytes_down = self._current.bytes_down - record.bytes_down
            self._finished[change.version] = record
        self.observe(change)
        assert self._average.weights is not None
        yield Evaluate(change.version, self._average.weights)

    def _open_record(self, now: float) -> RoundRecord:
        up, down = self._traffic()
        return RoundRecord(now, up, down, weights=self._log.weights if self._watches_clients else None)

    def _on_evaluation(self, event: EvaluationFinished) -> Iterator[CoordinatorEffect]:
        record = self._finished.pop(event.version, None)
        if self._watches_clients:
            watched, verdict = (None, Verdict()) if record is None else (record.watched, record.verdict)
        else:
            watched, verdict = event, Verdict() if event.evaluation is None else self._steering.judge(event.evaluation)
        if verdict.best and watched is not None:
            yield KeepModel("best", watched.version, watched.weights)
        if record is not None and record.step is not None:
            yield Note("round_finished", fields=_figures(record, record.step, event.evaluation))
        if verdict.alarm:
            yield note("accuracy_alarm", "warning", text=verdict.alarm)
        if event.version >= self._plan.round.rounds:
            yield from self._finish("")
        elif self._stopped:
            yield from self._maybe_stop()
        elif verdict.stop:
            yield note("stopped_early", version=event.version, reason=verdict.stop)
            yield from self._finish(verdict.stop)
        elif verdict.rate_factor is not None:
            yield note("rate_lowered", version=event.version, factor=verdict.rate_factor)
            yield Tell(RateLowered(verdict.rate_factor))

    def _maybe_stop(self) -> Iterator[CoordinatorEffect]:
        """End before the last round, when nothing is being evaluated any more."""
        if self._finished or self._over:
            return
        assert self._log.chain is not None
        yield note("stopped_early", version=self._log.chain.version, reason=self._stopped)
        yield from self._finish(self._stopped)

    def _finish(self, reason: str) -> Iterator[CoordinatorEffect]:
        chain = self._log.chain
        assert chain is not None
        # A run that is stopped before its first version ends with what it began with.
        weights = self._log.weights if self._average.weights is None else self._average.weights
        self._over = True
        yield KeepModel("final", chain.version, weights)
        yield Finish(reason)


def _from_clients(record: RoundRecord) -> EvaluationFinished | None:
    """What the clients of a round say of the version that they trained on; None if nobody measured its loss."""
    if record.step is None or record.weights is None or "loss" not in record.step.validation:
        return None
    metrics = {name: spread.mean for name, spread in record.step.validation.items()}
    version = record.step.version - 1
    return EvaluationFinished(
        version, record.weights, Evaluation(version=version, loss=metrics.pop("loss"), metrics=metrics)
    )


def _validation(step: StepTaken) -> dict[str, object]:
    """What clients measured, for the report: of which version, means, deviations, and for which share of weight."""
    if not step.validation:
        return {}
    figures: dict[str, object] = {
        "version": step.version - 1,
        "share": max(spread.share for spread in step.validation.values()),
    }
    for name, spread in step.validation.items():
        figures |= {name: spread.mean, f"{name}_std": spread.deviation}
    return figures


def _in_groups(record: RoundRecord) -> dict[str, float]:
    """How long a group took from the draw to its first question (`job`), and then in each state: means over groups."""
    times = [[record.drawn_at, *began.values()] for began in record.began]
    names = ("job", *record.began[0]) if times else ()
    return {name: sum(one[at + 1] - one[at] for one in times) / len(times) for at, name in enumerate(names[:-1])}


def _figures(record: RoundRecord, step: StepTaken, evaluation: Evaluation | None) -> dict[str, object]:
    return {
        "version": step.version,
        "seconds": record.finished_at - record.started_at,
        "seconds_offers": record.drawn_at - record.started_at,
        "seconds_sums": record.stepped_at - record.drawn_at,
        "seconds_log": record.finished_at - record.stepped_at,
        "seconds_in_groups": _in_groups(record),
        "accuracy": None if evaluation is None else evaluation.accuracy,
        "loss": None if evaluation is None else evaluation.loss,
        "metrics": {} if evaluation is None else dict(evaluation.metrics),
        "train_metrics": step.train_metrics,
        "validation": _validation(step),
        "clients_counted": step.clients_counted,
        "clients_lost": len(record.clients_lost),
        "groups": step.groups,
        "groups_rejected": step.groups_rejected,
        "groups_given_up": step.groups_given_up,
        "recovered": len(record.recovered),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "clipping_norm": step.clipping_norm,
        **record.spent,
    }
