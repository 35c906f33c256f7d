"""The journal: which record counts, what a record holds, and what a successor makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

import coordinator.journal
from coordinator.aggregator.convergence import BestVersion, Evaluation
from coordinator.aggregator.steering import SteeringState
from coordinator.journal import REPEAT_RECORDS, JournalReader, JournalWriter, SealedRecord
from coordinator.kept import ClientMemory, Kept, RunMemory, SchedulerMemory, decode_kept
from shared.errors import StateError
from shared.modellog.chain import GENESIS
from shared.modellog.entries import SealedEntry
from shared.modellog.reader import Accepted, weights_digest
from shared.wire.framing import encode_fields, pack_batches
from shared.wire.log_messages import ChangeEntry, DrawEntry, Entry, Mark, Piece, SnapshotEntry, TermEntry, VoidEntry
from shared.wire.messages import PIECE_BYTES_MAX
from tests.builders import make_status
from tests.coordinator.builders import Desk

RUN = RunMemory(SteeringState())


def kept(number: int, drawn: tuple[bytes, ...] = ()) -> Kept:
    """A state that is known by its number."""
    return Kept(SchedulerMemory((), drawn, 30.0), RUN, changed_bytes=number)


class Journal:
    """A log with its one writer, the records that this makes, and a reader of both; `number` is in the next record."""

    def __init__(self, *, stateful: bool = False) -> None:
        self.desk = Desk(clients=2)
        self.number = 0
        self.drawn: tuple[bytes, ...] = ()
        self.writer = self.session(stateful)
        self.reader = JournalReader(self.desk.federation.opener(), 4 * self.desk.plan.dimension)
        self.stream: list[bytes] = []

    def session(self, stateful: bool) -> JournalWriter:
        state = (lambda: b"state of %d" % self.number) if stateful else None
        return JournalWriter(lambda _: kept(self.number, self.drawn), state, self.desk.federation.seal)

    def write(self, *frames: bytes) -> list[bytes]:
        """Let frames stand in the journal, and read them; returns whose marks there were."""
        self.stream += pack_batches(frames)
        return [session for body in pack_batches(frames) for session in self.reader.feed(0, body)]

    def seal(self, entry: Entry, body: np.ndarray | bytes = b"", weights: np.ndarray | None = None) -> SealedEntry:
        return self.desk.writer.append(entry, body, weights).sealed

    def record(self, sealed: SealedEntry) -> SealedRecord:
        self.number += 1
        record = self.writer.record(sealed)
        assert record is not None
        return record

    def accept(self, sealed: SealedEntry) -> None:
        for event in self.desk.write(*sealed.frames()):
            assert isinstance(event, Accepted)
            self.reader.observe(event)

    def step(self, sealed: SealedEntry) -> SealedRecord:
        """An entry of the log behind its record."""
        record = self.record(sealed)
        self.accept(sealed)
        self.write(*record.frames())
        return record

    # ── entries ──

    def draw(self) -> SealedEntry:
        chain = self.desk.chain
        return self.seal(DrawEntry(parent=GENESIS, term=0, version=chain.version, groups=1, offers=1, root=bytes(32)))

    def change(self) -> SealedEntry:
        chain = self.desk.chain
        assert chain.draw is not None
        weights = np.full(8, chain.version + 1.0, np.float32)
        entry = ChangeEntry(
            parent=GENESIS,
            term=0,
            version=chain.version + 1,
            draw=chain.draw.entry,
            groups=(0,),
            weights_sha256=weights_digest(weights),
            clipping_norm=1.0,
            coordinates="all",
        )
        return self.seal(entry, weights, weights)

    def void(self) -> SealedEntry:
        chain = self.desk.chain
        assert chain.draw is not None
        return self.seal(VoidEntry(parent=GENESIS, term=0, draw=chain.draw.entry, reason="test"))

    # ── what a successor has ──

    @property
    def found(self) -> int | None:
        state = self.reader.took_office().kept
        return None if state is None else state.changed_bytes


def test_without_records_a_session_begins_with_nothing() -> None:
    journal = Journal()

    assert journal.reader.took_office() == coordinator.journal.TookOffice()
    assert not journal.reader.is_behind


def test_the_newest_record_counts() -> None:
    journal = Journal()
    for make in (journal.draw, journal.change, journal.draw, journal.void):
        journal.step(make())
        assert journal.found == journal.number
        assert not journal.reader.is_behind


def test_entries_that_change_nothing_have_no_record() -> None:
    journal = Journal()

    assert journal.writer.record(journal.seal(TermEntry(parent=GENESIS, term=2, session=b"s" * 16))) is None


def test_a_record_whose_entry_the_log_refused_does_not_count() -> None:
    journal = Journal()
    journal.step(journal.draw())
    late = journal.record(journal.void())
    journal.write(*late.frames())

    assert journal.found == 1
    assert not journal.reader.is_behind


@pytest.mark.parametrize("kept_frames", [slice(0, -1), slice(1, None), slice(0, 0)], ids=["pieces", "record", "none"])
def test_a_torn_record_does_not_count(kept_frames: slice) -> None:
    journal = Journal()
    journal.step(journal.draw())
    change = journal.change()
    frames = list(journal.record(change).frames())
    journal.accept(change)
    journal.write(*frames[kept_frames])

    assert len(frames) == 2
    assert journal.found == 1
    assert journal.reader.is_behind


def test_a_record_that_was_published_again_changes_nothing() -> None:
    journal = Journal()
    first = journal.step(journal.draw())
    journal.step(journal.change())
    journal.write(*first.frames(), *first.frames())

    assert journal.found == 2


def test_what_others_sign_or_nobody_is_no_record() -> None:
    journal = Journal()
    record = journal.step(journal.draw())
    forged = bytearray(record.frame)
    forged[-1] ^= 1
    journal.write(bytes(forged), journal.desk.federation.seal_as("client-0", make_status()))
    journal.reader.feed(0, b"not a batch")

    assert journal.found == 1


def test_the_sessions_whose_marks_stand_there_are_told() -> None:
    journal = Journal()
    marks = [journal.desk.federation.seal(Mark(session=bytes([number]) * 16)) for number in (1, 2)]

    assert journal.write(*marks) == [b"\1" * 16, b"\2" * 16]


def test_no_more_entries_are_remembered_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator.journal, "ENTRIES_MAX", 1)
    journal = Journal()
    draw = journal.draw()
    record = journal.record(draw)
    journal.accept(draw)
    journal.accept(journal.change())
    journal.write(*record.frames())

    assert journal.found is None
    assert journal.reader.is_behind


def test_a_state_of_many_pieces_comes_together() -> None:
    journal = Journal()
    journal.drawn = (journal.desk.offer("client-0").frame, b"o" * (3 * PIECE_BYTES_MAX))
    journal.step(journal.draw())

    assert journal.found == 1


# ── the offers of the open draw ──


def test_the_offers_of_the_open_draw_come_back_as_their_clients_signed_them() -> None:
    journal = Journal()
    offers = [journal.desk.offer(client) for client in journal.desk.clients]
    journal.drawn = (*(offer.frame for offer in offers), b"no offer", journal.desk.status("client-0").frame)
    journal.step(journal.draw())

    drawn = journal.reader.took_office().drawn
    assert [(one.client, one.offer, one.digest, one.frame) for one in drawn] == [
        (offer.client, offer.offer, offer.digest, offer.frame) for offer in offers
    ]


def test_the_offers_of_a_draw_before_the_open_one_are_not_taken_for_its() -> None:
    journal = Journal()
    journal.drawn = (journal.desk.offer("client-0").frame,)
    journal.step(journal.draw())
    journal.drawn = ()
    journal.accept(journal.void())
    journal.accept(journal.draw())

    assert journal.reader.is_behind
    assert journal.reader.took_office().drawn == ()
    assert journal.found == 1


# ── the optimizer's state ──


def test_the_optimizers_state_is_that_of_the_newest_change_through_draws_and_voids() -> None:
    journal = Journal(stateful=True)
    for make in (journal.draw, journal.change):
        journal.step(make())
    for make in (journal.draw, journal.void, journal.draw):
        assert journal.step(make()).record.optimizer is None
        assert journal.reader.took_office().optimizer == b"state of 2"


def test_the_optimizers_state_of_an_older_version_is_none() -> None:
    journal = Journal(stateful=True)
    for make in (journal.draw, journal.change, journal.draw):
        journal.step(make())
    journal.accept(journal.change())

    assert journal.reader.took_office().optimizer is None
    assert journal.found == 3


def test_an_optimizer_without_state_is_never_written() -> None:
    journal = Journal()

    assert [journal.step(make()).record.optimizer for make in (journal.draw, journal.change)] == [None, None]
    assert journal.reader.took_office().optimizer is None


def records_with_optimizer(journal: Journal, voids: int) -> Sequence[int]:
    numbers = []
    for _ in range(voids):
        for make in (journal.draw, journal.void):
            if journal.step(make()).record.optimizer is not None:
                numbers.append(journal.number)
    return numbers


def test_the_optimizers_state_is_written_again_before_the_stream_may_drop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(stateful=True)
    assert records_with_optimizer(journal, REPEAT_RECORDS) == [1, 1 + REPEAT_RECORDS]

    monkeypatch.setattr(coordinator.journal, "REPEAT_BYTES", 1)
    assert len(records_with_optimizer(journal, 2)) == 4


def test_a_session_begins_with_a_whole_record() -> None:
    journal = Journal(stateful=True)
    for make in (journal.draw, journal.change):
        journal.step(make())
    journal.writer = journal.session(stateful=True)

    assert journal.step(journal.draw()).record.optimizer is not None


# ── the state's encoding ──


def test_a_state_comes_back_as_it_was() -> None:
    worst, last = Evaluation(version=3, loss=math.inf, metrics={"accuracy": 0.1}), Evaluation(version=4, loss=0.1 + 0.2)
    steering = SteeringState(0.25, BestVersion(last), 4, 4, 3, worst, last, 2, norm_is_high=True)
    clients = (ClientMemory("a", 7, 8, b"frame", 2, 12, 5, live=True), ClientMemory("b"))
    state = Kept(SchedulerMemory(clients, (b"one", b"two"), 31.5), RunMemory(steering, 2, {"a": 3}), 1 << 40)

    assert decode_kept(state.encode()) == state


@pytest.mark.parametrize("data", [b"", b"\xc1", encode_fields({"scheduler": 1}), kept(1).encode()[:-1]])
def test_what_is_no_state_is_never_guessed_at(data: bytes) -> None:
    with pytest.raises(StateError, match="cannot read"):
        decode_kept(data)


def test_a_record_is_sealed_piece_by_piece_and_names_every_piece() -> None:
    journal = Journal(stateful=True)
    sealed = journal.draw()
    record = journal.record(sealed)
    opener = journal.desk.federation.opener()
    *pieces, last = [opener.open(frame).message for frame in record.frames()]

    assert [type(piece) for piece in pieces] == [Piece] * 2
    assert last == record.record
    assert record.record.entry == sealed.digest
    assert not isinstance(sealed.entry, SnapshotEntry)
