"""How good is the model, and which version was the best?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.identity import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation says of one model version. `metrics` may hold "accuracy"; higher is better for it."""

    version: ModelVersion
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, if the workload measures one."""
        return self.metrics.get("accuracy")


@dataclass(slots=True)
class BestVersion:
    """Remembers the best evaluation, in whatever order evaluations finish.

    Better is the higher accuracy, else the lower loss, else the earlier version.
    """

    best: Evaluation | None = None

    def record(self, evaluation: Evaluation) -> bool:
        """Take an evaluation into account; return whether it is the best one now. A loss of NaN never is."""
        if math.isnan(evaluation.loss) or (self.best is not None and _rank(evaluation) >= _rank(self.best)):
            return False
        self.best = evaluation
        return True


def _rank(evaluation: Evaluation) -> tuple[float, float, int]:
    accuracy = evaluation.accuracy
    worst_first = math.inf if accuracy is None or math.isnan(accuracy) else -accuracy
    return worst_first, evaluation.loss, evaluation.version
