"""What travels: one frozen, validated type per arrow of the protocol.

Field validation is part of the wire contract: a value outside its bound never reaches a machine. Hashes are 32 bytes,
vectors are raw little-endian buffers in `bytes` fields. Freshness: an offer carries its own counter and nonce, a status
a rising sequence number, group messages the hash of their draw, log entries the hash of their parent.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.crypto.keys import of_full_order
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

SHARE_BYTES = 33
"""One Shamir share on the wire."""

SHARE_BOX_BYTES = 2 * SHARE_BYTES + 16
"""The two shares that a dealer seals to one receiver."""

COMMITMENTS_BYTES = 64
"""A dealer's commitments to the two shares of one member."""

MEMBERS_MAX = 512
"""A group has at most this many members."""

OFFER_BYTES_MAX = 1 << 10
"""Upper bound of a sealed offer: rosters carry those of all members."""

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
MemberSet = Annotated[bytes, Field(min_length=1, max_length=MEMBERS_MAX // 8)]
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


class Shares(Message):
    """A dealer's secrets, shared: what each other member of the roster, in its order, is to keep.

    `boxes` are sealed to their receivers; `commitments` are to the shares of every member, the dealer's own too.
    """

    kind: ClassVar[Kind] = Kind.SHARES
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    boxes: Annotated[bytes, Field(max_length=MEMBERS_MAX * SHARE_BOX_BYTES)]
    commitments: Annotated[bytes, Field(max_length=MEMBERS_MAX * COMMITMENTS_BYTES)]
    seed_commitment: Hash


class Words(Message):
    """One piece of a member's integer words, little endian, masked over the participants that it names."""

    kind: ClassVar[Kind] = Kind.WORDS
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    participants: MemberSet
    part: Annotated[int, Field(ge=0, lt=PIECES_MAX)]
    parts: Annotated[int, Field(ge=1, le=PIECES_MAX)]
    body: PieceBytes


class Agreement(Message):
    """A member's signature, once, under who took part in its group and whose words arrived."""

    kind: ClassVar[Kind] = Kind.AGREEMENT
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    participants: MemberSet
    arrived: MemberSet


class Reveal(Message):
    """A member's share of one secret of every participant, in roster order; all zeros where it holds none."""

    kind: ClassVar[Kind] = Kind.REVEAL
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    shares: Annotated[bytes, Field(max_length=MEMBERS_MAX * SHARE_BYTES)]


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
    """One member of a group: its signed offer, and the worker process that speaks for it."""

    model_config = Message.model_config

    client: Name
    site: Name
    worker: Name
    offer: Annotated[bytes, Field(max_length=OFFER_BYTES_MAX)]

    @property
    def offer_digest(self) -> bytes:
        """SHA-256 of the offer's frame (32 bytes)."""
        return hashlib.sha256(self.offer).digest()


class Group(BaseModel):
    """One group of a draw and the Merkle path that proves it belongs to it."""

    model_config = Message.model_config

    index: GroupIndex
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=MEMBERS_MAX)]
    path: Annotated[tuple[Hash, ...], Field(max_length=32)]

    @property
    def leaf(self) -> tuple[tuple[str, bytes], ...]:
        """(client, offer digest) of the members: what the draw's Merkle tree and the group's transcript hold."""
        return tuple((member.client, member.offer_digest) for member in self.members)


class GroupMessage(Message):
    """What a summing stage says to one member of a group; the answer goes to that stage."""

    client: Name
    stage: Name


class Roster(GroupMessage):
    """Opens one group for one of its members."""

    kind: ClassVar[Kind] = Kind.ROSTER

    draw: Hash
    version: Version
    group: Group
    groups: GroupCount


class Participants(GroupMessage):
    """Names those whose shares arrived, and hands over what each other one of them sealed to this member.

    `boxes` and `commitments` stand in the order of the roster, one per other participant; a box that is lost is empty.
    """

    kind: ClassVar[Kind] = Kind.PARTICIPANTS

    transcript: Hash
    participants: MemberSet
    boxes: Annotated[tuple[Annotated[bytes, Field(max_length=SHARE_BOX_BYTES)], ...], Field(max_length=MEMBERS_MAX)]
    commitments: Annotated[
        tuple[Annotated[bytes, Field(max_length=COMMITMENTS_BYTES)], ...], Field(max_length=MEMBERS_MAX)
    ]


class Arrived(GroupMessage):
    """Names those whose words arrived, for the member to agree to."""

    kind: ClassVar[Kind] = Kind.ARRIVED

    transcript: Hash
    participants: MemberSet
    arrived: MemberSet


class Unmask(GroupMessage):
    """Shows that enough members have agreed (their frames), and asks for this member's shares."""

    kind: ClassVar[Kind] = Kind.UNMASK

    transcript: Hash
    agreements: Annotated[
        tuple[Annotated[bytes, Field(max_length=OFFER_BYTES_MAX)], ...], Field(max_length=MEMBERS_MAX)
    ]


class GroupJob(Message):
    """Some groups of one draw, for whichever summing stage takes them."""

    kind: ClassVar[Kind] = Kind.GROUP_JOB

    draw: Hash
    version: Version
    groups: GroupCount
    members: Annotated[tuple[Group, ...], Field(min_length=1, max_length=1024)]


class GroupEnd(Message):
    """How a group ended, from the stage that summed it to the aggregator.

    `unheard` members owed an answer at the end, `blamed` ones broke the protocol.
    """

    stage: Name
    draw: Hash
    group: GroupIndex
    unheard: tuple[Name, ...]
    blamed: tuple[Name, ...]


class Sum(GroupEnd):
    """One piece of a group's sum: words of the members `arrived`, without those `dropped`, added mod 2**b."""

    kind: ClassVar[Kind] = Kind.SUM

    arrived: tuple[Name, ...]
    dropped: tuple[Name, ...]
    part: Annotated[int, Field(ge=0, lt=PIECES_MAX)]
    parts: Annotated[int, Field(ge=1, le=PIECES_MAX)]
    body: PieceBytes


class GivenUp(GroupEnd):
    """A group ended without a sum."""

    kind: ClassVar[Kind] = Kind.GIVEN_UP

    reason: Annotated[str, Field(max_length=500)]


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
        Shares,
        Words,
        Agreement,
        Reveal,
        Task,
        Roster,
        Participants,
        Arrived,
        Unmask,
        GroupJob,
        Sum,
        GivenUp,
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
