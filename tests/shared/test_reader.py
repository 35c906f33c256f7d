"""Every reader of one log holds the same chain and weights, wherever it began and whatever else stands there."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.crypto.signing import SigningKey
from shared.directory import Directory, sign_directory
from shared.errors import PlanError, RefusalReason, RemoteProtocolError
from shared.membership import Membership
from shared.modellog import reader as reader_module
from shared.modellog.chain import ChainState
from shared.modellog.entries import SealedEntry, seal_entry
from shared.modellog.listed import encode_listed, listed_size
from shared.modellog.reader import Accepted, LogEvent, LogReader, Marked, Skipped, round_coordinates, weights_digest
from shared.plan import Plan
from shared.plan_sections import RoundPlan
from shared.wire.framing import pack_batches
from shared.wire.log_messages import DirectoryEntry, Entry, Mark, Piece, SnapshotEntry
from shared.wire.messages import PIECE_BYTES_MAX
from tests.builders import ENROLMENT, LogBook, make_federation, make_offer, signing_key, tiny_plan

FEDERATION = make_federation()
SPARSE = tiny_plan(8)
DENSE = tiny_plan(8, codec={"selection": "dense", "density": 1})
LARGE = tiny_plan(600_000, codec={"selection": "dense", "density": 1})
"""Three pieces a model."""


def values(number: float, dimension: int = 8) -> np.ndarray:
    return np.full(dimension, number, np.float32)


def log_of(plan: Plan) -> LogBook:
    book = LogBook(FEDERATION, plan)
    book.snapshot()
    return book


def read(stream: list[bytes], start: int = 0) -> tuple[LogReader, list[LogEvent]]:
    log = FEDERATION.reader()
    events = [event for offset, body in enumerate(stream[start:], start) for event in log.feed(offset, body)]
    return log, events


def state_of(log: LogReader) -> tuple[Any, ...]:
    """All that two readers must agree on. The session is known only to those who saw its term entry."""
    chain = log.chain
    assert isinstance(chain, ChainState)
    coordinates = None if log.coordinates is None else log.coordinates.tobytes()
    place = (chain.head, chain.term, chain.version, chain.version_head, chain.earlier_heads, chain.attempt, chain.draw)
    values = (chain.weights_sha256, chain.clipping_norm, log.weights.tobytes(), coordinates)
    return (*place, *values, log.plan, log.plan_digest, log.directory_digest, log.snapshot_offset)


def history(plan: Plan) -> LogBook:
    """A log with everything in it: steps, a void draw, another term, several snapshots."""
    book = log_of(plan)
    for number in range(1, 4):
        book.step(values(number, plan.dimension))
    book.draw(groups=3)
    book.void()
    book.snapshot()
    book.step(values(5, plan.dimension))
    book.term()
    book.snapshot()
    book.draw(groups=2)
    book.change(values(6, plan.dimension), groups=(1,), clipping_norm=0.25)
    book.draw()
    return book


# ── weights ──


@pytest.mark.parametrize("plan", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_a_reader_holds_the_writers_weights(plan: Plan) -> None:
    book, expected = log_of(plan), values(0)
    for number in range(1, 4):
        positions = slice(None) if book.reader.coordinates is None else book.reader.coordinates
        expected[positions] = number
        book.step(values(number))

    log, events = read(book.stream)

    assert np.array_equal(log.weights, expected)
    assert log.chain.weights_sha256 == weights_digest(expected)
    assert [type(event) for event in events] == [Accepted] * 7


def test_a_change_entry_may_carry_all_weights_in_a_sparse_federation() -> None:
    book = log_of(SPARSE)
    book.draw()
    entry, _ = book.change_draft(values(3))
    entry = entry.model_copy(update={"coordinates": "all", "weights_sha256": weights_digest(values(3))})
    book.append(entry, values(3))

    assert np.array_equal(read(book.stream)[0].weights, values(3))


def test_the_weights_of_a_version_never_change_in_place() -> None:
    book = log_of(SPARSE)
    kept = [book.reader.weights]
    for number in range(1, 4):
        book.step(values(number))
        kept.append(book.reader.weights)

    assert [weights.max() for weights in kept] == [0, 1, 2, 3]
    assert not any(np.shares_memory(a, b) for a, b in itertools.pairwise(kept))


def test_the_rounds_coordinates_follow_from_the_entry_that_made_the_version() -> None:
    book = log_of(SPARSE)
    first = book.reader.coordinates
    assert np.array_equal(first, round_coordinates(SPARSE, book.chain.version_head))

    # A void draw and a snapshot make no version.
    book.draw()
    book.void()
    book.snapshot()
    assert np.array_equal(book.reader.coordinates, first)

    change = book.step(values(1))
    assert np.array_equal(book.reader.coordinates, round_coordinates(SPARSE, change.digest))
    assert round_coordinates(DENSE, change.digest) is None


def test_a_model_of_several_pieces_is_read_and_its_writer_copies_nothing() -> None:
    book = LogBook(FEDERATION, LARGE, np.random.default_rng(1).random(600_000, np.float32))
    writer = FEDERATION.reader()
    sealed = book.seal(*book.snapshot_draft())
    writer.expect(sealed, book.first_weights)

    book.write(*sealed.frames())
    for offset, body in enumerate(book.stream):
        events = writer.feed(offset, body)

    assert isinstance(events[0], Accepted)
    assert len(sealed.entry.pieces) == 3
    assert writer.weights is book.first_weights
    assert np.array_equal(book.reader.weights, book.first_weights)
    assert state_of(writer) == state_of(book.reader)


# ── where a reader begins ──


@pytest.mark.parametrize("plan", [SPARSE, DENSE, LARGE], ids=["sparse", "dense", "large"])
def test_a_reader_that_begins_at_any_snapshot_agrees_with_one_that_read_all(plan: Plan) -> None:
    book = history(plan)
    everything, events = read(book.stream)
    snapshots = [event for event in events if isinstance(event, Accepted) and isinstance(event.entry, SnapshotEntry)]

    assert len(snapshots) == 3
    assert everything.snapshot_offset == snapshots[-1].first_offset
    for snapshot in snapshots:
        late, events = read(book.stream, snapshot.first_offset)
        assert isinstance(events[0], Accepted)
        assert events[0].digest == snapshot.digest
        assert state_of(late) == state_of(everything)


def test_a_reader_that_begins_anywhere_waits_for_the_next_whole_snapshot() -> None:
    book = history(LARGE)
    book.void()
    everything, _ = read(book.stream)
    offsets = [
        event.first_offset
        for event in read(book.stream)[1]
        if isinstance(event, Accepted) and isinstance(event.entry, SnapshotEntry)
    ]

    for start in range(len(book.stream)):
        late, events = read(book.stream, start)
        if start <= offsets[-1]:
            assert state_of(late) == state_of(everything)
        else:
            assert late.chain is None
            assert all(isinstance(event, Skipped) for event in events)


def test_a_mark_goes_by_and_is_no_part_of_the_chain() -> None:
    book = log_of(SPARSE)
    head = book.chain.head

    events = book.write(FEDERATION.seal(Mark(session=b"m" * 16)))

    assert events == [Marked(b"m" * 16)]
    assert book.chain.head == head


# ── what is skipped, by everybody ──


WRONG_BODIES = ("wrong hash", "too long", "too short", "odd size", "empty", "other coordinates")
WRONG_PIECES = ("missing piece", "no pieces", "piece too many", "piece too few", "other order")


def wrong_frames(book: LogBook, case: str) -> list[bytes]:
    """An entry that an honest writer never writes, behind its pieces."""
    change, body = book.change_draft(weights_of(case, book.plan))
    good = book.seal(change, body)
    pieces = good.entry.pieces
    listed = {"piece too many": (*pieces, *pieces[:1]), "piece too few": pieces[:-1], "other order": pieces[::-1]}
    match case:
        case "wrong hash":
            change = change.model_copy(update={"weights_sha256": bytes(32)})
        case "other coordinates":
            change = change.model_copy(update={"coordinates": "all" if change.coordinates == "round" else "round"})
        case "too long":
            body = np.append(body, np.float32(0))
        case "too short":
            body = body[:-1].copy()
        case "odd size" | "empty":
            body = body.tobytes()[:-1] if case == "odd size" else b""
        case "missing piece":
            return list(good.frames())[1:]
        case "no pieces":
            return [good.frame]
        case _:
            wrong = good.entry.model_copy(update={"pieces": listed[case]})
            return [*list(good.frames())[:-1], FEDERATION.seal(wrong)]
    return list(book.seal(change, body).frames())


def weights_of(case: str, plan: Plan) -> np.ndarray:
    """Other weights for every case, and no two pieces alike: nothing fits by what another entry left behind."""
    return np.random.default_rng(list(case.encode())).random(plan.dimension, np.float32)


@pytest.mark.parametrize("plan", [SPARSE, DENSE, LARGE], ids=["sparse", "dense", "large"])
def test_an_entry_whose_body_is_wrong_is_skipped_and_a_good_one_still_fits(plan: Plan) -> None:
    book = log_of(plan)
    book.draw()
    before = state_of(book.reader)
    for case in (*WRONG_BODIES, *(WRONG_PIECES if plan is LARGE else ())):
        events = book.write(*wrong_frames(book, case))
        assert [type(event) for event in events] == [Skipped], case
        assert state_of(book.reader) == before, case

    book.change(weights_of("good", plan))
    book.snapshot()

    assert book.chain.version == 1
    assert state_of(read(book.stream)[0]) == state_of(book.reader)
    assert state_of(read(book.stream, book.reader.snapshot_offset)[0]) == state_of(book.reader)


def test_a_snapshot_that_is_not_the_present_model_is_skipped_by_those_who_hold_it() -> None:
    """Or those who begin with it could never follow those who passed it."""
    book = log_of(LARGE)
    entry, body = book.snapshot_draft()
    wrong = body.copy()
    wrong[-1] = 1

    events = book.write(*seal_on(book, entry, wrong).frames())
    assert [type(event) for event in events] == [Skipped]
    assert read(book.stream, 4)[0].chain is None

    book.snapshot()
    assert state_of(read(book.stream, 4)[0]) == state_of(book.reader)


def seal_on(book: LogBook, entry: Entry, body: np.ndarray) -> SealedEntry:
    entry = entry.model_copy(update={"parent": book.chain.head, "term": book.chain.term})
    return seal_entry(entry, body, FEDERATION.seal)


def test_a_snapshot_may_change_the_number_of_rounds_for_all_readers() -> None:
    book = log_of(SPARSE)
    book.step(values(1))
    place = len(book.stream)
    entry, body = book.snapshot_draft()
    longer = SPARSE.model_copy(update={"round": SPARSE.round.model_copy(update={"rounds": 99})})
    book.append(entry.model_copy(update={"plan": longer.encode()}), body)
    book.step(values(9))

    assert book.reader.plan == longer
    assert book.chain.version == 2
    late = FEDERATION.reader()
    for offset, message in enumerate(book.stream[place:], start=place):
        late.feed(offset, message)
    assert (late.plan, late.plan_digest, late.chain) == (longer, SPARSE.digest(), book.chain)


@pytest.mark.parametrize("plan", [b"", b"{}", b"nonsense"])
def test_a_snapshot_whose_plan_cannot_be_read_is_skipped(plan: bytes) -> None:
    book = log_of(SPARSE)
    book.step(values(1))
    entry, body = book.snapshot_draft()
    (event,) = book.write(*book.seal(entry.model_copy(update={"plan": plan}), body).frames())

    assert isinstance(event, Skipped)
    assert book.reader.plan == SPARSE


def test_a_snapshot_with_another_plan_is_skipped() -> None:
    book = log_of(SPARSE)
    entry, body = book.snapshot_draft()
    events = book.write(
        *book.seal(entry.model_copy(update={"plan": tiny_plan(8, weight_records_max=11).encode()}), body).frames()
    )

    assert [event.reason for event in events] == [RefusalReason.NOT_ALLOWED]
    assert book.reader.plan == SPARSE


def next_directory(book: LogBook, **changes: object) -> Directory:
    """The directory after the one in force."""
    present = book.reader.directory
    return Directory.model_validate(present.model_dump() | {"number": present.number + 1} | changes)


def directory_entry(directory: Directory, key: SigningKey = ENROLMENT) -> tuple[DirectoryEntry, bytes]:
    entry = DirectoryEntry(parent=bytes(32), term=0, number=directory.number, digest=directory.digest())
    return entry, sign_directory(directory, key)


def test_a_new_directory_counts_for_who_follows_and_who_joins_later() -> None:
    book = log_of(SPARSE)
    directory = next_directory(book, revoked=frozenset({"client-0"}))
    book.append(*directory_entry(directory))
    book.step(np.ones(8, np.float32))
    book.snapshot()

    late, _ = read(book.stream, book.reader.snapshot_offset)
    for reader in (book.reader, late, read(book.stream)[0]):
        assert reader.directory == reader.members.directory == directory
        assert reader.directory_digest == directory.digest()
        assert state_of(reader) == state_of(book.reader)
        with pytest.raises(RemoteProtocolError, match="revoked"):
            reader.members.directory.client_key("client-0")


def test_directories_that_are_old_forged_or_of_others_are_refused() -> None:
    book = log_of(SPARSE)
    first = book.reader.directory
    second = next_directory(book)
    entry, body = directory_entry(second)
    cases = [
        (directory_entry(first), RefusalReason.NOT_ALLOWED),
        (directory_entry(second, signing_key(77)), RefusalReason.BAD_SIGNATURE),
        (directory_entry(next_directory(book, federation="other")), RefusalReason.BAD_SIGNATURE),
        (directory_entry(next_directory(book, coordinator_key="ab" * 32)), RefusalReason.BAD_SIGNATURE),
        ((entry.model_copy(update={"number": 3}), body), RefusalReason.BAD_SIGNATURE),
        ((entry.model_copy(update={"digest": bytes(32)}), body), RefusalReason.BAD_SIGNATURE),
    ]
    for (entry, body), reason in cases:
        assert [event.reason for event in book.write(*book.seal(entry, body).frames())] == [reason]
    assert book.reader.directory == book.reader.members.directory == first

    book.draw()
    (skipped,) = book.write(*book.seal(*directory_entry(second)).frames())
    assert skipped.reason is RefusalReason.NOT_ALLOWED
    book.void()
    book.append(*directory_entry(second))
    (skipped,) = book.write(*book.seal(*directory_entry(second)).frames())
    assert skipped.reason is RefusalReason.NOT_ALLOWED


def test_a_reader_that_knows_a_newer_directory_than_the_log_keeps_it() -> None:
    book = log_of(SPARSE)
    newer = next_directory(book, revoked=frozenset({"client-1"}))
    members = Membership(sign_directory(newer, ENROLMENT), ENROLMENT.public)
    reader = LogReader(FEDERATION.opener(), members)
    reader.feed(0, book.stream[0])

    assert state_of(reader) == state_of(book.reader)
    assert reader.directory == FEDERATION.directory
    assert members.directory == newer


def test_a_snapshot_whose_directory_is_not_there_counts_for_nobody() -> None:
    book = log_of(SPARSE)
    entry, body = book.snapshot_draft()
    sealed = seal_entry(entry.model_copy(update={"parent": book.chain.head, "term": 1}), body, FEDERATION.seal)

    assert [event.reason for event in book.write(sealed.frame)] == [RefusalReason.WRONG_SIZE]
    fresh = FEDERATION.reader()
    (body_of_stream,) = pack_batches([sealed.frame])
    assert [type(event) for event in fresh.feed(0, body_of_stream)] == [Skipped]


def test_a_plan_that_cannot_be_read_is_said() -> None:
    book = LogBook(FEDERATION, SPARSE)
    entry, body = book.snapshot_draft()
    sealed = seal_entry(entry.model_copy(update={"plan": b"{}"}), body, FEDERATION.seal)

    with pytest.raises(PlanError, match=r"plan\.workload"):
        book.write(*sealed.frames())


def test_what_is_no_entry_is_skipped() -> None:
    book = log_of(SPARSE)
    book.draw()
    frame = book.seal(book.void_draft()).frame
    stranger = FEDERATION.seal_as("client-0", make_offer())

    assert [event.reason for event in book.reader.feed(9, b"rubbish")] == [RefusalReason.MALFORMED]
    assert [event.reason for event in book.write(frame[:-1] + b"?")] == [RefusalReason.BAD_SIGNATURE]
    assert [event.reason for event in book.write(stranger)] == [RefusalReason.UNEXPECTED_KIND]
    # What stands beside them in the same message still counts.
    events = book.write(stranger, frame)
    assert [type(event) for event in events] == [Skipped, Accepted]
    assert isinstance(book.write(frame)[0], Skipped)


@given(schedule=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
@settings(max_examples=25)
def test_sending_again_what_was_sent_before_changes_nothing(schedule: list[tuple[int, int]]) -> None:
    """A publisher that lost its connection sends the last few messages again, in their order."""
    book = history(DENSE)
    expected = state_of(book.reader)
    stream = list(book.stream)
    for position, length in schedule:
        end = 1 + position % len(stream)
        stream[end:end] = stream[max(0, end - length) : end]

    log, _ = read(stream)

    # Only where the last snapshot begins may have moved: an inline snapshot counts where it was first accepted.
    assert state_of(log)[:-1] == expected[:-1]


# ── two writers ──


def test_pieces_count_only_behind_the_parent_of_their_entry() -> None:
    """A reader that began at the parent has not seen what stands before it, and must come to the same verdict."""
    book = log_of(LARGE)
    target = np.random.default_rng(3).random(LARGE.dimension, np.float32)
    body = target.data.cast("B")
    early = [bytes(body[start : start + PIECE_BYTES_MAX]) for start in range(0, body.nbytes, PIECE_BYTES_MAX)]
    book.write(*(FEDERATION.seal(Piece(body=piece)) for piece in early))
    book.snapshot()
    book.draw()
    change, _ = book.change_draft(target)
    book.write(book.seal(change, target).frame)

    late, _ = read(book.stream, book.reader.snapshot_offset)

    assert state_of(late) == state_of(book.reader)
    assert book.chain.version == 0


def test_a_replaced_writer_flooding_the_log_does_not_divide_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small bound the flood pushes a piece of the good entry out: for all readers, or for none."""
    monkeypatch.setattr(reader_module, "PIECES_BYTES_FLOOR", 1000)
    book = log_of(LARGE)
    book.draw()
    book.void()
    book.snapshot()
    book.draw()
    *pieces, entry = book.seal(
        *book.change_draft(np.random.default_rng(4).random(LARGE.dimension, np.float32))
    ).frames()
    flood = [FEDERATION.seal(Piece(body=bytes([number]) * PIECE_BYTES_MAX)) for number in range(4)]

    book.write(pieces[0], *flood, *pieces[1:], entry)

    assert book.chain.version == 0
    assert state_of(read(book.stream, book.reader.snapshot_offset)[0]) == state_of(book.reader)
    book.change(values(1, LARGE.dimension))
    assert book.chain.version == 1
    assert state_of(read(book.stream, book.reader.snapshot_offset)[0]) == state_of(book.reader)


