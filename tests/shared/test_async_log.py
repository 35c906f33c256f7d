"""The log in asynchronous mode: which versions' heads every reader knows, and coordinates that the draw chooses."""

from __future__ import annotations

import numpy as np
import pytest

from shared.errors import RefusalReason
from shared.modellog.reader import Skipped, round_coordinates
from shared.plan import Plan
from shared.rounds import ground_of, staleness_weight
from shared.wire.framing import pack_batches
from tests.builders import LogBook, tiny_plan
from tests.shared.test_reader import history, log_of, read, state_of, values


def plan_of(max_staleness: int = 2) -> Plan:
    return tiny_plan(8, round={"mode": "async", "max_staleness": max_staleness})


def of_versions(count: int, max_staleness: int = 2) -> tuple[LogBook, list[bytes]]:
    """A log, and the head of each of its versions."""
    book = log_of(plan_of(max_staleness))
    heads = [book.chain.version_head]
    for number in range(1, count + 1):
        heads.append(book.step(values(number)).digest)
    return book, heads


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 9])
def test_a_reader_knows_the_heads_of_as_many_versions_as_an_update_may_be_stale(max_staleness: int) -> None:
    book, heads = of_versions(5, max_staleness)

    known = [book.chain.head_of(version) for version in range(-1, 7)]
    oldest = max(0, 5 - max_staleness)
    assert known == [None, *(head if v >= oldest else None for v, head in enumerate(heads)), None]


def test_a_synchronous_reader_knows_the_present_versions_alone() -> None:
    book = log_of(tiny_plan(8))
    book.step(values(1))

    assert book.chain.head_of(0) is None
    assert book.chain.head_of(1) == book.chain.version_head


def test_a_void_draw_makes_no_version() -> None:
    book, heads = of_versions(3)
    book.draw()
    book.void()

    assert [book.chain.head_of(version) for version in (1, 2, 3)] == heads[1:]


@pytest.mark.parametrize("versions", [0, 1, 2, 5])
def test_a_reader_that_begins_with_a_snapshot_knows_what_all_others_know(versions: int) -> None:
    book, _ = of_versions(versions)
    start = len(book.stream)
    book.snapshot()
    book.step(values(9))

    late, _ = read(book.stream, start)
    assert late.chain == book.chain
    assert state_of(late) == state_of(book.reader)


def test_readers_that_begin_at_any_snapshot_agree() -> None:
    book = history(plan_of())
    everything, _ = read(book.stream)
    offsets = [start for start in range(len(book.stream)) if read(book.stream, start)[0].chain is not None]

    assert len(offsets) >= 3
    assert all(state_of(read(book.stream, start)[0]) == state_of(everything) for start in offsets)


@pytest.mark.parametrize("change", ["other", "fewer", "none"])
def test_a_snapshot_that_says_otherwise_is_no_part_of_the_chain(change: str) -> None:
    book, _ = of_versions(3)
    entry, body = book.snapshot_draft()
    second = entry.earlier_heads[1]
    said = {"other": (bytes(32), second), "fewer": (second,), "none": ()}[change]
    sealed = book.seal(entry.model_copy(update={"earlier_heads": said}), body)
    _, events = read([*book.stream, *pack_batches(sealed.frames())])

    assert events[-1] == Skipped(RefusalReason.NOT_ALLOWED, "SnapshotEntry after version 3", sealed.digest)


@pytest.mark.parametrize("heads", [0, 1, 3])
def test_nobody_begins_with_a_snapshot_that_holds_too_few_heads_or_too_many(heads: int) -> None:
    book, _ = of_versions(3)
    entry, body = book.snapshot_draft()
    entry = entry.model_copy(update={"earlier_heads": (bytes(32),) * heads})
    log, events = read(list(pack_batches(book.seal(entry, body).frames())))

    assert log.chain is None
    assert isinstance(events[-1], Skipped)
    assert events[-1].reason is RefusalReason.NOT_ALLOWED


def test_the_draw_chooses_the_coordinates_and_a_change_holds_their_values() -> None:
    book, _ = of_versions(1)
    assert book.reader.coordinates is None

    draw = book.draw()
    chosen = book.reader.coordinates
    assert np.array_equal(chosen, round_coordinates(book.plan, draw.digest))
    before = book.reader.weights
    book.change(values(7))
    expected = before.copy()
    expected[chosen] = 7
    assert np.array_equal(book.reader.weights, expected)
    assert book.reader.coordinates is None


def test_another_draw_of_the_same_version_chooses_others() -> None:
    book, _ = of_versions(1)
    drawn = []
    for _ in range(8):
        book.draw()
        drawn.append(tuple(book.reader.coordinates))
        book.void()
        assert book.reader.coordinates is None

    assert len(set(drawn)) > 1


def test_who_made_a_draw_knows_its_ground_before_the_log_has_it() -> None:
    book, _ = of_versions(1)
    entry = book.seal(book.draw_draft())
    ahead = ground_of(book.reader, entry.digest)
    book.write(*entry.frames())

    assert ground_of(book.reader, entry.digest) == ahead
    assert ground_of(book.reader, b"x" * 32).coordinates_digest != ahead.coordinates_digest


def test_a_fresh_update_counts_wholly_and_one_of_staleness_three_by_half() -> None:
    assert [staleness_weight(staleness) for staleness in (0, 3, 99)] == [1.0, 0.5, 0.1]
