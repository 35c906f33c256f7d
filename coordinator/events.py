"""What happens to the coordinator: the events that its machines share. Each machine takes what concerns it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from coordinator.aggregator.convergence import Evaluation
from coordinator.kept import Kept
from shared.codec.validation import Spread
from shared.effects import Effect, Receipt
from shared.modellog.reader import Accepted
from shared.wire.group_messages import Agreement, GivenUp, GroupJob, Reveal, Shares, Sum, Words
from shared.wire.messages import Control, Offer, Status


@dataclass(frozen=True, slots=True)
class OfferArrived:
    """A verified offer; `digest` is its frame's SHA-256."""

    client: str
    offer: Offer
    digest: bytes
    frame: bytes
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class StatusArrived:
    """A verified sign of life; `frame` is how it came."""

    client: str
    status: Status
    frame: bytes


@dataclass(frozen=True, slots=True)
class JobArrived:
    """Groups to be summed by this stage."""

    job: GroupJob
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class GroupReplyArrived:
    """A verified answer of a group's member; `frame` is how it came."""

    client: str
    message: Shares | Words | Agreement | Reveal
    frame: bytes


@dataclass(frozen=True, slots=True)
class SumArrived:
    """A piece of a sum that another process made, or its giving up."""

    message: Sum | GivenUp
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class ControlArrived:
    """A verified command of the operator; `received_us` is the wall clock then (microseconds since 1970)."""

    control: Control
    received_us: int
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class DirectoryArrived:
    """Somebody has put another directory where ours was; nothing of it is checked."""

    signed: bytes


@dataclass(frozen=True, slots=True)
class DrawnBefore:
    """A verified offer of a draw that a session before has made."""

    client: str
    offer: Offer
    digest: bytes
    frame: bytes


@dataclass(frozen=True, slots=True)
class TookOffice:
    """This session writes the log from now on, and goes on from what the journal of the sessions before says.

    `kept` is their state (None: there was none), `drawn` the offers of the open draw, `optimizer` the server
    optimizer's state at the present version. All are as of the newest record that counts.
    """

    kept: Kept | None = None
    drawn: tuple[DrawnBefore, ...] = ()
    optimizer: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EntryAccepted:
    """The log reader accepted an entry: it has happened."""

    accepted: Accepted


@dataclass(frozen=True, slots=True)
class DrawMade:
    """A draw was sealed and is on its way to the log, or stands there since before this session (`resumed`)."""

    entry: bytes
    version: int
    groups: int
    clients: tuple[str, ...]
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class GroupSummed:
    """One group's integer sum. `words` is uint16 or uint32 (slots,), owned by the receiver.

    The words of `arrived` are in it, those of `dropped` are not. `unheard` of either owed an answer when the sum was
    opened without it; `blamed` broke the protocol on the way. `positions`
    came behind the words of a client that chose its own coordinates; they are not decoded yet. `began` says when each
    state of the sum began (seconds on the clock of this process), empty if another process made it.
    """

    draw: bytes
    group: int
    arrived: tuple[str, ...]
    dropped: tuple[str, ...]
    unheard: tuple[str, ...]
    blamed: tuple[str, ...]
    words: np.ndarray
    positions: bytes = b""
    began: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupGivenUp:
    """One group ended without a sum; `silent` members were waited for, `blamed` broke the protocol."""

    draw: bytes
    group: int
    reason: str
    silent: tuple[str, ...]
    blamed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepTaken:
    """The server step of a draw is on its way to the log; figures for the report.

    `validation` is what the counted clients measured of the version before, which they trained on.
    """

    version: int
    clients_counted: int
    groups: int
    groups_rejected: int
    groups_given_up: int
    clipping_norm: float
    train_metrics: dict[str, float]
    validation: dict[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationFinished:
    """What the held-out data say of a version.

    `evaluation` is None if it was passed over for a newer one, or there are no such data.
    """

    version: int
    weights: np.ndarray
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True)
class RateLowered:
    """The model has not become better: the server's scheduled learning rate is multiplied by `factor` from now on."""

    factor: float


@dataclass(frozen=True, slots=True)
class RunStopped:
    """The run is to end before its last round, and none is under way any more; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class ClientLost:
    """A client missed a deadline or fell silent; `phase` is the last one it gave a sign of."""

    client: str
    version: int
    phase: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    OfferArrived
    | StatusArrived
    | JobArrived
    | GroupReplyArrived
    | SumArrived
    | ControlArrived
    | DirectoryArrived
    | TookOffice
    | EntryAccepted
    | DrawMade
    | GroupSummed
    | GroupGivenUp
    | StepTaken
    | EvaluationFinished
    | RateLowered
    | RunStopped
    | ClientLost
    | Tick
)


@dataclass(frozen=True, slots=True)
class Tell:
    """An effect: hand this event to every machine of the coordinator."""

    event: Event


@dataclass(frozen=True, slots=True)
class Evaluate:
    """An effect: measure these weights (float32 (d,)) on the held-out data, outside the protocol's thread."""

    version: int
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class Finish:
    """An effect: the run is over; `reason` says why if that is not because the planned rounds are done."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class KeepModel:
    """An effect: write these weights (float32 (d,)) to the output directory under `name`."""

    name: str
    version: int
    weights: np.ndarray


CoordinatorEffect = Effect | Tell | Evaluate | Finish | KeepModel
