"""Whole federations on the in-process broker: what holds over whatever happens on the way."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.output import Evaluator, save_model
from deploy.demo.options import DemoOptions
from deploy.demo.report import Run
from shared.codec.flatten import read_weights
from shared.codec.quantize import open_mean, open_slots, read_words
from shared.modellog.reader import weights_digest
from shared.transport.memory import Faults
from shared.wire.group_messages import Words
from shared.wire.log_messages import ChangeEntry, DrawEntry, VoidEntry
from shared.wire.messages import Message, Offer
from shared.workloads.digits import Digits
from tests.simulated import notes_of
from tests.simulation.federation import FederationRun, PowerCut, failed, pushed_away, run_plan, unlike_others
from tests.tiny_workload import TinyWorkload
from worker.ledger import LedgerEnd, SpentMark, read_ledger

ROUNDING = 1e-6
"""Two stochastic roundings of one update are nearer to each other than this, two updates are not."""


def ledger_of(run: FederationRun, client: str) -> list[SpentMark]:
    return read_ledger(run.storages[client].read("ledger.log") or b"", LedgerEnd())[0]


def check_versions(run: FederationRun) -> None:
    """Every version exists once, each made by the draw that was open."""
    entries, weights = run.read_log()
    changes = [entry for entry in entries if isinstance(entry, ChangeEntry)]
    draws = [entry for entry in entries if isinstance(entry, DrawEntry)]
    voids = [entry for entry in entries if isinstance(entry, VoidEntry)]
    assert [change.version for change in changes] == list(range(1, run.plan.round.rounds + 1))
    assert len(draws) == len(changes) + len(voids)
    np.testing.assert_array_equal(weights[-1], run.coordinator.log.weights)


def check_spending(run: FederationRun, messages: Sequence[tuple[str, Message]]) -> None:
    """No update in two words, one vector per draw, and a ledger record for every vector that left."""
    vectors: dict[tuple[str, bytes], set[bytes]] = defaultdict(set)
    for client, message in messages:
        if isinstance(message, Words):
            vectors[client, message.transcript].add(message.participants + message.body)
    assert {len(bodies) for bodies in vectors.values()} <= {1}
    form = run.plan.sum_format(1, run.plan.codec.clipping_norm)
    for client in run.clients:
        marks = ledger_of(run, client)
        left = [bodies for (sender, _), bodies in vectors.items() if sender == client]
        assert len({mark.update for mark in marks}) == len(marks) >= len(left)
        if run.plan.group_size > 1:
            continue  # what is masked cannot be compared
        words = [read_words(body[1 : len(body) - run.plan.positions_bytes], form) for bodies in left for body in bodies]
        updates = [open_mean(one, form, open_slots(one, form, 1).weight) for one in words]
        for index, update in enumerate(updates):
            for other in updates[:index]:
                assert np.abs(update - other).max() > ROUNDING


def check_offers(messages: Sequence[tuple[str, Message]]) -> None:
    """A counter names one offer for ever, and a worker's counters rise."""
    frames: dict[tuple[str, int], set[Any]] = defaultdict(set)
    for client, message in messages:
        if isinstance(message, Offer):
            frames[client, message.counter].add(message)
    assert {len(offers) for offers in frames.values()} <= {1}


def check_all(run: FederationRun) -> None:
    messages = run.from_workers()
    check_versions(run)
    check_spending(run, messages)
    check_offers(messages)


# ── a quiet run ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quiet_federation_counts_everybody_in_every_version() -> None:
    run = FederationRun()
    run.run()

    check_all(run)
    assert [figures["clients_counted"] for figures in run.figures()] == [4] * 5
    assert run.count("refused") == run.count("draw_void") == run.count("client_lost") == 0
    # One offer and one vector per client and version: everything else would be work for nothing.
    kinds = [type(message) for _, message in run.from_workers()]
    assert (kinds.count(Offer), kinds.count(Words)) == (20, 20)


