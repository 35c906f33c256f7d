"""What stands in the model log: pieces, marks, and the entries that are the links of its chain."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shared.wire.messages import (
    DIRECTORY_PIECES_MAX,
    GROUPS_MAX,
    PIECES_MAX,
    PLAN_BYTES_MAX,
    Counter,
    GroupCount,
    GroupIndex,
    Hash,
    Kind,
    Message,
    Nonce,
    PieceBytes,
    RunState,
    Version,
)

INLINE_BYTES_MAX = 256 << 10
"""A log entry's body up to this size travels inside the entry itself."""


HEADS_MAX = 255
"""So many earlier versions' heads fit into a snapshot, and an update may be so many versions stale."""


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


class SnapshotEntry(Entry):
    """The whole model of `version` (body: float32 little endian), with all that a new reader has to know.

    `directory` names the pieces of the signed directory in force, which stand before those of the body.
    `earlier_heads` are those of the versions before, oldest first, on which an update may still have been trained.
    """

    kind: ClassVar[Kind] = Kind.SNAPSHOT

    version: Version
    version_head: Hash
    earlier_heads: Annotated[tuple[Hash, ...], Field(max_length=HEADS_MAX)] = ()
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
