"""What travels: one frozen, validated type per arrow of the protocol.

Field validation is part of the wire contract: a value outside its bound never reaches a machine. Hashes are 32 bytes,
vectors are raw little-endian buffers in `bytes` fields. Freshness: an offer carries its own counter and nonce, a status
a rising sequence number, group messages the hash of their draw, log entries the hash of their parent.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.crypto.keys import of_full_order
from shared.identity import Name

PIECE_BYTES_MAX = 1 << 20
"""Vectors and log entries are cut into pieces of this many bytes: far below every broker's message limit."""

FRAME_BYTES_MAX = PIECE_BYTES_MAX + (64 << 10)
"""Upper bound of one signed message: one piece and its header."""


PIECES_MAX = 1 << 14
"""A log entry or an update may have at most this many pieces (16 GiB)."""

GROUPS_MAX = 1 << 16
"""A draw has at most this many groups: the change that closes it names them all in one frame."""


MEMBERS_MAX = 512
"""A group has at most this many members."""

OFFER_BYTES_MAX = 1 << 10
"""Upper bound of a sealed offer: rosters carry those of all members."""

PLAN_BYTES_MAX = 256 << 10
"""Upper bound of an encoded plan: every snapshot carries it inside its frame."""

REMINDER_BYTES_MAX = 4 << 10
"""Upper bound of the frame in a reminder: an offer or a status."""

DIRECTORY_PIECES_MAX = 32
"""A signed directory has at most this many pieces."""

Hash = Annotated[bytes, Field(min_length=32, max_length=32)]
Nonce = Annotated[bytes, Field(min_length=16, max_length=16)]
PieceBytes = Annotated[bytes, Field(max_length=PIECE_BYTES_MAX)]
Counter = Annotated[int, Field(ge=0, lt=1 << 63)]
Version = Annotated[int, Field(ge=0, lt=1 << 48)]
GroupIndex = Annotated[int, Field(ge=0, lt=GROUPS_MAX)]
GroupCount = Annotated[int, Field(ge=1, le=GROUPS_MAX)]
PublicKey = Annotated[bytes, Field(min_length=32, max_length=32), AfterValidator(of_full_order)]


class Kind(IntEnum):
    """The mark of a message's type inside its signed header; numbers are never used twice."""

    OFFER = 1
    STATUS = 2
    WORDS = 3
    SHARES = 4
    AGREEMENT = 5
    REVEAL = 6
    TASK = 16
    ROSTER = 17
    GROUP_JOB = 18
    PARTICIPANTS = 19
    ARRIVED = 20
    UNMASK = 21
    SUM = 22
    GIVEN_UP = 23
    REMINDER = 24
    PIECE = 32
    MARK = 33
    TERM = 34
    SNAPSHOT = 35
    DRAW = 36
    CHANGE = 37
    VOID = 38
    RUN = 39
    DIRECTORY = 40
    RECORD = 41
    CONTROL = 48
    CANDIDACY = 49


class Role(StrEnum):
    """Who may sign a message."""

    CLIENT = "client"
    COORDINATOR = "coordinator"


class Message(BaseModel):
    """Root of all wire messages."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[Kind]
    signed_by: ClassVar[Role] = Role.COORDINATOR


# ── upwards ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class ClientState(StrEnum):
    """What a client is doing; the last six are closed: it takes no task until it says otherwise."""

    IDLE = "idle"
    TRAINING = "training"
    OFFERED = "offered"
    IN_GROUP = "in_group"
    LEAVING = "leaving"
    TRAINING_FAILED = "training_failed"
    PLAN_MISMATCH = "plan_mismatch"
    POLICY = "policy"
    BUDGET_EXHAUSTED = "budget_exhausted"
    DRAINING = "draining"


CLOSED_STATES = frozenset(
    {
        ClientState.LEAVING,
        ClientState.TRAINING_FAILED,
        ClientState.PLAN_MISMATCH,
        ClientState.POLICY,
        ClientState.BUDGET_EXHAUSTED,
        ClientState.DRAINING,
    }
)


class PublicKeys(BaseModel):
    """X25519 public keys of one offer; they serve one group and no other."""

    model_config = Message.model_config

    sealing: PublicKey
    masking: PublicKey


class Offer(Message):
    """A client's word that a finished update, trained on the model `trained_head` made, waits on its disk.

    Its one-time keys are there unless the plan's groups are of one.
    """

    kind: ClassVar[Kind] = Kind.OFFER
    signed_by: ClassVar[Role] = Role.CLIENT

    attempt: Counter
    trained_version: Version
    trained_head: Hash
    counter: Counter
    nonce: Nonce
    worker: Name
    keys: PublicKeys | None = None


class Status(Message):
    """Sign of life, sent on every lasting change of state and every `status_interval_s`."""

    kind: ClassVar[Kind] = Kind.STATUS
    signed_by: ClassVar[Role] = Role.CLIENT

    sequence: Counter
    counter: Counter
    state: Annotated[ClientState, Field(strict=False)]
    version: Version
    worker: Name
    log_position: Literal["absent", "following"]
    reason: Annotated[str, Field(max_length=500)] = ""


# ── downwards ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Task(Message):
    """Asks one client to train on `version`; tells a worker that has no log yet where the newest snapshot begins.

    `drawn` is the highest counter of its offers that a draw has taken: one up to there does not wait any more. (In
    synchronous mode every client sees that in the log.)
    """

    kind: ClassVar[Kind] = Kind.TASK

    client: Name
    version: Version
    attempt: Counter
    head: Hash
    snapshot_offset: Counter
    drawn: Counter = 0


class Reminder(Message):
    """The newest offer or status of a client, which says that it is further back: `frame` as the client signed it."""

    kind: ClassVar[Kind] = Kind.REMINDER

    client: Name
    frame: Annotated[bytes, Field(max_length=REMINDER_BYTES_MAX)]


class RunState(StrEnum):
    """What the operator wants of a run."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"


# ── the operator ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Control(Message):
    """A command to the coordinator, signed with its own key; fresh by the time (microseconds since 1970) of its issue.

    The answer is the entry in the log that repeats `issued_us`.
    """

    kind: ClassVar[Kind] = Kind.CONTROL

    run: Annotated[RunState, Field(strict=False)]
    issued_us: Counter


# ── coordinators among themselves ────────────────────────────────────────────────────────────────────────────────────


class Candidacy(Message):
    """A coordinator that waits for the office puts this into its own queue: delivered, it says that it is its turn."""

    kind: ClassVar[Kind] = Kind.CANDIDACY

    session: Nonce