def test_mean_is_the_direct_example_weighted_mean_of_the_clients_updates() -> None:
    """Dense, 32 bits, clipping norm and n_max above everything that occurs: FedAvg, to a millionth."""
    run = FederationRun(clients=5, workload=TinyWorkload(features=200))
    run.run()

    _, weights = run.read_log()
    for version in range(run.plan.round.rounds):
        updates = [outcome for _, outcome in run.updates if outcome.task.version == version]
        assert len(updates) == 5
        assert len({update.num_examples for update in updates}) > 1
        assert max(np.linalg.norm(update.values) for update in updates) < run.plan.codec.clipping_norm
        stacked = np.stack([update.values for update in updates]).astype(np.float64)
        direct = weights[version] + np.average(stacked, axis=0, weights=[u.num_examples for u in updates])
        assert np.abs(weights[version + 1] - direct).max() <= 1e-6


def test_sparse_updates_move_the_rounds_coordinates_only() -> None:
    workload = TinyWorkload(features=63)
    run = FederationRun(workload=workload, plan={"codec": {"selection": "random", "density": 0.25, "bits": 32}})
    run.run()

    _, weights = run.read_log()
    assert [np.count_nonzero(after - before) for before, after in itertools.pairwise(weights)] == [16] * 5


def test_restricted_training_makes_updates_that_are_sent_whole() -> None:
    workload = TinyWorkload(features=63)
    run = FederationRun(workload=workload, plan={"codec": {"selection": "restricted", "density": 0.25, "bits": 32}})
    run.run()

    _, weights = run.read_log()
    for version, (before, after) in enumerate(itertools.pairwise(weights)):
        moved = set(np.flatnonzero(after != before))
        updates = [outcome.values for _, outcome in run.updates if outcome.task.version == version]
        assert len(moved) == 16
        assert all(set(np.flatnonzero(update)) == moved for update in updates)


def test_what_top_k_held_back_is_in_the_model_in_the_end() -> None:
    codec = {"selection": "top_k", "density": 0.05, "bits": 32, "clipping_norm": 20.0}
    run = FederationRun(workload=TinyWorkload(features=63), plan={"codec": codec, "round": {"rounds": 20}})
    run.run()

    check_all(run)
    _, weights = run.read_log()
    steps = [np.count_nonzero(after != before) for before, after in itertools.pairwise(weights)]
    assert max(steps) <= 4 * 3, "three values from each of four clients"
    assert np.count_nonzero(weights[-1] != weights[0]) >= 40, "what is small waits for its turn"


def test_a_cohort_trains_and_the_others_rest() -> None:
    run = FederationRun(clients=6, processes=3, plan={"round": {"cohort_size": 3, "rounds": 6}})
    run.run()

    check_all(run)
    assert [figures["clients_counted"] for figures in run.figures()] == [3] * 6
    assert len(run.updates) == 18
    assert len({client for client, _ in run.updates}) > 3


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("group_size", "seed"), [(1, seed) for seed in range(16)] + [(3, seed) for seed in range(12)])
def test_whatever_happens_every_version_is_reached_once(group_size: int, seed: int) -> None:
    """Delays, duplicates, losses, broken connections, power cuts in the middle of a write, restarts from the disk."""
    faults = Faults(
        seed=seed,
        delay=0.3,
        delay_max_s=0.4,
        duplicate=0.1,
        drop_transient=0.1,
        connection_loss=0.01,
        outage_max_s=1.5,
    )
    plan: dict[str, Any] = {"round": {"min_clients": 3}, "group_size": group_size}
    if group_size == 1 and seed % 4 == 3:
        plan["codec"] = {"selection": "top_k", "density": 0.5, "bits": 32, "clipping_norm": 20.0}
    clients = (3 if group_size == 1 else 4) + seed % 3
    run = FederationRun(clients=clients, processes=2, faults=faults, plan=plan, seed=seed)
    chance = run.chance
    run.duration_s = lambda: chance.uniform(0.0, 1.0)
    run.tamper = lambda trained: unlike_others(trained, chance)
    back_at: dict[int, float] = {}

    def cut(boundary: str) -> None:
        if chance.random() < 0.004:
            raise PowerCut(boundary)

    def trouble() -> None:
        for index, process in enumerate(run.processes):
            if process is None:
                if run.now >= back_at.setdefault(index, run.now + chance.uniform(0.0, 5.0)):
                    del back_at[index]
                    run.start_worker(index)
                    for client in run.shares[index]:
                        run.storages[client].on_boundary = cut
            elif chance.random() < 0.002:
                run.crash_worker(index)
        if chance.random() < 0.0005:
            run.crash_coordinator()

    run.run(each_turn=trouble)
    check_all(run)


