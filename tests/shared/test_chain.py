"""One rule decides what joins the chain: whoever reads the same stream comes to the same head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import RefusalReason
from shared.modellog.chain import GENESIS, ChainState, OpenDraw, advance, begin, judge
from shared.wire.log_messages import (
    ChangeEntry,
    DirectoryEntry,
    DrawEntry,
    Entry,
    RunEntry,
    SnapshotEntry,
    TermEntry,
    VoidEntry,
)
from shared.wire.messages import RunState

HEAD, MADE, WEIGHTS, DRAW, OTHER = (bytes([number]) * 32 for number in range(1, 6))
IDLE = ChainState(
    head=HEAD,
    term=3,
    version=7,
    version_head=MADE,
    attempt=1,
    weights_sha256=WEIGHTS,
    clipping_norm=0.5,
    directory_number=2,
    directory_digest=OTHER,
)
PAUSED = replace(IDLE, run=RunState.PAUSED, controlled_us=50)
STOPPING = replace(IDLE, run=RunState.STOPPING, controlled_us=50)
OPEN = replace(IDLE, head=DRAW, draw=OpenDraw(DRAW, 4, OTHER))


def snapshot(**fields: Any) -> SnapshotEntry:
    fits = {
        "parent": HEAD,
        "term": 3,
        "version": 7,
        "version_head": MADE,
        "attempt": 1,
        "weights_sha256": WEIGHTS,
        "clipping_norm": 0.5,
        "plan": b"",
        "directory_number": 2,
        "directory_digest": OTHER,
        "directory": (OTHER,),
        "run": RunState.RUNNING,
        "controlled_us": 0,
    }
    return SnapshotEntry(**{**fits, **fields})


def term(**fields: Any) -> TermEntry:
    return TermEntry(**{"parent": HEAD, "term": 4, "session": bytes(16), **fields})


def draw(**fields: Any) -> DrawEntry:
    return DrawEntry(**{"parent": HEAD, "term": 3, "version": 7, "groups": 4, "offers": 4, "root": OTHER, **fields})


def change(**fields: Any) -> ChangeEntry:
    fits = {
        "parent": DRAW,
        "term": 3,
        "version": 8,
        "draw": DRAW,
        "groups": (0, 1, 3),
        "weights_sha256": OTHER,
        "clipping_norm": 0.25,
        "coordinates": "round",
    }
    return ChangeEntry(**{**fits, **fields})


def void(**fields: Any) -> VoidEntry:
    return VoidEntry(**{"parent": DRAW, "term": 3, "draw": DRAW, "reason": "", **fields})


def run(state: RunState = RunState.PAUSED, **fields: Any) -> RunEntry:
    return RunEntry(**{"parent": HEAD, "term": 3, "run": state, "issued_us": 60, "version": 7, **fields})


def directory(**fields: Any) -> DirectoryEntry:
    return DirectoryEntry(**{"parent": HEAD, "term": 3, "number": 3, "digest": DRAW, **fields})


PARENT, TERM, FIT = RefusalReason.WRONG_PARENT, RefusalReason.WRONG_TERM, RefusalReason.NOT_ALLOWED


@pytest.mark.parametrize(
    ("state", "entry", "refusal"),
    [
        # ── idle ──
        (IDLE, snapshot(), None),
        (IDLE, snapshot(parent=OTHER), PARENT),
        (IDLE, snapshot(term=2), TERM),
        (IDLE, snapshot(term=4), TERM),
        (IDLE, snapshot(version=8), FIT),
        (IDLE, snapshot(version_head=OTHER), FIT),
        (IDLE, snapshot(version_head=GENESIS), FIT),
        (IDLE, snapshot(attempt=0), FIT),
        (IDLE, snapshot(weights_sha256=OTHER), FIT),
        (IDLE, snapshot(clipping_norm=0.4), FIT),
        (IDLE, term(), None),
        (IDLE, term(parent=OTHER), PARENT),
        (IDLE, term(term=3), TERM),
        (IDLE, term(term=5), TERM),
        (IDLE, draw(), None),
        (IDLE, draw(parent=OTHER), PARENT),
        (IDLE, draw(term=2), TERM),
        (IDLE, draw(version=8), FIT),
        (IDLE, draw(version=6), FIT),
        (IDLE, change(parent=HEAD), FIT),
        (IDLE, change(), PARENT),
        (IDLE, change(parent=HEAD, term=4), TERM),
        (IDLE, void(parent=HEAD), FIT),
        (IDLE, void(), PARENT),
        (IDLE, void(parent=HEAD, term=2), TERM),
        # ── a draw is open ──
        (OPEN, snapshot(parent=DRAW), FIT),
        (OPEN, snapshot(), PARENT),
        (OPEN, snapshot(parent=DRAW, term=2), TERM),
        (OPEN, term(parent=DRAW), None),
        (OPEN, term(), PARENT),
        (OPEN, term(parent=DRAW, term=3), TERM),
        (OPEN, draw(parent=DRAW), FIT),
        (OPEN, draw(), PARENT),
        (OPEN, draw(parent=DRAW, term=4), TERM),
        (OPEN, change(), None),
        (OPEN, change(parent=HEAD), PARENT),
        (OPEN, change(term=4), TERM),
        (OPEN, change(version=7), FIT),
        (OPEN, change(version=9), FIT),
        (OPEN, change(draw=OTHER), FIT),
        (OPEN, change(groups=(0, 4)), FIT),
        (OPEN, change(groups=(0, 1, 1)), FIT),
        (OPEN, void(), None),
        (OPEN, void(parent=HEAD), PARENT),
        (OPEN, void(term=2), TERM),
        (OPEN, void(draw=OTHER), FIT),
        # ── who belongs ──
        (IDLE, directory(), None),
        (IDLE, directory(number=9), None),
        (IDLE, directory(number=2), FIT),
        (IDLE, directory(number=1), FIT),
        (OPEN, directory(parent=DRAW), FIT),
        (IDLE, directory(term=2), TERM),
        (IDLE, directory(parent=OTHER), PARENT),
        (IDLE, snapshot(directory_number=3), FIT),
        (IDLE, snapshot(directory_digest=DRAW), FIT),
        # ── the operator ──
        (IDLE, run(), None),
        (OPEN, run(parent=DRAW), None),
        (PAUSED, run(), None),
        (PAUSED, run(RunState.RUNNING, issued_us=51), None),
        (PAUSED, run(RunState.RUNNING, issued_us=50), FIT),
        (STOPPING, run(RunState.RUNNING, issued_us=49), FIT),
        (IDLE, run(version=6), FIT),
        (IDLE, run(version=8), FIT),
        (IDLE, run(term=2), TERM),
        (IDLE, run(parent=OTHER), PARENT),
        (PAUSED, snapshot(run=RunState.PAUSED, controlled_us=50), None),
        (PAUSED, snapshot(run=RunState.PAUSED, controlled_us=0), FIT),
        (PAUSED, snapshot(run=RunState.RUNNING, controlled_us=50), FIT),
    ],
)
def test_what_joins_the_chain(state: ChainState, entry: Entry, refusal: RefusalReason | None) -> None:
    assert judge(state, entry) is refusal


@pytest.mark.parametrize(
    ("state", "entry", "expected"),
    [
        (IDLE, snapshot(), replace(IDLE, head=OTHER)),
        (IDLE, term(), replace(IDLE, head=OTHER, term=4, session=bytes(16))),
        (OPEN, term(parent=DRAW), replace(OPEN, head=OTHER, term=4, session=bytes(16))),
        (IDLE, draw(), replace(IDLE, head=OTHER, draw=OpenDraw(OTHER, 4, OTHER))),
        (
            OPEN,
            change(),
            ChainState(
                head=OTHER,
                term=3,
                version=8,
                version_head=OTHER,
                attempt=0,
                weights_sha256=OTHER,
                clipping_norm=0.25,
                directory_number=2,
                directory_digest=OTHER,
                draw=None,
            ),
        ),
        (OPEN, void(), replace(IDLE, head=OTHER, attempt=2)),
        (IDLE, directory(), replace(IDLE, head=OTHER, directory_number=3, directory_digest=DRAW)),
        (OPEN, run(parent=DRAW), replace(OPEN, head=OTHER, run=RunState.PAUSED, controlled_us=60)),
        (PAUSED, run(RunState.RUNNING), replace(IDLE, head=OTHER, run=RunState.RUNNING, controlled_us=60)),
        # A pause outlives the coordinator, a stop does not; neither command counts twice.
        (PAUSED, term(), replace(PAUSED, head=OTHER, term=4, session=bytes(16))),
        (STOPPING, term(), replace(STOPPING, head=OTHER, term=4, session=bytes(16), run=RunState.RUNNING)),
    ],
)
def test_where_the_chain_stands_after_an_entry(state: ChainState, entry: Entry, expected: ChainState) -> None:
    assert advance(state, entry, OTHER) == expected


def test_the_first_snapshot_makes_version_0_and_a_later_one_names_what_made_its_version() -> None:
    first = begin(snapshot(parent=GENESIS, version=0, attempt=0, version_head=GENESIS), DRAW)
    later = begin(snapshot(), DRAW)

    assert (first.head, first.version_head, first.version) == (DRAW, DRAW, 0)
    assert later == replace(IDLE, head=DRAW)
    assert begin(snapshot(run="paused", controlled_us=50), DRAW) == replace(PAUSED, head=DRAW)


# ── two writers ──


class Writer:
    """An honest coordinator: it builds only on what it has read, and writes the next entry when the last was read."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.state = begin(snapshot(parent=GENESIS, term=1, version=0, attempt=0, version_head=GENESIS), HEAD)
        self.read_to = 0
        self.written = 0
        self.in_office = False

    def read(self, stream: list[tuple[bytes, Entry]], upto: int) -> None:
        for digest, entry in stream[self.read_to : upto]:
            if judge(self.state, entry) is None:
                self.state = advance(self.state, entry, digest)
                if isinstance(entry, TermEntry):
                    self.in_office = entry.session == self.session
        self.read_to = max(self.read_to, upto)

    @property
    def session(self) -> bytes:
        return bytes([self.name]) * 16

    def write(self, choice: int) -> tuple[bytes, Entry]:
        self.written += 1
        digest = bytes([self.name]) + self.written.to_bytes(31, "big")
        place = {"parent": self.state.head, "term": self.state.term}
        if not self.in_office:
            return digest, TermEntry(parent=self.state.head, term=self.state.term + 1, session=self.session)
        if self.state.draw is None:
            return digest, draw(**place, version=self.state.version)
        if choice == 0:
            return digest, void(**place, draw=self.state.draw.entry)
        return digest, change(**place, version=self.state.version + 1, draw=self.state.draw.entry, groups=(0,))