def test_a_founder_that_came_second_reads_the_other_ones_log() -> None:
    """Both expect their own first snapshot; whoever is second must see the first one, not found a second chain."""
    first, second = LogBook(FEDERATION, LARGE, values(1, 600_000)), LogBook(FEDERATION, LARGE, values(2, 600_000))
    ours = second.seal(*second.snapshot_draft())
    second.reader.expect(ours, second.first_weights)

    theirs = first.seal(*first.snapshot_draft())
    events = second.write(*theirs.frames(), *ours.frames())

    assert [(type(event), event.digest) for event in events] == [(Accepted, theirs.digest), (Skipped, ours.digest)]
    assert second.reader.weights[0] == 1
    assert state_of(read(second.stream)[0]) == state_of(second.reader)


def test_a_writer_follows_another_ones_entries_after_its_own() -> None:
    book = log_of(LARGE)
    book.draw()
    writer, _ = read(book.stream)
    ours = book.seal(*book.change_draft(values(1, 600_000)))
    theirs = book.seal(*book.change_draft(values(2, 600_000)))
    writer.expect(ours, values(1, 600_000))

    start = len(book.stream)
    book.write(*theirs.frames(), *ours.frames())
    for offset, body in enumerate(book.stream[start:], start):
        writer.feed(offset, body)

    assert state_of(writer) == state_of(book.reader)
    assert writer.weights[0] == 2