@pytest.mark.parametrize("seed", range(4))
def test_a_coordinator_that_is_killed_again_and_again_goes_on(seed: int) -> None:
    run = FederationRun(clients=4, seed=seed)
    run.duration_s = lambda: run.chance.uniform(0.0, 0.5)
    run.tamper = lambda trained: unlike_others(trained, run.chance)
    crashes = 0

    def trouble() -> None:
        nonlocal crashes
        if crashes < 12 and run.chance.random() < 0.25:
            crashes += 1
            run.crash_coordinator()

    run.run(each_turn=trouble)
    check_all(run)
    assert crashes > 3


def test_a_coordinator_that_takes_over_does_not_wait_for_the_dead() -> None:
    run = FederationRun(clients=4, processes=4)
    run.run(until=lambda: run.version == 2)
    run.crash_worker(3)
    run.crash_coordinator()
    run.run()

    check_all(run)
    assert [figures["clients_counted"] for figures in run.figures()][-3:] == [3] * 3


def test_a_broker_that_restarts_costs_no_client() -> None:
    run = FederationRun(plan={"round": {"rounds": 8}})
    run.duration_s = lambda: 0.3
    restarted: set[int] = set()

    def trouble() -> None:
        if run.version in (2, 5) and run.version not in restarted:
            restarted.add(run.version)
            run.broker.restart()

    run.run(each_turn=trouble)
    check_all(run)
    assert restarted == {2, 5}
    assert run.count("client_lost") == 0


def test_nobody_is_lost_while_the_broker_is_away() -> None:
    run = FederationRun()
    run.duration_s = lambda: 0.3
    run.run(until=lambda: run.version == 2)
    for seat in (run.coordinator_transport, *(p.transport for p in run.processes if p is not None)):
        run.broker.disconnect(seat, outage_s=300.0)
    away_at = run.now
    run.run()

    check_all(run)
    assert run.now > away_at + 300.0
    assert run.count("client_lost") == run.count("draw_void") == run.count("group_given_up") == 0
    assert [figures["clients_counted"] for figures in run.figures()] == [4] * 5


def test_a_client_that_cannot_train_once_misses_one_version() -> None:
    run = FederationRun()
    doomed = ("client-1", 2)
    run.tamper = lambda trained: (
        failed(trained, "no data today") if (trained.client, trained.outcome.task.version) == doomed else trained
    )
    run.run()

    check_all(run)
    assert [figures["clients_counted"] for figures in run.figures()] == [4, 4, 3, 4, 4]
    assert run.count("client_training_failed") == 1
    assert run.count("client_lost") == 0


def test_a_proximal_term_in_the_plan_shortens_every_update() -> None:
    def lengths(mu: float) -> list[float]:
        training = {"optimizer": {"name": "SGD", "options": {"lr": 0.1}}, "batch_size": 2, "local_epochs": 3}
        run = FederationRun(plan={"round": {"rounds": 1}, "training": {**training, "proximal_mu": mu}})
        run.run()
        return [float(np.linalg.norm(finished.values)) for _, finished in sorted(run.updates, key=lambda one: one[0])]

    assert all(near < free for near, free in zip(lengths(3.0), lengths(0.0), strict=True))


def test_a_run_that_has_learnt_what_it_can_lowers_the_rate_and_stops_early() -> None:
    plan = {"round": {"rounds": 60}, "steering": {"plateau_patience": 2, "stop_patience": 5}}
    run = FederationRun(plan=plan)
    run.tamper = lambda trained: trained if run.version < 3 else pushed_away(trained)
    run.run()

    finished = run.coordinator.finished
    assert finished is not None
    assert finished.reason.startswith("no better version for 5 versions")
    assert run.version < 20
    assert run.count("rate_lowered") == 2
    assert run.count("stopped_early") == 1


