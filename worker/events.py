"""What happens to a client, and what its machine may ask of the worker process that serves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared.effects import Effect, Receipt
from shared.privacy.charges import Charge
from shared.wire.group_messages import GroupMessage
from shared.wire.messages import Task
from worker.stored_update import TaskId, UpdateId, UpdateMeta


@dataclass(frozen=True, slots=True)
class TaskArrived:
    """A verified task from the client's own queue: whoever receives it serves this client."""

    task: Task
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class LogMoved:
    """The worker's log reader accepted at least one entry."""


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """A training run ended; `values` is the update, float32 (d,), owned by the receiver."""

    task: TaskId
    values: np.ndarray
    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """A training run raised; the reason is one line, which the coordinator is told.

    `detail` is for the worker's own log, if that says more: what foreign code raises may quote a record.
    """

    task: TaskId
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class UpdateSaved:
    """The finished update is on the disk under this counter."""

    update_id: UpdateId


@dataclass(frozen=True, slots=True)
class CounterRaised:
    """A higher counter is on the disk."""

    counter: int


@dataclass(frozen=True, slots=True)
class GroupMessageArrived:
    """A verified message of a summing stage to this client."""

    message: GroupMessage


@dataclass(frozen=True, slots=True)
class UpdateSpent:
    """The spent mark is on the disk, which raised the counter: the words may leave."""

    counter: int


@dataclass(frozen=True, slots=True)
class RunCharged:
    """The charge of a failed run is on the disk, which raised the counter: the failure may be told."""

    counter: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The plan in the log is not one that this worker can serve, or will (`by_policy`); the reason is one line."""

    reason: str
    by_policy: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """The process is to end: take nothing new, and leave as soon as no group may be waiting for us (or `at_once`)."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class HandOver:
    """Another process is to serve this client: leave as with `Drain`, but say nothing, since the client stays."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """The operator takes this client out for the time being: as `Drain`, also for one that was to be handed over."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    TaskArrived
    | LogMoved
    | TrainingFinished
    | TrainingFailed
    | UpdateSaved
    | CounterRaised
    | GroupMessageArrived
    | UpdateSpent
    | RunCharged
    | Mismatch
    | Drain
    | HandOver
    | Leave
    | Tick
)


@dataclass(frozen=True, slots=True)
class FollowLog:
    """Read the model log from this offset on, unless it is being read already."""

    offset: int


@dataclass(frozen=True, slots=True)
class Train:
    """Start training on the present weights (float32 (d,), never written to).

    `coordinates` holds the positions that training may move, if the plan restricts it to those of the round.
    """

    task: TaskId
    weights: np.ndarray
    coordinates: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class StopTraining:
    """Give the present run up; its result will not be used."""


@dataclass(frozen=True, slots=True)
class SaveUpdate:
    """Put this update on the disk, then say `UpdateSaved`."""

    values: np.ndarray
    meta: UpdateMeta


@dataclass(frozen=True, slots=True)
class RaiseCounter:
    """Put a higher counter on the disk, then say `CounterRaised`."""


@dataclass(frozen=True, slots=True)
class SpendUpdate:
    """Put the spent mark and what it costs on the disk, then say `UpdateSpent`.

    `charge`: None if there is no noise in what leaves. `residual`: what is held back of this update and those before,
    float32 (d,); it replaces the one on the disk in the same moment. None leaves that as it is.
    """

    update_id: UpdateId
    residual: np.ndarray | None = None
    charge: Charge | None = None


@dataclass(frozen=True, slots=True)
class ChargeRun:
    """Put on the disk that the run for this task failed, and what it costs, then say `RunCharged`."""

    task: TaskId
    charge: Charge


@dataclass(frozen=True, slots=True)
class DropUpdate:
    """Forget the unspent update: its version has passed. `residual` as in `SpendUpdate`."""

    residual: np.ndarray | None = None


WorkerEffect = (
    Effect | FollowLog | Train | StopTraining | SaveUpdate | RaiseCounter | SpendUpdate | ChargeRun | DropUpdate
)