def test_an_expected_entry_counts_only_with_its_pieces() -> None:
    """The writer must not believe in an entry that nobody else can read."""
    book = log_of(LARGE)
    book.draw()
    writer, _ = read(book.stream)
    ours = book.seal(*book.change_draft(values(1, 600_000)))
    writer.expect(ours, values(1, 600_000))

    (body,) = pack_batches([ours.frame])

    assert isinstance(writer.feed(9, body)[0], Skipped)
    assert writer.chain.version == 0


def test_a_reader_that_began_with_a_replaced_writers_snapshot_finds_the_chain_again() -> None:
    """Its snapshot was refused by all who read on; one who begins there cannot know, until the next true one."""
    book = log_of(SPARSE)
    stale = book.seal(*book.snapshot_draft())
    book.step(values(1))
    book.term()
    start = len(book.stream)
    assert [type(event) for event in book.write(*stale.frames())] == [Skipped]
    book.step(values(2))
    book.snapshot()
    book.step(values(3))

    late, events = read(book.stream, start)

    assert [type(event) for event in events] == [Accepted, Skipped, Skipped, Accepted, Accepted, Accepted]
    assert state_of(late) == state_of(book.reader)


def test_a_chain_that_was_built_on_is_never_left() -> None:
    book = log_of(SPARSE)
    book.draw()
    entry, body = book.snapshot_draft()
    foreign = seal_entry(entry.model_copy(update={"parent": b"x" * 32, "term": 9}), body, FEDERATION.seal)

    assert [type(event) for event in book.write(foreign.frame)] == [Skipped]


