"""The aggregator: one step or none of every draw, the same whatever order its sums come in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from coordinator.aggregator.buffer import Aggregator
from coordinator.aggregator.server_step import adapt_clipping_norm
from coordinator.aggregator.steering import SteeringState
from coordinator.events import (
    CoordinatorEffect,
    DrawMade,
    Event,
    GroupGivenUp,
    GroupSummed,
    RateLowered,
    StepTaken,
    Tick,
    TookOffice,
)
from coordinator.kept import Kept, RunMemory, SchedulerMemory
from shared.codec.positions import encode_positions, largest
from shared.codec.validation import slot_values, validation_slots
from shared.effects import Append
from shared.errors import StateError
from shared.modellog.chain import GENESIS
from shared.modellog.listed import listed_size
from shared.plan import Plan
from shared.wire.log_messages import ChangeEntry, DrawEntry, SnapshotEntry, VoidEntry
from tests.builders import tiny_plan
from tests.coordinator.builders import Desk, notes, only, told
from worker.update import prepare_words

D = 6
DENSE = {"selection": "dense", "density": 1.0, "bits": 32, "clipping_norm": 4.0, "adaptive_clipping": False}


NOBODY: dict[str, tuple[str, ...]] = {"dropped": (), "unheard": (), "blamed": ()}


def plan_with(rule: str = "mean", trim: int = 0, **fields: Any) -> Plan:
    aggregation = {"rule": rule, "trim": trim, **fields.pop("aggregation", {})}
    return tiny_plan(D, **{"codec": DENSE, "aggregation": aggregation, "weight_records_max": 100, **fields})


class Buffering:
    """An aggregator and the log it writes."""

    def __init__(self, plan: Plan | None = None, groups: int = 3) -> None:
        self.desk = Desk(plan or plan_with(), clients=2)
        self.aggregator = Aggregator(self.desk.plan, self.desk.writer)
        self.groups = groups
        self.draw = b""

    def handle(self, event: Event, now: float = 1.0) -> tuple[CoordinatorEffect, ...]:
        return self.aggregator.handle(event, now)

    def make_draw(self, now: float = 0.0, *, read_back: bool = True) -> Append:
        chain = self.desk.chain
        entry = DrawEntry(
            parent=GENESIS, term=0, version=chain.version, groups=self.groups, offers=self.groups, root=bytes(32)
        )
        append = self.desk.writer.append(entry)
        self.draw = append.sealed.digest
        clients = tuple(f"client-{index}" for index in range(self.groups))
        assert self.handle(DrawMade(self.draw, chain.version, self.groups, clients), now) == ()
        if read_back:
            assert self.read_back([append], now) == []
        return append

    def read_back(self, effects: Sequence[object], now: float = 1.0) -> list[CoordinatorEffect]:
        return [effect for accepted in self.desk.read_back(effects) for effect in self.handle(accepted, now)]

    def sum(self, group: int, update: np.ndarray | None = None, *, weight: float = 1.0, **fields: Any) -> GroupSummed:
        """One client's words, made by the worker's own recipe."""
        metrics = {"loss": 1.0 / (group + 3), **fields.pop("metrics", {})}
        chosen = np.full(D, group + 1, np.float32) / 4 if update is None else update.astype(np.float32)
        positions = self.desk.log.coordinates
        prepared = prepare_words(
            chosen,
            positions,
            self.desk.plan.sum_format(1, self.desk.chain.clipping_norm),
            weight=weight,
            metrics=metrics,
            source=np.random.default_rng(group),
        )
        whole: dict[str, Any] = {"arrived": (f"client-{group}",), "dropped": (), "unheard": (), "blamed": ()}
        return GroupSummed(**{"draw": self.draw, "group": group, **whole, **fields, "words": prepared.words})

    def given_up(self, group: int) -> GroupGivenUp:
        return GroupGivenUp(self.draw, group, "silent", (f"client-{group}",), ())

    def round(self, now: float = 1.0) -> list[CoordinatorEffect]:
        """A whole draw: all its sums, and the change read back."""
        self.make_draw(now)
        effects = [effect for group in range(self.groups) for effect in self.handle(self.sum(group), now)]
        return [*effects, *self.read_back(effects, now)]


def entries(effects: Sequence[object]) -> list[Any]:
    return [append.sealed.entry for append in only(Append, effects)]


def test_the_last_sum_makes_the_step() -> None:
    buffering = Buffering()
    buffering.make_draw()
    assert [*buffering.handle(buffering.sum(0)), *buffering.handle(buffering.sum(2))] == []

    effects = buffering.handle(buffering.sum(1))
    (change,) = entries(effects)
    assert isinstance(change, ChangeEntry)
    assert (change.version, change.draw, change.groups) == (1, buffering.draw, (0, 1, 2))
    (step,) = told(effects)
    assert isinstance(step, StepTaken)
    assert (step.version, step.clients_counted, step.groups, step.groups_rejected, step.groups_given_up) == (
        1, 3, 3, 0, 0,
    )  # fmt: skip
    assert buffering.read_back(effects) == []
    np.testing.assert_allclose(buffering.desk.log.weights, np.full(D, 0.5), atol=1e-6)
    assert buffering.handle(Tick(), 1000.0) == ()


def test_sums_that_overtake_our_read_back_of_the_draw_wait_for_it() -> None:
    buffering = Buffering()
    draw = buffering.make_draw(read_back=False)
    assert [effect for group in range(3) for effect in buffering.handle(buffering.sum(group))] == []

    assert [type(entry) for entry in entries(buffering.read_back([draw]))] == [ChangeEntry]


def test_nothing_is_written_while_an_entry_is_on_its_way() -> None:
    buffering = Buffering()
    buffering.make_draw()
    effects = [effect for group in range(3) for effect in buffering.handle(buffering.sum(group))]

    assert len(entries(effects)) == 1
    assert buffering.handle(Tick(), 1000.0) == ()


@pytest.mark.parametrize(("rule", "trim"), [("mean", 0), ("median", 0), ("trimmed-mean", 1), ("nnm-trimmed-mean", 1)])
def test_the_order_of_arrival_changes_nothing_bit_for_bit(rule: str, trim: int) -> None:
    generator = np.random.default_rng(0)
    updates = [generator.standard_normal(D).astype(np.float32) for _ in range(4)]
    weights = [0.1, 0.3, 0.7, 1.0]
    outcomes = set()
    for order in itertools.permutations(range(4)):
        buffering = Buffering(plan_with(rule, trim, metric_bounds={"loss": 5.0}), groups=4)
        buffering.make_draw()
        effects = [
            effect
            for group in order
            for effect in buffering.handle(buffering.sum(group, updates[group], weight=weights[group]))
        ]
        (step,) = told(effects)
        outcomes.add((only(Append, effects)[0].sealed.digest, repr(step)))

    assert len(outcomes) == 1


def test_mean_is_the_example_weighted_mean_of_the_updates() -> None:
    generator = np.random.default_rng(1)
    updates = [generator.standard_normal(D) for _ in range(5)]
    weights = np.array([0.05, 0.2, 0.5, 0.9, 1.0])
    buffering = Buffering(groups=5)
    buffering.make_draw()
    effects = [e for i in range(5) for e in buffering.handle(buffering.sum(i, updates[i], weight=weights[i]))]
    buffering.read_back(effects)

    direct = np.average(np.stack(updates), axis=0, weights=weights)
    np.testing.assert_allclose(buffering.desk.log.weights, direct, rtol=0, atol=1e-6)


def test_a_trimmed_mean_ignores_weights_and_the_extremes() -> None:
    buffering = Buffering(plan_with("trimmed-mean", 1), groups=3)
    buffering.make_draw()
    values = (-1.0, 0.25, 1.5)
    effects = [
        effect
        for group, value in enumerate(values)
        for effect in buffering.handle(buffering.sum(group, np.full(D, value), weight=0.2 + 0.3 * group))
    ]
    buffering.read_back(effects)

    np.testing.assert_allclose(buffering.desk.log.weights, np.full(D, 0.25), atol=1e-6)


def test_the_median_ignores_how_far_out_the_extremes_are() -> None:
    buffering = Buffering(plan_with("median"), groups=3)
    buffering.make_draw()
    effects = [e for g, v in enumerate((-1.5, 0.5, 1.5)) for e in buffering.handle(buffering.sum(g, np.full(D, v)))]
    buffering.read_back(effects)

    np.testing.assert_allclose(buffering.desk.log.weights, np.full(D, 0.5), atol=1e-6)


def test_mixing_averages_the_nearest_before_it_trims() -> None:
    buffering = Buffering(plan_with("nnm-trimmed-mean", 1), groups=3)
    buffering.make_draw()
    effects = [e for g, v in enumerate((0.0, 0.2, 1.5)) for e in buffering.handle(buffering.sum(g, np.full(D, v)))]
    buffering.read_back(effects)

    # Two nearest each: 0.1, 0.1 and 0.85; the middle one is left.
    np.testing.assert_allclose(buffering.desk.log.weights, np.full(D, 0.1), atol=1e-6)


# ── gates ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def too_long(buffering: Buffering, group: int) -> GroupSummed:
    """Words at the end of their range in every slot: a norm of sqrt(D) times C."""
    forged = buffering.sum(group)
    forged.words[:D] = 2**31 - 2
    return forged


@pytest.mark.parametrize("gates", [True, False])
def test_a_mean_longer_than_clipping_allows_is_dropped_unless_the_gates_are_off(gates: bool) -> None:
    buffering = Buffering(plan_with("mean", aggregation={"gates": gates}), groups=4)
    buffering.make_draw()
    effects = list(buffering.handle(too_long(buffering, 0)))
    assert notes(effects) == (["group_rejected"] if gates else [])

    for group in (1, 2, 3):
        effects += buffering.handle(buffering.sum(group))
    (change,) = entries(effects)
    assert change.groups == ((1, 2, 3) if gates else (0, 1, 2, 3))


def test_what_the_gates_drop_is_not_trimmed_again() -> None:
    buffering = Buffering(plan_with("trimmed-mean", 1), groups=4)
    buffering.make_draw()
    effects = list(buffering.handle(too_long(buffering, 3)))
    for group, value in enumerate((0.0, 0.3, 0.9)):
        effects += buffering.handle(buffering.sum(group, np.full(D, value)))
    buffering.read_back(effects)

    np.testing.assert_allclose(buffering.desk.log.weights, np.full(D, 0.4), atol=1e-6)


def test_too_few_groups_behind_the_gates_make_no_step() -> None:
    buffering = Buffering(plan_with("trimmed-mean", 1), groups=3)
    buffering.make_draw()
    effects = [effect for group in range(3) for effect in buffering.handle(too_long(buffering, group))]

    (void,) = entries(effects)
    assert isinstance(void, VoidEntry)
    assert void.reason == "0 of 3 group sums passed the gates, 1 needed"


# ── what does not count ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_sum_of_a_group_is_dropped_the_first_counts() -> None:
    buffering, alone = Buffering(), Buffering()
    for one in (buffering, alone):
        one.make_draw()
        one.handle(one.sum(0))
    assert notes(buffering.handle(buffering.sum(0))) == ["sum_dropped"]
    # No two sums of a group can be opened: somebody has made one up.
    assert notes(buffering.handle(buffering.sum(0, np.ones(D)))) == ["sum_dropped", "sums_differ"]
    assert buffering.handle(buffering.given_up(0)) == ()

    effects, expected = ([*one.handle(one.sum(1)), *one.handle(one.sum(2))] for one in (buffering, alone))
    assert only(Append, effects)[0].sealed.digest == only(Append, expected)[0].sealed.digest


@pytest.mark.parametrize("made", [False, True])
def test_a_sum_or_a_giving_up_of_no_open_draw_changes_nothing(made: bool) -> None:
    buffering = Buffering()
    if made:
        buffering.make_draw()
    other = b"x" * 32

    assert notes(buffering.handle(buffering.sum(0, draw=other))) == ["sum_dropped"]
    assert buffering.handle(GroupGivenUp(other, 0, "silent", (), ())) == ()
    assert buffering.handle(Tick()) == ()


def test_a_sum_outside_the_possible_range_is_rejected_and_counted() -> None:
    buffering = Buffering(groups=4)
    buffering.make_draw()
    forged = buffering.sum(0)
    forged.words[D] = 0  # a group without weight

    effects = list(buffering.handle(forged))
    assert notes(effects) == ["group_rejected"]
    assert notes(buffering.handle(buffering.sum(0))) == ["sum_dropped", "sums_differ"]
    for group in (1, 2, 3):
        effects += buffering.handle(buffering.sum(group))
    (change,) = entries(effects)
    assert change.groups == (1, 2, 3)
    (step,) = told(effects)
    assert isinstance(step, StepTaken)
    assert (step.clients_counted, step.groups_rejected) == (3, 1)


def test_a_sum_beats_a_giving_up_that_came_first() -> None:
    buffering = Buffering(groups=3)
    buffering.make_draw()
    buffering.handle(buffering.given_up(1))
    buffering.handle(buffering.sum(0))
    buffering.handle(buffering.sum(1))

    effects = list(buffering.handle(buffering.sum(2)))
    (change,) = entries(effects)
    assert change.groups == (0, 1, 2)
    (step,) = told(effects)
    assert isinstance(step, StepTaken)
    assert (step.groups_given_up, step.clients_counted) == (0, 3)


def test_groups_that_are_given_up_do_not_hold_a_quorum_back() -> None:
    buffering = Buffering(groups=3)
    buffering.make_draw()
    effects = [*buffering.handle(buffering.given_up(1)), *buffering.handle(buffering.given_up(1))]
    assert notes(effects) == ["group_given_up"]
    buffering.handle(buffering.sum(0))

    effects = list(buffering.handle(buffering.sum(2)))
    (change,) = entries(effects)
    assert change.groups == (0, 2)
    assert told(effects)[0].groups_given_up == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_a_sum_that_comes_after_the_step_was_taken_changes_nothing(rule: str) -> None:
    """One stage gave the group up, its successor sums it, and the step is on its way to the log."""
    buffering = Buffering(plan_with(rule), groups=3)
    buffering.make_draw()
    buffering.handle(buffering.sum(0))
    buffering.handle(buffering.given_up(1))
    effects = list(buffering.handle(buffering.sum(2)))

    assert notes(list(buffering.handle(buffering.sum(1)))) == ["sum_dropped"]
    assert buffering.read_back(effects) == []
    (change,) = entries(effects)
    assert change.groups == (0, 2)


# ── deadline and quorum ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("sums", "expected"), [(3, ChangeEntry), (2, VoidEntry), (0, VoidEntry)])
def test_at_the_deadline_a_quorum_decides(sums: int, expected: type) -> None:
    buffering = Buffering(groups=5)  # 60 % of five are three
    buffering.make_draw(now=10.0)
    for group in range(sums):
        buffering.handle(buffering.sum(group), 11.0)
    deadline = 10.0 + buffering.desk.plan.round.sums_deadline_s
    assert buffering.handle(Tick(), deadline - 0.01) == ()

    effects = buffering.handle(Tick(), deadline)
    (entry,) = entries(effects)
    assert isinstance(entry, expected)
    buffering.read_back(effects, deadline)
    chain = buffering.desk.chain
    assert (chain.version, chain.attempt, chain.draw) == ((1, 0, None) if sums == 3 else (0, 1, None))
    assert buffering.handle(Tick(), deadline + 1000) == ()


def test_without_a_quorum_a_complete_draw_is_void_at_once() -> None:
    buffering = Buffering(plan_with("trimmed-mean", 1), groups=3)
    buffering.make_draw()
    buffering.handle(buffering.sum(0))
    buffering.handle(buffering.sum(1))

    (void,) = entries(buffering.handle(buffering.given_up(2)))
    assert isinstance(void, VoidEntry)
    assert void.reason == "2 of 3 group sums, 3 needed"


def test_a_quorum_of_the_plan_is_used() -> None:
    buffering = Buffering(plan_with(aggregation={"quorum": 3}), groups=3)
    buffering.make_draw()
    buffering.handle(buffering.sum(0))
    buffering.handle(buffering.sum(1))

    assert isinstance(entries(buffering.handle(buffering.given_up(2)))[0], VoidEntry)


def test_sums_of_a_void_draw_are_never_used() -> None:
    buffering = Buffering(groups=5)
    buffering.make_draw()
    old = [buffering.sum(group, np.ones(D)) for group in range(5)]
    buffering.handle(old[0])
    buffering.read_back(buffering.handle(Tick(), 100.0))

    assert notes(buffering.handle(old[1])) == ["sum_dropped"]
    buffering.make_draw()
    assert [notes(buffering.handle(one)) for one in old] == [["sum_dropped"]] * 5


# ── what an entry says ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sparse_change_holds_the_rounds_values_only() -> None:
    plan = tiny_plan(64, codec={"selection": "random", "density": 0.25, "bits": 32, "clipping_norm": 99.0})
    buffering = Buffering(plan, groups=1)
    buffering.make_draw()
    positions = buffering.desk.log.coordinates
    assert positions is not None

    effects = buffering.handle(buffering.sum(0, np.ones(64)))
    (change,) = entries(effects)
    assert change.coordinates == "round"
    assert len(change.body) == 4 * 16
    buffering.read_back(effects)
    expected = np.zeros(64)
    expected[positions] = plan.rescale
    np.testing.assert_allclose(buffering.desk.log.weights, expected, rtol=1e-5)


def test_an_optimizer_with_state_writes_all_coordinates() -> None:
    plan = tiny_plan(
        64,
        codec={"selection": "random", "density": 0.25},
        aggregation={
            "rule": "mean",
            "trim": 0,
            "server_optimizer": {"name": "SGD", "options": {"lr": 1.0, "momentum": 0.9}},
        },
    )
    buffering = Buffering(plan, groups=1)
    assert buffering.aggregator.moves_all
    buffering.make_draw()

    (change,) = entries(buffering.handle(buffering.sum(0, np.ones(64) * 0.01)))
    assert change.coordinates == "all"
    assert len(change.body) == 4 * 64


ADAM = {"server_optimizer": {"name": "Adam", "options": {"lr": 0.5}}}


def kept(changed_bytes: int = 0, rate_factor: float = 1.0) -> Kept:
    return Kept(SchedulerMemory((), (), 30.0), RunMemory(SteeringState(rate_factor=rate_factor)), changed_bytes)


def test_a_successor_steps_as_its_predecessor_would_have() -> None:
    one = Buffering(plan_with(aggregation=ADAM))
    one.round()
    state = one.aggregator.optimizer_state()
    one.round()
    expected = one.desk.log.weights

    other = Buffering(plan_with(aggregation=ADAM))
    other.round()
    other.aggregator = Aggregator(other.desk.plan, other.desk.writer)
    other.handle(TookOffice(kept(), (), state))
    other.round()
    np.testing.assert_array_equal(other.desk.log.weights, expected)


def test_without_the_optimizers_state_a_successor_does_not_guess() -> None:
    one = Buffering(plan_with(aggregation=ADAM))
    one.aggregator = Aggregator(one.desk.plan, one.desk.writer)
    assert one.handle(TookOffice()) == ()
    one.round()
    one.aggregator = Aggregator(one.desk.plan, one.desk.writer)

    with pytest.raises(StateError, match=r"no state of the server optimizer for version 1.*begin a new federation"):
        one.handle(TookOffice(kept()))


def test_the_plateaus_factor_and_the_bytes_since_the_snapshot_are_kept() -> None:
    one = Buffering()
    one.handle(TookOffice(kept(changed_bytes=4 * D, rate_factor=0.5)))
    effects = one.round()

    np.testing.assert_allclose(one.desk.log.weights, np.full(D, 0.25), atol=1e-6)
    assert [type(entry) for entry in entries(effects)][-1] is SnapshotEntry
    assert one.aggregator.changed_bytes == 8 * D


def test_no_snapshot_is_written_while_another_entry_is_on_its_way() -> None:
    one = Buffering(plan_with(round={"snapshot_every": 1}))
    one.make_draw()
    change = [effect for group in range(3) for effect in one.handle(one.sum(group))]
    (accepted,) = one.desk.read_back(change)
    one.desk.writer.snapshot(one.desk.log.weights)

    assert one.handle(accepted) == ()


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_next_clipping_norm_follows_the_share_of_unclipped_updates(adaptive: bool) -> None:
    buffering = Buffering(plan_with(codec={**DENSE, "adaptive_clipping": adaptive}), groups=4)
    buffering.make_draw()
    updates = [np.full(D, scale) for scale in (0.1, 0.2, 0.3, 50.0)]
    effects = [e for group, update in enumerate(updates) for e in buffering.handle(buffering.sum(group, update))]

    (change,) = entries(effects)
    assert change.clipping_norm == (adapt_clipping_norm(4.0, [1, 1, 1, 0], 0) if adaptive else 4.0)
    buffering.read_back(effects)
    assert buffering.desk.chain.clipping_norm == change.clipping_norm


def test_snapshots_come_every_so_many_versions() -> None:
    buffering = Buffering(plan_with(codec={**DENSE, "selection": "random", "density": 0.17},
                                    round={"snapshot_every": 3}))  # fmt: skip
    kinds = []
    for _ in range(7):
        effects = buffering.round()
        kinds.append([type(entry) for entry in entries(effects)])
        buffering.read_back(
            [append for append in only(Append, effects) if isinstance(append.sealed.entry, SnapshotEntry)]
        )

    assert [SnapshotEntry in kind for kind in kinds] == [False, False, True, False, False, True, False]


def test_a_snapshot_comes_when_the_changes_are_larger_than_the_model() -> None:
    buffering = Buffering()  # a dense change is as large as the model
    first, second = buffering.round(), buffering.round()

    assert [type(entry) for entry in entries(first)] == [ChangeEntry]
    assert [type(entry) for entry in entries(second)] == [ChangeEntry, SnapshotEntry]
    assert buffering.read_back(only(Append, second)[1:]) == []
    assert [type(entry) for entry in entries(buffering.round())] == [ChangeEntry]


def test_schedule_and_plateau_scale_the_step() -> None:
    step = {"schedule": "step", "step_every": 1}
    full, half, eighth = Buffering(), Buffering(plan_with(steering=step)), Buffering(plan_with(steering=step))
    for buffering in (full, half, eighth):
        buffering.round()
    first = full.desk.log.weights
    np.testing.assert_array_equal(half.desk.log.weights, first)

    assert eighth.handle(RateLowered(0.25)) == ()
    for buffering in (full, half, eighth):
        buffering.round()
    moved = full.desk.log.weights - first
    np.testing.assert_allclose(half.desk.log.weights - first, moved / 2, rtol=1e-5)
    np.testing.assert_allclose(eighth.desk.log.weights - first, moved / 8, rtol=1e-5)


def test_a_step_says_what_clients_measured_apart_from_their_training() -> None:
    slots = validation_slots({"loss": 5.0})
    plan = plan_with("mean", 0, metric_bounds={"loss": 5.0, **slots}, evaluation={"client_share": 0.2})
    buffering = Buffering(plan)
    buffering.make_draw()
    losses: list[float | None] = [1.0, 3.0, None]
    effects = [
        effect
        for group, loss in enumerate(losses)
        for effect in buffering.handle(
            buffering.sum(group, metrics=slot_values({} if loss is None else {"loss": loss}, slots))
        )
    ]

    (step,) = told(effects)
    assert isinstance(step, StepTaken)
    assert set(step.train_metrics) == {"loss"}
    spread = step.validation["loss"]
    assert (spread.mean, spread.deviation, spread.share) == pytest.approx((2.0, 1.0, 2 / 3), abs=1e-3)


# ── positions of the clients' own choice ────────────────────────────────────────────────────────────────────────────


def top_k_plan(rule: str = "mean", dimension: int = 256) -> Plan:
    codec = {"selection": "top_k", "density": 4 / dimension, "bits": 32, "clipping_norm": 99.0}
    return tiny_plan(dimension, codec=codec, aggregation={"rule": rule, "trim": 0})


def own_sum(buffering: Buffering, group: int, update: np.ndarray, weight: float = 1.0, **fields: Any) -> GroupSummed:
    plan, positions = buffering.desk.plan, largest(update.astype(np.float32), 4)
    form = plan.sum_format(1, buffering.desk.chain.clipping_norm)
    source = np.random.default_rng(group)
    prepared = prepare_words(update.astype(np.float32), positions, form, weight=weight, metrics={}, source=source)
    sent = {"words": prepared.words, "positions": encode_positions(positions, plan.dimension)}
    return GroupSummed(
        **{"draw": buffering.draw, "group": group, "arrived": (f"client-{group}",), **NOBODY, **sent, **fields}
    )


@pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "nnm-trimmed-mean"])
def test_values_count_where_their_client_says_and_zero_elsewhere(rule: str) -> None:
    buffering = Buffering(top_k_plan(rule))
    buffering.make_draw()
    dense = np.zeros((3, 256))
    for group in range(3):
        dense[group, [group, 10, 20 + group, 255]] = np.array([1.0, -2.0, 0.5, 3.0]) * (group + 1)

    weights = [1.0, 0.5, 0.25]
    sums = [own_sum(buffering, group, dense[group], weights[group]) for group in (2, 0, 1)]
    effects = [effect for arrived in sums for effect in buffering.handle(arrived)]
    (change,) = entries(effects)
    buffering.read_back(effects)

    expected = np.average(dense, axis=0, weights=weights) if rule == "mean" else dense.mean(axis=0)
    np.testing.assert_allclose(buffering.desk.log.weights, expected, atol=1e-5)
    assert change.coordinates == "listed"
    assert len(change.body) == listed_size(256, int(np.count_nonzero(expected)))


def test_where_nearly_everything_changes_no_positions_are_listed() -> None:
    buffering = Buffering(top_k_plan(dimension=6), groups=2)
    buffering.make_draw()
    update = np.arange(1.0, 7.0)
    effects = [e for g in range(2) for e in buffering.handle(own_sum(buffering, g, update[:: 1 - 2 * g]))]
    (change,) = entries(effects)
    assert (change.coordinates, len(change.body)) == ("all", 4 * 6)


@pytest.mark.parametrize("positions", [b"", bytes(3), b"\xff" * 12, bytes(10_000)])
def test_malformed_positions_make_a_rejected_group(positions: bytes) -> None:
    buffering = Buffering(top_k_plan())
    buffering.make_draw()
    effects = buffering.handle(own_sum(buffering, 0, np.ones(256), positions=positions))
    assert notes(effects) == ["group_rejected"]
    for group in (1, 2):
        effects = (*effects, *buffering.handle(own_sum(buffering, group, np.ones(256))))
    assert [step.groups_rejected for step in told(effects) if isinstance(step, StepTaken)] == [1]
