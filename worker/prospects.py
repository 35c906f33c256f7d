"""May a finished update still be sent? What is looked at before a group is kept waiting for it."""

from __future__ import annotations

import math

from shared.codec.quantize import l2_norm
from shared.modellog.chain import ChainState
from shared.plan import Plan
from worker.events import TrainingFinished
from worker.stored_update import UpdateMeta


def has_passed(update: UpdateMeta, chain: ChainState) -> bool:
    """Whether no draw will take this update any more. A log that is still being read may not have reached it yet."""
    return chain.version >= update.task.version and chain.head_of(update.task.version) != update.trained_head


def problem_of(outcome: TrainingFinished, plan: Plan) -> str:
    """Why an update can never be sent, empty if it can: found out here, it keeps no group waiting."""
    if not math.isfinite(l2_norm(outcome.values)):
        return "the update is not finite; a smaller learning rate or cleaner data would help"
    missing = [name for name in plan.metric_bounds if not math.isfinite(outcome.metrics.get(name, math.nan))]
    return f"no finite number for the metrics {', '.join(missing)}, which the plan asks for" if missing else ""