@given(order=st.lists(st.booleans(), max_size=14))
@settings(max_examples=30)
def test_interleaved_writers_leave_one_chain_for_every_reader(order: list[bool]) -> None:
    """Two sessions write at one head, and believe it theirs; their frames reach the log in any order."""
    book = log_of(tiny_plan(300_000, codec={"selection": "dense", "density": 1}))
    entry, weights = book.snapshot_draft()
    other = entry.model_copy(update={"plan": book.plan.model_copy(update={"round": RoundPlan(rounds=99)}).encode()})
    first = [*book.seal(entry, weights).frames(), book.seal(book.draw_draft(groups=2)).frame]
    second = [book.seal(book.draw_draft(groups=3)).frame, *book.seal(other, weights).frames()]
    for from_first in order:
        queue = first if from_first else second
        if queue:
            book.write(queue.pop(0))
    if book.chain.draw is not None:
        book.void()
    book.snapshot()

    everything, events = read(book.stream)
    accepted = [event for event in events if isinstance(event, Accepted)]

    assert len({event.entry.parent for event in accepted}) == len(accepted)
    for event in accepted:
        if isinstance(event.entry, SnapshotEntry):
            assert state_of(read(book.stream, event.first_offset)[0]) == state_of(everything)


# ── positions that a change lists ──

