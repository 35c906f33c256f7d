"""What travels: one frozen, validated type per arrow of the protocol.

Field validation is part of the wire contract: a value outside its bound never reaches a machine. Hashes are 32 bytes,
vectors are raw little-endian buffers in `bytes` fields. Freshness: an offer carries its own counter and nonce, a status
a rising sequence number, group messages the hash of their draw, log entries the hash of their parent.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.identity import Name

PIECE_BYTES_MAX = 1 << 20
"""Vectors and log entries are cut into pieces of this many bytes: far below every broker's message limit."""

FRAME_BYTES_MAX = PIECE_BYTES_MAX + (64 << 10)
"""Upper bound of one signed message: one piece and its header."""

INLINE_BYTES_MAX = 256 << 10
"""A log entry's body up to this size travels inside the entry itself."""

PIECES_MAX = 1 << 14
"""A log entry or an update may have at most this many pieces (16 GiB)."""

GROUPS_MAX = 1 << 16
"""A draw has at most this many groups: the change that closes it names them all in one frame."""

PLAN_BYTES_MAX = 256 << 10
"""Upper bound of an encoded plan: every snapshot carries it inside its frame."""

DIRECTORY_PIECES_MAX = 32
"""A signed directory has at most this many pieces."""

Hash = Annotated[bytes, Field(min_length=32, max_length=32)]
Nonce = Annotated[bytes, Field(min_length=16, max_length=16)]
PieceBytes = Annotated[bytes, Field(max_length=PIECE_BYTES_MAX)]
Counter = Annotated[int, Field(ge=0, lt=1 << 63)]
Version = Annotated[int, Field(ge=0, lt=1 << 48)]
GroupIndex = Annotated[int, Field(ge=0, lt=GROUPS_MAX)]
GroupCount = Annotated[int, Field(ge=1, le=GROUPS_MAX)]


class Kind(IntEnum):
    """The mark of a message's type inside its signed header; numbers are never used twice."""

    OFFER = 1
    STATUS = 2
    WORDS = 3
    TASK = 16
    ROSTER = 17
    GROUP_JOB = 18
    PIECE = 32
    MARK = 33
    TERM = 34
    SNAPSHOT = 35
    DRAW = 36
    CHANGE = 37
    VOID = 38
    RUN = 39
    DIRECTORY = 40
    CONTROL = 48


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
    """What a client is doing; the last five are closed: it takes no task until it says otherwise."""

    IDLE = "idle"
    TRAINING = "training"
    OFFERED = "offered"
    IN_GROUP = "in_group"
    LEAVING = "leaving"
    TRAINING_FAILED = "training_failed"
    PLAN_MISMATCH = "plan_mismatch"
    POLICY = "policy"
    DRAINING = "draining"


CLOSED_STATES = frozenset(
    {
        ClientState.LEAVING,
        ClientState.TRAINING_FAILED,
        ClientState.PLAN_MISMATCH,
        ClientState.POLICY,
        ClientState.DRAINING,
    }
)


class Offer(Message):
    """A client's word that a finished update, trained on the model `trained_head` made, waits on its disk."""

    kind: ClassVar[Kind] = Kind.OFFER
    signed_by: ClassVar[Role] = Role.CLIENT

    attempt: Counter
    trained_version: Version
    trained_head: Hash
    counter: Counter
    nonce: Nonce
    worker: Name


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


class Words(Message):
    """One piece of a member's integer words, little endian, bound to its group by the transcript hash."""

    kind: ClassVar[Kind] = Kind.WORDS
    signed_by: ClassVar[Role] = Role.CLIENT

    draw: Hash
    group: GroupIndex
    transcript: Hash
    part: Annotated[int, Field(ge=0, lt=PIECES_MAX)]
    parts: Annotated[int, Field(ge=1, le=PIECES_MAX)]
    body: PieceBytes


# ── downwards ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Task(Message):
    """Asks one client to train on `version`; tells a worker that has no log yet where the newest snapshot begins."""

    kind: ClassVar[Kind] = Kind.TASK

    client: Name
    version: Version
    attempt: Counter
    head: Hash
    snapshot_offset: Counter


class Member(BaseModel):
    """One member of a group: its offer's digest and counter, and the worker process that speaks for it."""

    model_config = Message.model_config

    client: Name
    site: Name
    worker: Name
    offer: Hash


class Group(BaseModel):
    """One group of a draw and the Merkle path that proves it belongs to it."""

    model_config = Message.model_config

    index: GroupIndex
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=1024)]
    path: Annotated[tuple[Hash, ...], Field(max_length=32)]


class Roster(Message):
    """Opens one group for one of its members, and names the stage that sums it."""

    kind: ClassVar[Kind] = Kind.ROSTER

    client: Name
    draw: Hash
    version: Version
    group: Group
    groups: GroupCount
    stage: Name


