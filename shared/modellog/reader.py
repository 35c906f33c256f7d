"""A reader of the model log: from the stream's messages to accepted entries and the present weights (sans-I/O).

Workers follow the log with it, and the coordinator reads its own entries back with it: only what comes out here
has happened.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from shared.codec.coordinates import random_seed, select_coordinates
from shared.errors import RefusalReason, RemoteProtocolError
from shared.modellog.chain import ChainState, advance, begin, judge
from shared.modellog.entries import PieceBuffer, assemble
from shared.plan import Plan, decode_plan
from shared.wire.framing import Opened, Opener, split_batch
from shared.wire.messages import ChangeEntry, Entry, Mark, Piece, SnapshotEntry

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
    keep the one it began with. `coordinates` holds the positions of the present round (None: all).
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._pieces = PieceBuffer(PIECES_BYTES_UNKNOWN_MODEL)
        self._pending: dict[bytes, np.ndarray] = {}
        self.chain: ChainState | None = None
        self.plan: Plan | None = None
        self.plan_digest = b""
        self.directory_digest = b""
        self.weights: np.ndarray = np.empty(0, dtype=np.float32)
        self.coordinates: np.ndarray | None = None
        self.snapshot_offset = 0

    def expect(self, digest: bytes, weights: np.ndarray) -> None:
        """The writer's side: this entry is mine and leads to these weights; its body need not be read."""
        self._pending = {digest: weights}
        self._pieces.forget_bodies = True

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
        if not self._pieces.has(entry.pieces):
            return Skipped(RefusalReason.WRONG_SIZE, "pieces of the entry are missing", digest)
        first_offset = self._pieces.first_offset(entry.pieces, offset)
        if self.chain is None:
            if not isinstance(entry, SnapshotEntry) or not self._adopt(entry, digest):
                return Skipped(RefusalReason.WRONG_PARENT, "no snapshot before it", digest)
        else:
            reason = judge(self.chain, entry)
            if reason is None and isinstance(entry, ChangeEntry) and not self._apply(entry, digest):
                reason = RefusalReason.WRONG_SIZE
            if reason is not None:
                return Skipped(reason, f"{type(entry).__name__} after version {self.chain.version}", digest)
            self.chain = advance(self.chain, entry, digest)
            self._pieces.discard(entry.pieces)
        if isinstance(entry, SnapshotEntry):
            self.snapshot_offset = first_offset
        if isinstance(entry, SnapshotEntry | ChangeEntry):
            self._choose_coordinates()
        return Accepted(entry, digest, first_offset)

    def _adopt(self, entry: SnapshotEntry, digest: bytes) -> bool:
        plan = decode_plan(entry.plan)
        weights = self._expected_or_read(entry, digest, plan.dimension)
        if weights is None:
            return False
        self.chain = begin(entry, digest)
        self.plan = plan
        self.plan_digest = hashlib.sha256(entry.plan).digest()
        self.directory_digest = entry.directory_digest
        self.weights = weights
        # Pieces of two whole models: the entry that is being written, and a repeat after a lost connection.
        self._pieces.shrink(max(PIECES_BYTES_FLOOR, 2 * weights.nbytes))
        return True

    def _apply(self, entry: ChangeEntry, digest: bytes) -> bool:
        positions = self.coordinates if entry.coordinates == "round" else None
        if entry.coordinates == "round" and positions is None:
            return False
        if digest in self._pending:
            self.weights = self._pending.pop(digest)
            return True
        values = assemble(entry, self._pieces, self.weights.size if positions is None else positions.size)
        if values is None:
            return False
        if positions is not None:
            whole = self.weights.copy()
            whole[positions] = values
            values = whole
        if weights_digest(values) != entry.weights_sha256:
            return False
        self.weights = values
        return True

    def _expected_or_read(self, entry: SnapshotEntry, digest: bytes, dimension: int) -> np.ndarray | None:
        if digest in self._pending:
            return self._pending.pop(digest)
        weights = assemble(entry, self._pieces, dimension)
        if weights is None or weights_digest(weights) != entry.weights_sha256:
            return None
        return weights

    def _choose_coordinates(self) -> None:
        assert self.chain is not None
        assert self.plan is not None
        self.coordinates = round_coordinates(self.plan, self.chain.version_head)


def round_coordinates(plan: Plan, version_head: bytes) -> np.ndarray | None:
    """The k positions that the clients of a round send (sorted), or None for all.

    They are seeded by the entry that made the version, so every client knows them before it trains.
    """
    if plan.codec.selection == "dense":
        return None
    seed = random_seed(version_head, "round coordinates")
    return select_coordinates(seed, plan.dimension, plan.coordinate_count)


def weights_digest(weights: np.ndarray) -> bytes:
    """SHA-256 of float32 weights as little-endian bytes (32 bytes)."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").data.cast("B")).digest()
