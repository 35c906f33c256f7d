"""What follows from how good the versions are: the server's learning rate, the end of the run, alarms in words.

    what is seen                                                     what follows
    ───────────────────────────────────────────────────────────────  ──────────────────────────────────────────────
    a version better than all before                                 it is the best; both patiences begin anew
    `plateau_patience` versions since the best or the last lowering  server's learning rate times `rate_drop`
    `stop_patience` versions since the best                          the run ends and says why
    accuracy falls `FALLS_ALARM` evaluations in a row                alarm, once until it rises again
    C is more than `NORM_ALARM` times what the plan began with       alarm, once until it is below again

Better is what `BestVersion` calls better: higher accuracy, else lower loss. A version that was passed over starts
nothing, but its number counts. What is seen lags: the next version is already in the making while one is evaluated, so
a lowered rate applies one or two versions later. The journal keeps what was seen, as of its last record; the newest
version, whose evaluation a coordinator may have taken with it, is evaluated again by its successor.

Evaluations are the coordinator's own, or with `watch` "clients" the means of what clients measured: of a version they
come with the sums of the round that trains on it, so one version later, and of the last one never.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from coordinator.aggregator.convergence import BestVersion, Evaluation
from shared.plan_sections import SteeringPlan

FALLS_ALARM = 3
NORM_ALARM = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from one evaluation: is it the best, the new plateau factor (None: as before), why to stop.

    `alarm` is a sentence for the operator, or empty.
    """

    best: bool = False
    rate_factor: float | None = None
    stop: str = ""
    alarm: str = ""


@dataclass(slots=True)
class SteeringState:
    """What one run has come to; the journal keeps it. Versions count from the first one that was seen."""

    rate_factor: float = 1.0
    best: BestVersion = field(default_factory=BestVersion)
    newest: int = -1
    improved_at: int = -1
    lowered_at: int = -1
    falls_from: Evaluation | None = None
    last: Evaluation | None = None
    falls: int = 0
    norm_is_high: bool = False


@dataclass(slots=True)
class Steering:
    """Follows one run; `clipping_norm` is the plan's C."""

    plan: SteeringPlan
    clipping_norm: float
    state: SteeringState = field(default_factory=SteeringState)

    def judge(self, evaluation: Evaluation) -> Verdict:
        """Take an evaluation into account."""
        best = self.state.best.record(evaluation)
        if best or self.state.newest < 0:
            self.state.improved_at = max(self.state.improved_at, evaluation.version)
        if evaluation.version <= self.state.newest:
            return Verdict(best=best)
        self.state.newest = evaluation.version
        alarm = self._watch_fall(evaluation)
        return Verdict(best=best, rate_factor=self._lowered(), stop=self._reason_to_stop(), alarm=alarm)

    def watch_norm(self, clipping_norm: float) -> str:
        """Take the next round's C into account; return an alarm, or nothing."""
        was_high, self.state.norm_is_high = self.state.norm_is_high, clipping_norm > NORM_ALARM * self.clipping_norm
        if was_high or not self.state.norm_is_high:
            return ""
        return (
            f"updates have become long: the clipping norm has grown from {self.clipping_norm:.3g} to "
            f"{clipping_norm:.3g}; training diverges, or codec.clipping_norm begins too low"
        )

    def _watch_fall(self, evaluation: Evaluation) -> str:
        if self.state.last is not None and _worse(evaluation, self.state.last):
            self.state.falls += 1
        else:
            self.state.falls, self.state.falls_from = 0, evaluation
        self.state.last, first = evaluation, self.state.falls_from
        if self.state.falls != FALLS_ALARM or first is None:
            return ""
        where = " at the clients" if self.plan.watch == "clients" else ""
        what = f"for {FALLS_ALARM} versions in a row"
        span = f"between versions {first.version} and {evaluation.version}"
        if evaluation.accuracy is not None and first.accuracy is not None:
            return f"accuracy{where} has fallen {what}, from {first.accuracy:.2%} to {evaluation.accuracy:.2%} {span}"
        return f"the loss{where} has risen {what}, from {first.loss:.4g} to {evaluation.loss:.4g} {span}"

    def _lowered(self) -> float | None:
        patience = self.plan.plateau_patience
        if patience is None or self.state.newest - max(self.state.improved_at, self.state.lowered_at) < patience:
            return None
        self.state.lowered_at = self.state.newest
        self.state.rate_factor *= self.plan.rate_drop
        return self.state.rate_factor

    def _reason_to_stop(self) -> str:
        patience = self.plan.stop_patience
        if patience is None or self.state.newest - self.state.improved_at < patience:
            return ""
        improved_at = self.state.improved_at
        return f"no better version for {self.state.newest - improved_at} versions; the best is {improved_at}"


def _worse(evaluation: Evaluation, than: Evaluation) -> bool:
    if evaluation.accuracy is not None and than.accuracy is not None:
        return evaluation.accuracy < than.accuracy
    return evaluation.loss > than.loss


def scheduled_rate(plan: SteeringPlan, version: int, rounds: int) -> float:
    """Return the factor of the server's learning rate in the step that leads from `version` to the next.

    Args:
        plan: says along which curve.
        version: 0 <= version; from `rounds` on it counts as the last.
        rounds: how many versions are planned.

    Returns:
        A factor in (0, 1], 1 at version 0.

    Reference: Loshchilov and Hutter, SGDR (2017), equation 5, without restarts and with eta_min = 0.
    """
    match plan.schedule:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(version, rounds - 1) / rounds))
        case "step":
            assert plan.step_every is not None
            return plan.rate_drop ** (version // plan.step_every)
        case _:
            return 1.0