class GroupJob(Message):
    """Some groups of one draw, for whichever summing stage takes them."""

    kind: ClassVar[Kind] = Kind.GROUP_JOB

    draw: Hash
    version: Version
    groups: GroupCount
    members: Annotated[tuple[Group, ...], Field(min_length=1, max_length=1024)]


# ── the model log ────────────────────────────────────────────────────────────────────────────────────────────────────


class Piece(Message):
    """One piece of an entry's body; the entry, which follows, names it by its SHA-256."""

    kind: ClassVar[Kind] = Kind.PIECE

    body: PieceBytes


class Mark(Message):
    """Shows a starting coordinator where the log ended when it came; no part of the chain."""

    kind: ClassVar[Kind] = Kind.MARK

    session: Nonce


class Entry(Message):
    """What every link of the chain has: its parent, its writer's term, and a body (inline, or in pieces before it)."""

    parent: Hash
    term: Counter
    body: PieceBytes = b""
    pieces: Annotated[tuple[Hash, ...], Field(max_length=PIECES_MAX)] = ()


class TermEntry(Entry):
    """A coordinator's session takes over: from here on only entries of this term are accepted."""

    kind: ClassVar[Kind] = Kind.TERM

    session: Nonce


class RunState(StrEnum):
    """What the operator wants of a run."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"


class SnapshotEntry(Entry):
    """The whole model of `version` (body: float32 little endian), with all that a new reader has to know.

    `directory` names the pieces of the signed directory in force, which stand before those of the body.
    """

    kind: ClassVar[Kind] = Kind.SNAPSHOT

    version: Version
    version_head: Hash
    attempt: Counter
    weights_sha256: Hash
    clipping_norm: Annotated[float, Field(gt=0)]
    plan: Annotated[bytes, Field(max_length=PLAN_BYTES_MAX)]
    directory_number: Counter
    directory_digest: Hash
    directory: Annotated[tuple[Hash, ...], Field(min_length=1, max_length=DIRECTORY_PIECES_MAX)]
    run: Annotated[RunState, Field(strict=False)]
    controlled_us: Counter


class DrawEntry(Entry):
    """Closes the pool of `version`: the Merkle root over all its groups."""

    kind: ClassVar[Kind] = Kind.DRAW

    version: Version
    groups: GroupCount
    offers: Annotated[int, Field(ge=1, lt=1 << 32)]
    root: Hash


class ChangeEntry(Entry):
    """The step from `version − 1` to `version`; the body holds new weights (float32 little endian).

    `coordinates` says at which positions: those of the round (values only, the positions are implied), those that the
    body lists in front of them (`shared.modellog.listed`), or all.
    """

    kind: ClassVar[Kind] = Kind.CHANGE

    version: Version
    draw: Hash
    groups: Annotated[tuple[GroupIndex, ...], Field(min_length=1, max_length=GROUPS_MAX)]
    weights_sha256: Hash
    clipping_norm: Annotated[float, Field(gt=0)]
    coordinates: Literal["round", "listed", "all"]


class VoidEntry(Entry):
    """Closes a draw without a step; none of its sums will ever be used."""

    kind: ClassVar[Kind] = Kind.VOID

    draw: Hash
    reason: Annotated[str, Field(max_length=500)]


class RunEntry(Entry):
    """The operator's word on the run, as of `version`; `issued_us` is that of the command, in microseconds."""

    kind: ClassVar[Kind] = Kind.RUN

    run: Annotated[RunState, Field(strict=False)]
    issued_us: Counter
    version: Version


class DirectoryEntry(Entry):
    """From here on this directory is in force; the body is its file's content, signed by the enrolment key."""

    kind: ClassVar[Kind] = Kind.DIRECTORY

    number: Annotated[int, Field(ge=1, lt=1 << 48)]
    digest: Hash


# ── the operator ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Control(Message):
    """A command to the coordinator, signed with its own key; fresh by the time (microseconds since 1970) of its issue.

    The answer is the entry in the log that repeats `issued_us`.
    """

    kind: ClassVar[Kind] = Kind.CONTROL

    run: Annotated[RunState, Field(strict=False)]
    issued_us: Counter


MESSAGE_TYPES: dict[Kind, type[Message]] = {
    t.kind: t
    for t in (
        Offer,
        Status,
        Words,
        Task,
        Roster,
        GroupJob,
        Piece,
        Mark,
        TermEntry,
        SnapshotEntry,
        DrawEntry,
        ChangeEntry,
        VoidEntry,
        RunEntry,
        DirectoryEntry,
        Control,
    )
}
"""Every message type by its kind: the decoder's table."""
