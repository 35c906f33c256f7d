"""A reader of the model log: from the stream's messages to accepted entries and the present weights (sans-I/O).

Workers follow the log with it, and the coordinator reads its own entries back with it: only what comes out here
has happened.

All readers must come to the same chain, wherever they began. So what an entry needs is either in the state that the
snapshots pass on, or stands in the stream between its parent and itself: its pieces count only from there. A snapshot
joins the chain only if its body is the present model, so whoever begins with it holds what everybody else holds. It
may change one thing, for all: the number of rounds, by which a finished federation goes on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from shared.codec.coordinates import random_seed, select_coordinates
from shared.directory import DIRECTORY_BYTES_MAX, Directory
from shared.errors import DirectoryError, PlanError, RefusalReason, RemoteProtocolError
from shared.membership import Membership
from shared.modellog.chain import ChainState, advance, begin, judge
from shared.modellog.entries import PieceBuffer, SealedEntry, assemble, body_size, contents, hashes_of, holds, join
from shared.modellog.listed import decode_listed
from shared.plan import Plan, decode_plan
from shared.wire.framing import Opened, Opener, split_batch
from shared.wire.log_messages import (
    ChangeEntry,
    DirectoryEntry,
    DrawEntry,
    Entry,
    Mark,
    Piece,
    SnapshotEntry,
    VoidEntry,
)

PIECES_BYTES_FLOOR = 64 << 20
PIECES_BYTES_UNKNOWN_MODEL = 4 << 30


@dataclass(frozen=True, slots=True)
class Accepted:
    """An entry joined the chain. `first_offset` is where its pieces begin in the stream."""

    entry: Entry
    digest: bytes
    first_offset: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry or a message was not accepted, and why."""

    reason: RefusalReason
    detail: str
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Marked:
    """A mark went by: all that stood in the log when it was written has been read."""

    session: bytes


LogEvent = Accepted | Skipped | Marked