def follow(stream: list[tuple[bytes, Entry]]) -> list[tuple[int, bytes]]:
    """What a reader accepts, as (version, entry)."""
    state = begin(snapshot(parent=GENESIS, term=1, version=0, attempt=0, version_head=GENESIS), HEAD)
    chain = []
    for digest, entry in stream:
        if judge(state, entry) is None:
            assert entry.parent == state.head
            state = advance(state, entry, digest)
            chain.append((state.version if isinstance(entry, ChangeEntry) else -1, digest))
    return chain


steps = st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3))


@given(schedule=st.lists(steps, max_size=60), repeats=st.lists(st.integers(0, 59), max_size=10))
def test_two_writers_on_one_stream_make_one_chain(schedule: list[tuple[int, int, int]], repeats: list[int]) -> None:
    """Each step: who writes, how far behind the end it has read, and whether a draw is voided."""
    writers, stream = (Writer(1), Writer(2)), list[tuple[bytes, Entry]]()
    for who, behind, choice in schedule:
        writer = writers[who]
        writer.read(stream, max(0, len(stream) - behind))
        stream.append(writer.write(choice))
    chain = follow(stream)
    versions = [version for version, _ in chain if version >= 0]

    # No version has two entries, and none is left out.
    assert versions == list(range(1, len(versions) + 1))
    # A publish that was sent again, anywhere behind its first place, changes nothing.
    for number in repeats:
        if stream:
            first = number % len(stream)
            stream.insert(first + 1 + number % (len(stream) - first), stream[first])
    assert follow(stream) == chain
    # Whoever has read all agrees, whatever it believed before.
    for writer in writers:
        late = Writer(writer.name)
        late.read(stream, len(stream))
        assert late.state.head == (chain[-1][1] if chain else HEAD)


@given(split=st.integers(0, 12))
def test_sending_any_prefix_again_changes_nothing(split: int) -> None:
    writer, stream = Writer(1), list[tuple[bytes, Entry]]()
    for number in range(12):
        writer.read(stream, len(stream))
        stream.append(writer.write(number % 5))

    assert follow(stream + stream[:split]) == follow(stream)
    assert follow(stream[:split] + stream) == follow(stream)
    assert len(follow(stream)) == 12
