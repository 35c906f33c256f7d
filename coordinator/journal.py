"""The journal: what a coordinator writes down before an entry of the model log, and what its successor reads there.

A record names the entry that it leads to, and counts only if the log accepted that entry: whatever a session wrote that
was killed before it wrote the entry, or whose entry was refused, is as if it had never been. Every record holds the
whole state, so the newest one that counts is all that a successor needs. Only the optimizer's state, which may be three
times as large as the model, stands in the records of changes alone, and again once so much was written since that
the stream's oldest segments may go.

    reader's event                         what is done
    ─────────────────────────────────────  ──────────────────────────────────────────────────────────────────────
    draw, change or void of the log        remembered, `ENTRIES_MAX` of them
    piece                                  kept until its record comes
    record of a remembered entry, whole    replaces the one before, unless that is of a later entry
    record of another, or torn             dropped
    mark                                   told: all that stood there when it was written has been read
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from coordinator.events import DrawnBefore, TookOffice
from coordinator.kept import Kept, decode_kept
from shared.errors import RemoteProtocolError
from shared.modellog.entries import PieceBuffer, SealedEntry, Sealer, cut, hashes_of
from shared.modellog.reader import Accepted
from shared.wire.framing import Opener, split_batch
from shared.wire.journal_messages import Record
from shared.wire.log_messages import ChangeEntry, DrawEntry, Entry, Mark, Piece, VoidEntry
from shared.wire.messages import Offer

RECORDED = (DrawEntry, ChangeEntry, VoidEntry)
"""The entries that move what a coordinator keeps; all others leave it as it is."""

ENTRIES_MAX = 4096
"""So many entries back a record may count; ordinarily it is the last of them."""

REPEAT_BYTES = 32 << 20
REPEAT_RECORDS = 64
"""So much without the optimizer's state, and it is written again: of a stream the newest 224 MiB are kept at least."""

_PIECES_BYTES_MAX = 1 << 30
_MODELS_MAX = 8


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """A record ready for the journal: `frames()` yields those of its pieces, then its own."""

    record: Record
    frame: bytes
    _parts: tuple[bytes, ...]
    _seal: Sealer

    def frames(self) -> Iterator[bytes]:
        """Frames in the order of the stream, sealed one at a time."""
        for part in self._parts:
            for piece in cut(memoryview(part)):
                yield self._seal(Piece(body=bytes(piece)))
        yield self.frame


class JournalWriter:
    """Makes the record that goes ahead of an entry."""

    def __init__(
        self, keep: Callable[[Entry], Kept], optimizer_state: Callable[[], bytes] | None, seal: Sealer
    ) -> None:
        """
        Args:
            keep: the state once an entry stands in the log.
            optimizer_state: the server optimizer's; None if it has none.
            seal: the coordinator's signature.
        """
        self._keep = keep
        self._optimizer_state = optimizer_state
        self._seal = seal
        # A session begins with a whole record: it does not know how far back the last one stands.
        self._bytes_since = REPEAT_BYTES
        self._records_since = 0

    def record(self, sealed: SealedEntry) -> SealedRecord | None:
        """The record to be written before an entry; None if the entry changes nothing that is kept."""
        if not isinstance(sealed.entry, RECORDED):
            return None
        state, optimizer = self._keep(sealed.entry).encode(), self._optimizer(sealed.entry)
        record = Record(
            entry=sealed.digest,
            state=hashes_of(state),
            optimizer=None if optimizer is None else hashes_of(optimizer),
        )
        self._bytes_since += len(state)
        self._records_since += 1
        return SealedRecord(record, self._seal(record), (optimizer or b"", state), self._seal)

    def _optimizer(self, entry: Entry) -> bytes | None:
        if self._optimizer_state is None:
            return None
        due = self._bytes_since >= REPEAT_BYTES or self._records_since >= REPEAT_RECORDS
        if not due and not isinstance(entry, ChangeEntry):
            return None
        self._bytes_since = self._records_since = 0
        return self._optimizer_state()


@dataclass(frozen=True, slots=True)
class WholeRecord:
    """A record with what its pieces hold; None for what is not there, or not in it."""

    entry: bytes
    state: bytes | None
    optimizer: bytes | None