class LogReader:
    """The state of one reader: chain, plan, and the weights of the present version.

    `weights` is float32 (d,), never changed in place: each version is a new array, so that a training run can
    keep the one it began with. `coordinates` holds the positions of the present round (None: all; in
    asynchronous mode there are none before the draw). `signed_directory`
    is the one in force in the log; `members` takes it over, unless it knows a newer one.
    """

    def __init__(self, opener: Opener, members: Membership) -> None:
        self._opener = opener
        self.members = members
        self._pieces = PieceBuffer(PIECES_BYTES_UNKNOWN_MODEL)
        self._expected: tuple[bytes, np.ndarray] | None = None
        self._drawn: tuple[bytes, np.ndarray | None] | None = None
        self._built_on = False
        self._directory: Directory | None = None
        self.chain: ChainState | None = None
        self.plan: Plan | None = None
        self.plan_digest = b""
        self.signed_directory = b""
        self.weights: np.ndarray = np.empty(0, dtype=np.float32)
        self.coordinates: np.ndarray | None = None
        self.snapshot_offset = 0

    def expect(self, sealed: SealedEntry, weights: np.ndarray | None = None) -> None:
        """The writer's side: this entry is mine.

        Args:
            sealed: its body is kept once, not copied from the stream.
            weights: what it leads to, float32 (d,); then its body need not be read.
        """
        self._expected = None if weights is None else (sealed.digest, weights)
        self._pieces.own(sealed.pieces())

    def feed(self, offset: int, body: bytes) -> list[LogEvent]:
        """Read one message of the stream.

        Raises:
            PlanError: the log belongs to a plan that this version cannot read.
        """
        events: list[LogEvent] = []
        try:
            frames = split_batch(body)
        except RemoteProtocolError as error:
            return [Skipped(error.reason, error.detail)]
        for frame in frames:
            try:
                event = self._read(self._opener.open(frame), offset)
            except RemoteProtocolError as error:
                event = Skipped(error.reason, error.detail)
            if event is not None:
                events.append(event)
        return events

    def _read(self, opened: Opened, offset: int) -> LogEvent | None:
        match opened.message:
            case Piece(body=body):
                self._pieces.put(body, offset)
                return None
            case Mark(session=session):
                return Marked(session)
            case Entry() as entry:
                return self._read_entry(entry, opened.digest, offset)
            case other:
                return Skipped(RefusalReason.UNEXPECTED_KIND, f"{type(other).__name__} in the log")

    def _read_entry(self, entry: Entry, digest: bytes, offset: int) -> LogEvent:
        if self.chain is None or self._was_misled(entry):
            reason = self._begin(entry, digest)
        else:
            reason = judge(self.chain, entry) or self._apply(entry, digest)
            if reason is None:
                self.chain = advance(self.chain, entry, digest)
                self._built_on = True
        if reason is not None:
            place = f"after version {self.chain.version}" if self.chain else "with no snapshot before it"
            return Skipped(reason, f"{type(entry).__name__} {place}", digest)
        ahead = entry.directory if isinstance(entry, SnapshotEntry) else ()
        first_offset = self._pieces.first_offset(ahead + entry.pieces, offset)
        # The next entry's pieces are written when this one has been read; what is left belongs to no chain.
        self._pieces.clear()
        self._expected = None
        if isinstance(entry, SnapshotEntry):
            self.snapshot_offset = first_offset
        return Accepted(entry, digest, first_offset)

    def _was_misled(self, entry: Entry) -> bool:
        """Whether we began with the snapshot of a replaced coordinator, which nobody who read on from before accepted.

        Nobody builds on such a snapshot, and the next one in the chain is of a later term, and of the same plan.
        """
        assert self.chain is not None
        return isinstance(entry, SnapshotEntry) and not self._built_on and entry.term > self.chain.term

    def _begin(self, entry: Entry, digest: bytes) -> RefusalReason | None:
        if not isinstance(entry, SnapshotEntry):
            if self.chain is None:
                self._pieces.discard(entry.pieces)
            return RefusalReason.WRONG_PARENT
        plan = decode_plan(entry.plan) if self.plan is None else self._same_plan(entry)
        if plan is None:
            # We were misled about the head, not about the federation: what was checked in its plan must hold for good.
            return RefusalReason.NOT_ALLOWED
        weights = self._new_weights(entry, digest, None, plan.dimension)
        signed = self._pieces.joined(entry.directory)
        if weights is None or signed is None:
            return RefusalReason.WRONG_SIZE
        staleness_max = plan.round.staleness_max
        if len(entry.earlier_heads) != min(entry.version, staleness_max):
            return RefusalReason.NOT_ALLOWED
        if not self._take_directory(signed, entry.directory_number, entry.directory_digest):
            return RefusalReason.BAD_SIGNATURE
        self.chain = begin(entry, digest, staleness_max)
        self.plan = plan
        self.plan_digest = plan.digest()
        self.weights = weights
        self._choose_coordinates(self.chain.version_head)
        # Pieces of two whole models: the entry that is being written, and what a replaced coordinator still sends.
        self._pieces.shrink(PIECES_BYTES_FLOOR + 2 * weights.nbytes)
        return None

    def _apply(self, entry: Entry, digest: bytes) -> RefusalReason | None:
        match entry:
            case SnapshotEntry():
                plan = self._same_plan(entry)
                if plan is None:
                    return RefusalReason.NOT_ALLOWED
                if entry.directory != hashes_of(self.signed_directory):
                    return RefusalReason.NOT_ALLOWED
                if self._pieces.size(entry.directory) is None or not holds(entry, self._pieces, self.weights):
                    return RefusalReason.WRONG_SIZE
                self.plan = plan
            case ChangeEntry():
                if not self._allows(entry):
                    return RefusalReason.NOT_ALLOWED
                positions = self.coordinates if entry.coordinates == "round" else None
                weights = self._new_weights(entry, digest, positions, self.weights.size)
                if weights is None:
                    return RefusalReason.WRONG_SIZE
                self.weights = weights
                self._choose_coordinates(digest)
            case DrawEntry() if self._drawn_coordinates:
                self.coordinates = self.coordinates_of(digest)
            case VoidEntry() if self._drawn_coordinates:
                self.coordinates = None
            case DirectoryEntry():
                signed = contents(entry, self._pieces, DIRECTORY_BYTES_MAX)
                if signed is None:
                    return RefusalReason.WRONG_SIZE
                if not self._take_directory(signed, entry.number, entry.digest):
                    return RefusalReason.BAD_SIGNATURE
        return None

    def _allows(self, entry: ChangeEntry) -> bool:
        """Whether this federation has changes at such positions."""
        assert self.plan is not None
        match entry.coordinates:
            case "round":
                return self.coordinates is not None
            case "listed":
                return self.plan.codec.selection == "top_k"
            case _:
                return True

    @property
    def directory(self) -> Directory:
        """The directory in force in the log, from a reader that has begun."""
        assert self._directory is not None
        return self._directory

    @property
    def directory_digest(self) -> bytes:
        """The digest of the directory in force (32 bytes); empty before the log has begun."""
        return self.chain.directory_digest if self.chain else b""

    def _take_directory(self, signed: bytes, number: int, digest: bytes) -> bool:
        try:
            directory = self.members.read(signed)
            if (directory.number, directory.digest()) != (number, digest):
                return False
            self.members.adopt(signed)
        except DirectoryError:
            return False
        self.signed_directory, self._directory = signed, directory
        return True

    def _same_plan(self, entry: SnapshotEntry) -> Plan | None:
        """The plan of a snapshot if it is ours; its number of rounds may be another, and counts from here on."""
        try:
            plan = decode_plan(entry.plan)
        except PlanError:
            return None
        return plan if plan.digest() == self.plan_digest else None

    def _new_weights(
        self, entry: SnapshotEntry | ChangeEntry, digest: bytes, positions: np.ndarray | None, dimension: int
    ) -> np.ndarray | None:
        """The weights that an entry leads to, as an array of their own, or None if its body is not what it says."""
        if self._expected is not None and self._expected[0] == digest and body_size(entry, self._pieces) is not None:
            return self._expected[1]
        values: np.ndarray | None
        if isinstance(entry, ChangeEntry) and entry.coordinates == "listed":
            body = join(entry, self._pieces, self.weights.nbytes)
            listed = None if body is None else decode_listed(body, dimension)
            positions, values = (None, None) if listed is None else listed
        else:
            values = assemble(entry, self._pieces, dimension if positions is None else positions.size)
        if values is None:
            return None
        if positions is not None:
            whole = self.weights.copy()
            whole[positions] = values
            values = whole
        return values if weights_digest(values) == entry.weights_sha256 else None

    def coordinates_of(self, draw: bytes) -> np.ndarray | None:
        """The positions of the round with this draw, whose entry need not have come yet; None as in `coordinates`."""
        assert self.plan is not None
        if not self._drawn_coordinates:
            return self.coordinates
        if self._drawn is None or self._drawn[0] != draw:
            self._drawn = draw, round_coordinates(self.plan, draw)
        return self._drawn[1]

    def _choose_coordinates(self, version_head: bytes) -> None:
        assert self.plan is not None
        self.coordinates = None if self._drawn_coordinates else round_coordinates(self.plan, version_head)

    @property
    def _drawn_coordinates(self) -> bool:
        """Whether the draw chooses them: nobody knows before which versions its updates were trained on."""
        return self.plan is not None and self.plan.round.mode == "async"


def round_coordinates(plan: Plan, entry: bytes) -> np.ndarray | None:
    """The k positions that the clients of a round send (sorted), or None for all, or for those that each chooses.

    They are seeded by the hash of an entry. In synchronous mode it is the one that made the version, so every client
    knows them before it trains; in asynchronous mode, where clients train on different versions, it is the draw's.
    """
    if plan.codec.selection in ("dense", "top_k"):
        return None
    seed = random_seed(entry, "round coordinates")
    return select_coordinates(seed, plan.dimension, plan.coordinate_count)


def weights_digest(weights: np.ndarray) -> bytes:
    """SHA-256 of float32 weights as little-endian bytes (32 bytes)."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").data.cast("B")).digest()
