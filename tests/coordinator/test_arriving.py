"""Sums of other processes: pieces of several stages come together, one sum per group counts, nothing piles up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.aggregator.arriving import STAGES_PER_GROUP, SumCollector
from coordinator.aggregator.buffer import Aggregator
from coordinator.events import DrawMade, GroupGivenUp, GroupSummed, SumArrived
from shared.effects import Append, Settle
from shared.modellog.chain import GENESIS
from shared.modellog.entries import cut
from shared.plan import Plan
from shared.wire.group_messages import GivenUp, Sum
from shared.wire.log_messages import ChangeEntry, DrawEntry, VoidEntry
from shared.wire.messages import PIECE_BYTES_MAX
from tests.builders import tiny_plan
from tests.coordinator.builders import Bus, Desk, notes, only, receipt, told
from worker.update import prepare_words

BIG = 2 * PIECE_BYTES_MAX // 4 + 1000
"""Parameters whose 32-bit words take three pieces."""
CODEC = {"selection": "dense", "density": 1.0, "bits": 32}
GROUPS = 2


class Sums:
    """A collector with an open draw of two groups of three, and what stages say of it."""

    def __init__(self, dimension: int = 8, plan: Plan | None = None) -> None:
        secure = {"group_size": 3, "codec": CODEC, "aggregation": {"rule": "mean", "trim": 0}}
        self.plan = plan or tiny_plan(dimension, **secure)
        self.desk = Desk(self.plan, 6)
        self.collector = SumCollector(self.plan, self.desk.log)
        self.draw = self.open_draw()

    def open_draw(self) -> bytes:
        draw = DrawEntry(
            parent=GENESIS, term=0, version=self.desk.chain.version, groups=GROUPS, offers=6, root=bytes(32)
        )
        accepted = self.desk.append(draw)
        self.made = DrawMade(accepted.accepted.digest, draw.version, GROUPS, tuple(self.desk.clients))
        self.collector.handle(self.made, 0.0)
        return accepted.accepted.digest

    def members(self, group: int) -> tuple[str, ...]:
        size = self.plan.group_size
        return tuple(self.desk.clients[group * size : (group + 1) * size])

    def words(self, group: int, tweak: int = 0) -> np.ndarray:
        form = self.plan.sum_format(self.plan.group_size, self.desk.chain.clipping_norm)
        return (np.arange(form.length) + 100 * group + 1 + tweak).astype(form.word_type)

    def pieces(self, group: int = 0, stage: str = "stage-1", tweak: int = 0, behind: bytes = b"") -> list[SumArrived]:
        bodies = [bytes(body) for body in cut(memoryview(self.words(group, tweak).tobytes() + behind))]
        return [self.piece(group, stage, part, len(bodies), body) for part, body in enumerate(bodies)]

    def piece(self, group: int, stage: str, part: int, parts: int, body: bytes, **fields: Any) -> SumArrived:
        said = {"arrived": self.members(group), "dropped": (), "unheard": (), "blamed": (), "draw": self.draw}
        return SumArrived(
            Sum(**{**said, "stage": stage, "group": group, "part": part, "parts": parts, "body": body, **fields}),
            receipt(),
        )

    def given_up(self, group: int = 0, **fields: Any) -> SumArrived:
        said = {"stage": "stage-9", "draw": self.draw, "unheard": ("client-0",), "blamed": (), "reason": "test"}
        return SumArrived(GivenUp(**{**said, "group": group, **fields}), receipt())

    def handle(self, *events: Any) -> list[Any]:
        return [effect for event in events for effect in self.collector.handle(event, 0.0)]


def test_pieces_of_two_stages_may_come_mixed() -> None:
    sums = Sums(BIG)
    first, second = sums.pieces(0, "stage-1"), sums.pieces(0, "stage-2")
    assert len(first) == 3

    effects = sums.handle(second[2], first[0], second[0], first[2])
    assert effects == []
    (summed,) = told(sums.handle(first[1]))
    assert isinstance(summed, GroupSummed)
    assert (summed.group, summed.arrived) == (0, sums.members(0))
    np.testing.assert_array_equal(summed.words, sums.words(0))
    # The other's comes too: it is the aggregator who knows that it has one.
    (again,) = told(sums.handle(second[1]))
    assert isinstance(again, GroupSummed)
    np.testing.assert_array_equal(again.words, summed.words)


def test_a_sum_is_settled_when_its_draw_is_closed_and_not_before() -> None:
    sums = Sums()
    arrived = [*sums.pieces(0), sums.given_up(1)]
    assert only(Settle, sums.handle(*arrived)) == []
    void = VoidEntry(parent=GENESIS, term=0, draw=sums.draw, reason="test")
    assert only(Settle, sums.handle(sums.desk.append(void))) == [Settle(event.receipt) for event in arrived]


def test_positions_come_behind_the_words() -> None:
    codec = {"selection": "top_k", "density": 4 / 256, "bits": 32}
    plan = tiny_plan(256, codec=codec, aggregation={"rule": "mean", "trim": 0})
    sums = Sums(plan=plan)
    behind = bytes(range(1, plan.positions_bytes + 1))
    (summed,) = told(sums.handle(*sums.pieces(1, behind=behind)))
    assert isinstance(summed, GroupSummed)
    assert summed.positions == behind
    np.testing.assert_array_equal(summed.words, sums.words(1))


def test_a_giving_up_is_handed_on_with_all_that_it_says() -> None:
    sums = Sums()
    (given_up,) = told(sums.handle(sums.given_up(1, blamed=("client-4",))))
    assert given_up == GroupGivenUp(sums.draw, 1, "test", ("client-0",), ("client-4",))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"parts": 2}, "wrong_size"),
        ({"body": bytes(7)}, "wrong_size"),
        ({"part": 1, "parts": 1}, "wrong_size"),
        ({"arrived": ()}, "out_of_range"),
        ({"arrived": ("client-0", "client-1")}, "out_of_range"),
        ({"dropped": tuple(f"c-{i}" for i in range(9))}, "out_of_range"),
    ],
)
def test_what_cannot_be_a_sum_is_refused_and_the_right_one_still_counts(fields: dict[str, Any], reason: str) -> None:
    sums = Sums()
    body = sums.words(0).tobytes()
    bad = sums.piece(**{"group": 0, "stage": "stage-1", "part": 0, "parts": 1, "body": body, **fields})
    assert notes(sums.handle(bad)) == [f"refused {reason}"]
    assert len(told(sums.handle(*sums.pieces(0)))) == 1


def test_what_is_published_again_is_dropped_without_alarm() -> None:
    sums = Sums(BIG)
    pieces = sums.pieces(0)
    effects = sums.handle(pieces[0], pieces[0], *pieces[1:], *pieces)
    assert len(told(effects)) == 1
    assert notes(effects) == ["sum_dropped"] * 4


@pytest.mark.parametrize("which", ["another draw", "no such group", "after the draw was closed"])
def test_sums_of_no_open_draw_are_dropped_and_settled(which: str) -> None:
    sums = Sums()
    (late,) = sums.pieces(0)
    match which:
        case "another draw":
            late = SumArrived(late.message.model_copy(update={"draw": b"x" * 32}), receipt())
        case "no such group":
            late = SumArrived(late.message.model_copy(update={"group": GROUPS}), receipt())
        case _:
            sums.handle(sums.desk.append(VoidEntry(parent=GENESIS, term=0, draw=sums.draw, reason="test")))
    effects = sums.handle(late)
    assert only(Settle, effects) == [Settle(late.receipt)]
    assert (told(effects), notes(effects)) == ([], ["sum_dropped"])


def test_only_so_many_stages_take_memory_for_one_group() -> None:
    sums = Sums(BIG)
    for number in range(STAGES_PER_GROUP):
        assert sums.handle(sums.pieces(0, f"stage-{number}")[0]) == []
    assert notes(sums.handle(sums.pieces(0, "stage-x")[0])) == ["refused overflow"]
    # Those that were there before, and other groups, are not disturbed.
    assert len(told(sums.handle(*sums.pieces(0, "stage-0")[1:]))) == 1
    assert len(told(sums.handle(*sums.pieces(1, "stage-x")))) == 1


# ── together with the aggregator ────────────────────────────────────────────────────────────────────────────────────


def with_aggregator(sums: Sums) -> Bus:
    aggregator = Aggregator(sums.plan, sums.desk.writer)
    aggregator.handle(sums.made, 0.0)
    return Bus(aggregator, sums.collector)


def true_sum(sums: Sums, group: int, stage: str = "stage-1") -> SumArrived:
    """A sum that passes: of one member's update, the others dropped."""
    form = sums.plan.sum_format(3, sums.desk.chain.clipping_norm)
    source, update = np.random.default_rng(group), np.ones(sums.plan.dimension, np.float32)
    words = prepare_words(update, None, form, weight=1.0, metrics={}, source=source).words
    arrived, *dropped = sums.members(group)
    return sums.piece(group, stage, 0, 1, words.tobytes(), arrived=(arrived,), dropped=tuple(dropped))


def test_a_second_sum_of_a_group_is_dropped_and_one_that_differs_raises_an_alarm() -> None:
    sums = Sums()
    bus = with_aggregator(sums)
    assert notes(bus.handle([true_sum(sums, 0), true_sum(sums, 0, "stage-2")], 0.0)) == ["sum_dropped"]
    assert notes(bus.handle(sums.pieces(0, "stage-3"), 0.0)) == ["sum_dropped", "sums_differ"]


@pytest.mark.parametrize("order", ["sum first", "giving up first"])
def test_a_sum_beats_a_giving_up_whichever_came_first(order: str) -> None:
    sums = Sums()
    bus = with_aggregator(sums)
    both = [true_sum(sums, 0), sums.given_up(0)]
    effects = bus.handle(both if order == "sum first" else both[::-1], 0.0)
    assert notes(effects).count("group_given_up") == (order != "sum first")
    (append,) = only(Append, bus.handle(true_sum(sums, 1), 0.0))
    (accepted,) = sums.desk.read_back([append])
    change = accepted.accepted.entry
    assert isinstance(change, ChangeEntry)
    assert change.groups == (0, 1)