def test_a_run_that_goes_wrong_says_so_in_words() -> None:
    codec = {"selection": "dense", "density": 1.0, "bits": 32, "clipping_norm": 0.5, "adaptive_clipping": True}
    run = FederationRun(plan={"round": {"rounds": 8}, "codec": codec})
    run.tamper = lambda trained: trained if run.version < 1 else pushed_away(trained)
    run.run()

    alarms = {note.event: note.fields["text"] for note in run.notes if note.event.endswith("_alarm")}
    assert "accuracy has fallen for 3 versions in a row" in str(alarms["accuracy_alarm"])
    assert "the clipping norm has grown from 0.5" in str(alarms["clipping_norm_alarm"])
    assert run.count("accuracy_alarm") == run.count("clipping_norm_alarm") == 1


@pytest.mark.parametrize("crash", [False, True])
def test_evaluations_are_of_the_average_also_after_a_restart_and_training_is_not(crash: bool) -> None:
    run, raw = FederationRun(plan={"steering": {"ema": 0.8}}), FederationRun()
    run.run(until=lambda: run.version == 3)
    if crash:
        run.crash_coordinator()
    run.run()
    raw.run()

    _, versions = run.read_log()
    shares = [0.8**age for age in range(4, -1, -1)]
    average = np.average(np.array(versions[1:], np.float64), axis=0, weights=shares).astype(np.float32)
    last = Evaluator(run.workload).evaluate(5, average)
    assert run.figures()[-1]["loss"] == pytest.approx(last.loss, rel=1e-4)
    assert abs(last.loss - Evaluator(run.workload).evaluate(5, versions[-1]).loss) > 1e-3
    if not crash:
        np.testing.assert_allclose(versions[-1], raw.read_log()[1][-1], rtol=1e-5)


# ── groups of more than one ─────────────────────────────────────────────────────────────────────────────────────────


def test_groups_of_four_give_the_same_mean_as_groups_of_one() -> None:
    """32 bits, dense: masks leave no trace, so both are the example-weighted mean of the same updates."""
    weights = []
    for group_size in (1, 4):
        run = FederationRun(clients=9, processes=3, plan={"group_size": group_size, "round": {"rounds": 3}})
        run.run()
        assert run.figures()[-1]["clients_counted"] == 9
        weights.append(run.read_log()[1])
    for one, four in zip(*weights, strict=True):
        np.testing.assert_allclose(one, four, atol=1e-5)


# ── the demonstration ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("drop_at", [None, "training", "offer", "words"])
def test_dropped_clients_are_named_with_their_version_and_phase(drop_at: str | None) -> None:
    options = DemoOptions(clients=9, processes=2, rounds=6, drop=3, drop_at=drop_at, partition="iid", group_size=1)
    notes = list(notes_of(options))

    lost = [note.fields for note in notes if note.event == "client_lost"]
    assert sorted(fields["client"] for fields in lost) == ["client-007", "client-008", "client-009"]
    expected = ["training", "offer", "words"] if drop_at is None else [drop_at] * 3
    assert [fields["phase"] for fields in sorted(lost, key=lambda fields: fields["client"])] == expected
    assert {fields["version"] for fields in lost} == {2}
    rounds = [note.fields for note in notes if note.event == "round_finished"]
    assert [fields["version"] for fields in rounds] == [1, 2, 3, 4, 5, 6]
    assert rounds[-1]["clients_counted"] == 6


@pytest.mark.parametrize("phase", ["shares", "words", "agreement"])
def test_who_drops_out_of_a_group_of_more_than_one_costs_no_other_update(phase: str) -> None:
    options = DemoOptions(
        clients=15, processes=1, rounds=4, drop=1, drop_at=phase, partition="iid", group_size=5, robust="median"
    )
    run = Run("memory", "in-process")
    for note in notes_of(options):
        run.hear(note.event, note.fields)

    assert [one["version"] for one in run.rounds] == [1, 2, 3, 4]
    assert [lost["id"] for lost in run.report()["clients"]] == ["client-015"]
    # Who dies after its shares or its words has dropped out of an opened sum, or is in it.
    assert [one["groups_given_up"] for one in run.rounds] == [0] * 4
    assert min(one["clients_counted"] for one in run.rounds) == 14
    # Who has signed who arrived has done nearly all: its reveal may still have left.
    assert run.report()["final"]["recovered"] == (phase != "agreement")