class Records:
    """Puts a journal's records together from its messages; only what the coordinator has signed counts."""

    def __init__(self, opener: Opener, model_bytes: int) -> None:
        """
        Args:
            opener: verifies the messages.
            model_bytes: the size of the weights, for the bound on what is kept of records that are torn.
        """
        self._opener = opener
        self._pieces = PieceBuffer(_PIECES_BYTES_MAX + _MODELS_MAX * model_bytes)

    def feed(self, offset: int, body: bytes) -> Iterator[WholeRecord | Mark]:
        """The records that end in this message of the stream, and the marks in it."""
        try:
            frames = split_batch(body)
        except RemoteProtocolError:
            return
        for frame in frames:
            try:
                message = self._opener.open(frame).message
            except RemoteProtocolError:
                continue
            match message:
                case Piece(body=piece):
                    self._pieces.put(piece, offset)
                case Record() as record:
                    yield self._whole(record)
                case Mark():
                    yield message

    def _whole(self, record: Record) -> WholeRecord:
        optimizer = None if record.optimizer is None else self._pieces.joined(record.optimizer)
        whole = WholeRecord(record.entry, self._pieces.joined(record.state), optimizer)
        self._pieces.discard(record.state)
        self._pieces.discard(record.optimizer or ())
        return whole


class JournalReader:
    """Reads a journal from its oldest kept message on, behind the log: which record counts is known by then."""

    def __init__(self, opener: Opener, model_bytes: int) -> None:
        """Arguments as of `Records`."""
        self._opener = opener
        self._records = Records(opener, model_bytes)
        self._entries: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._order = 0
        self._version = 0
        self._state: tuple[int, bytes] | None = None
        self._optimizer: tuple[int, int, bytes] | None = None

    def observe(self, accepted: Accepted) -> None:
        """The log accepted an entry: a record of it counts."""
        entry = accepted.entry
        if isinstance(entry, RECORDED):
            self._version = self._version if isinstance(entry, VoidEntry) else entry.version
            self._order += 1
            self._entries[accepted.digest] = (self._order, self._version)
            if len(self._entries) > ENTRIES_MAX:
                self._entries.popitem(last=False)

    def feed(self, offset: int, body: bytes) -> list[bytes]:
        """Read one message of the journal; returns the sessions whose marks stand in it."""
        sessions = []
        for read in self._records.feed(offset, body):
            if isinstance(read, Mark):
                sessions.append(read.session)
            else:
                self._take(read)
        return sessions

    def _take(self, record: WholeRecord) -> None:
        order, version = self._entries.get(record.entry, (0, 0))
        if record.state is not None and order > (self._state[0] if self._state else 0):
            self._state = order, record.state
        if record.optimizer is not None and order > (self._optimizer[0] if self._optimizer else 0):
            self._optimizer = order, version, record.optimizer

    @property
    def is_behind(self) -> bool:
        """Whether the newest entry that should have a record has none."""
        return self._order > (0 if self._state is None else self._state[0])

    def took_office(self) -> TookOffice:
        """What a session goes on from.

        Raises:
            StateError: this version of Comitia cannot read it.
        """
        if self._state is None:
            return TookOffice()
        order, state = self._state
        kept = decode_kept(state)
        # Of an entry before the newest it is what was known then; the draw that is open is another.
        frames = kept.scheduler.drawn if order == self._order else ()
        optimizer = self._optimizer
        if optimizer is not None and optimizer[1] != self._version:
            optimizer = None
        return TookOffice(
            kept,
            tuple(drawn_offers(frames, self._opener)),
            None if optimizer is None else optimizer[2],
        )


def drawn_offers(frames: Iterable[bytes], opener: Opener) -> Iterator[DrawnBefore]:
    """The offers that these frames hold; what is no client's offer is left out."""
    for frame in frames:
        try:
            opened = opener.open(frame)
        except RemoteProtocolError:
            continue
        if isinstance(opened.message, Offer):
            yield DrawnBefore(opened.sender, opened.message, opened.digest, opened.frame)