TOP_K = tiny_plan(64, codec={"selection": "top_k", "density": 0.1})


def listed_change(book: LogBook, body: bytes, after: np.ndarray) -> list[bytes]:
    change, _ = book.change_draft(after)
    change = change.model_copy(update={"coordinates": "listed", "weights_sha256": weights_digest(after)})
    return list(book.seal(change, body).frames())


@settings(max_examples=40)
@given(st.sets(st.integers(0, 63), max_size=60), st.integers(0, 1 << 32))
def test_a_change_that_lists_its_positions_leads_to_the_writers_weights(positions: set[int], seed: int) -> None:
    book = log_of(TOP_K)
    book.draw()
    after = book.reader.weights.copy()
    after[sorted(positions)] = np.random.default_rng(seed).standard_normal(len(positions), dtype=np.float32)
    body = encode_listed(book.reader.weights, after)
    if body is None:
        assert listed_size(64, len(positions)) >= after.nbytes
        return

    assert len(body) == listed_size(64, len(positions)) < after.nbytes
    book.write(*listed_change(book, body, after))
    assert book.chain.version == 1
    assert book.reader.weights.tobytes() == after.tobytes()


@pytest.mark.parametrize("case", ["truncated", "longer", "count", "positions", "as long as the model", "empty"])
def test_a_malformed_list_is_no_change(case: str) -> None:
    book = log_of(TOP_K)
    book.draw()
    after = book.reader.weights.copy()
    after[[3, 9, 40]] = 1.5
    body = encode_listed(book.reader.weights, after)
    assert body is not None
    forged = {
        "truncated": body[:-1],
        "longer": body + b"\0",
        "count": b"\xff\xff\xff\xff" + body[4:],
        "positions": body[:4] + b"\xff" + body[5:],
        "as long as the model": bytes(after.nbytes),
        "empty": b"",
    }[case]
    book.write(*listed_change(book, forged, after))
    assert book.chain.version == 0

    book.write(*listed_change(book, body, after))
    assert book.chain.version == 1


def test_only_top_k_lists_positions() -> None:
    book = log_of(DENSE)
    book.draw()
    after = book.reader.weights.copy()
    after[0] = 1.5
    body = encode_listed(book.reader.weights, after)
    assert body is not None
    book.write(*listed_change(book, body, after))
    assert book.chain.version == 0
