"""The writer: one entry at a time, on top of what was read back; refused means fenced."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.log_writer import Fenced
from shared.errors import LocalProtocolError
from shared.modellog.chain import GENESIS
from shared.wire.log_messages import DrawEntry, TermEntry, VoidEntry
from tests.coordinator.builders import Desk


def draw_entry(desk: Desk) -> DrawEntry:
    return DrawEntry(parent=GENESIS, term=0, version=desk.chain.version, groups=1, offers=1, root=bytes(32))


def test_nothing_but_a_first_snapshot_is_ready_before_the_chain_begins() -> None:
    desk = Desk(founded=False)
    assert not desk.writer.ready

    weights = np.arange(8, dtype=np.float32)
    (accepted,) = desk.read_back([desk.writer.snapshot(weights)])
    assert desk.writer.ready
    assert (desk.chain.version, desk.chain.term, desk.chain.version_head) == (0, 1, accepted.accepted.digest)
    np.testing.assert_array_equal(desk.log.weights, weights)


def test_parent_and_term_are_those_of_the_head() -> None:
    desk = Desk()

    entry = desk.writer.append(draw_entry(desk)).sealed.entry
    assert (entry.parent, entry.term) == (desk.chain.head, desk.chain.term)


def test_a_second_entry_waits_for_the_first_to_be_read_back() -> None:
    desk = Desk()
    first = desk.writer.append(draw_entry(desk))
    assert not desk.writer.ready
    with pytest.raises(LocalProtocolError, match="on its way"):
        desk.writer.snapshot(desk.log.weights)

    desk.read_back([first])
    assert desk.writer.ready


def test_a_repeat_of_our_entry_in_the_stream_is_harmless() -> None:
    desk = Desk()
    append = desk.writer.append(draw_entry(desk))
    frames = list(append.sealed.frames())

    desk.write(*frames, *frames)
    assert desk.writer.ready
    draw = desk.chain.draw
    assert draw is not None
    assert draw.entry == append.sealed.digest


def test_a_refused_entry_ends_the_session() -> None:
    desk = Desk()
    other = Desk()
    theirs = other.writer.append(TermEntry(parent=GENESIS, term=2, session=b"o" * 16))
    ours = desk.writer.append(draw_entry(desk))
    desk.write(*theirs.sealed.frames())

    with pytest.raises(Fenced, match="another coordinator"):
        desk.write(*ours.sealed.frames())


def test_an_entry_may_name_its_own_term() -> None:
    desk = Desk()

    desk.append(TermEntry(parent=GENESIS, term=2, session=b"s" * 16))
    assert desk.chain.term == 2
    desk.append(draw_entry(desk))
    draw = desk.chain.draw
    assert draw is not None
    desk.append(VoidEntry(parent=GENESIS, term=0, draw=draw.entry, reason="test"))
    assert (desk.chain.attempt, desk.chain.draw) == (1, None)


def test_a_later_snapshot_keeps_version_attempt_and_weights() -> None:
    desk = Desk()
    before = desk.chain

    desk.read_back([desk.writer.snapshot(desk.log.weights)])
    after = desk.chain
    assert after.head != before.head
    assert (after.version, after.version_head, after.weights_sha256) == (0, before.version_head, before.weights_sha256)
    assert desk.log.snapshot_offset == 1