@pytest.mark.parametrize("group_size", [1, 4])
def test_a_simulation_learns_digits(group_size: int) -> None:
    notes = list(notes_of(DemoOptions(rounds=10, partition="iid", group_size=group_size)))

    rounds = [note.fields for note in notes if note.event == "round_finished"]
    assert len(rounds) == 10
    assert {(fields["groups"], fields["clients_counted"]) for fields in rounds} == {(20 // group_size, 20)}
    assert rounds[-1]["accuracy"] >= 0.85


@pytest.mark.parametrize("server", ["fedavg", "fedavgm", "fedadam"])
def test_every_server_optimizer_learns_digits_and_those_that_move_all_coordinates_say_so(server: str) -> None:
    notes = list(notes_of(DemoOptions(rounds=8, clients=8, partition="iid", server=server, group_size=1)))

    accuracies = [note.fields["accuracy"] for note in notes if note.event == "round_finished"]
    assert accuracies[-1] >= 0.5
    dense = [note.fields for note in notes if note.event == "dense_entries"]
    assert len(dense) == (server != "fedavg")
    for fields in dense:
        assert fields["bytes"] > 9 * fields["bytes_of_round"]


def test_the_options_of_steering_and_training_reach_the_plan() -> None:
    options = DemoOptions(
        rounds=2,
        clients=4,
        group_size=1,
        partition="iid",
        proximal_mu=0.5,
        schedule="step:7",
        plateau=3,
        stop_after=9,
        ema=0.25,
    )
    notes = list(notes_of(options))

    plan = next(note.fields["plan"] for note in notes if note.event == "coordinator_started")
    assert plan["training"]["proximal_mu"] == 0.5
    assert plan["steering"] == {
        "watch": "held_out",
        "schedule": "step",
        "step_every": 7,
        "plateau_patience": 3,
        "rate_drop": 0.5,
        "stop_patience": 9,
        "ema": 0.25,
    }
    assert plan["training"]["batch_size"] == Digits().recipe.batch_size


def test_a_demonstration_that_stops_early_has_finished() -> None:
    run = Run("memory", "in-process")
    for note in notes_of(DemoOptions(rounds=40, clients=4, group_size=1, partition="iid", stop_after=2)):
        run.hear(note.event, note.fields)

    assert run.finished
    assert len(run.rounds) < 40
    assert "no better version for 2 versions" in run.report()["final"]["stopped_early"]


@pytest.mark.parametrize("workers", ["stay", "come back"])
@pytest.mark.parametrize("cohort_size", [None, 3])
def test_a_finished_federation_goes_on_with_the_same_weights(workers: str, cohort_size: int | None) -> None:
    rounds = {"rounds": 2, "cohort_size": cohort_size}
    run = FederationRun(plan={"round": rounds})
    run.run()
    before = run.coordinator.log.chain
    assert before is not None

    if workers == "come back":
        run.crash_worker(0)
    run.plan = run_plan(run.workload, 4, round=rounds | {"rounds": 5})
    run.crash_coordinator()
    run.run(until=lambda: run.coordinator.log.plan == run.plan)
    after = run.coordinator.log.chain
    assert after is not None
    assert (after.version, after.weights_sha256) == (2, before.weights_sha256)
    if workers == "come back":
        run.start_worker(0)
    run.run()

    assert run.version == 5
    entries, weights = run.read_log()
    assert [entry.version for entry in entries if isinstance(entry, ChangeEntry)] == [1, 2, 3, 4, 5]
    assert weights_digest(weights[2]) == before.weights_sha256
    assert run.figures()[-1]["clients_counted"] == (cohort_size or 4)


def test_a_run_starts_from_the_weights_of_a_file(tmp_path: Path) -> None:
    workload = Digits(clients=3)
    model = workload.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    save_model(model, tmp_path / "start.safetensors", {})
    options = DemoOptions(clients=3, group_size=1, rounds=1, initial_weights=tmp_path / "start.safetensors")

    (started,) = [note for note in notes_of(options) if note.event == "coordinator_started"]
    expected = weights_digest(read_weights(model)).hex()
    assert started.fields["plan"]["initial_weights_sha256"] == expected  # type: ignore[index]
