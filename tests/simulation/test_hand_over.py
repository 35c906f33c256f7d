"""A client moves between worker processes while the federation learns, and nothing of it is lost on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import TensorDataset

from shared.errors import PlanError
from shared.transport.port import Delivered
from shared.wire.framing import split_batch
from shared.wire.messages import ClientState, Offer, Status, Task
from tests.simulation.federation import FederationRun, Process
from tests.tiny_workload import TinyWorkload
from worker.events import HandOver, Leave
from worker.ledger import LedgerEnd, SpentMark, read_ledger
from worker.signs_of_life import Phase
from worker.state import ClientState as StateDirectory

SECURE = {"group_size": 4, "max_colluders": 1}


def process(run: FederationRun, index: int) -> Process:
    found = run.processes[index]
    assert found is not None
    return found


def take(run: FederationRun, client: str, target: int) -> None:
    state = StateDirectory(run.storages[client], client=client, federation=run.keys.directory.federation_id)
    process(run, target).service.take(client, state, run.keys.clients[client], run.now)


def server_of(run: FederationRun, client: str) -> int | None:
    at = [index for index, one in enumerate(run.processes) if one is not None and client in one.service.clients]
    assert len(at) <= 1
    return at[0] if at else None


def marks(run: FederationRun, client: str) -> list[SpentMark]:
    records = read_ledger(run.storages[client].read("ledger.log") or b"", LedgerEnd())[0]
    return [record for record in records if isinstance(record, SpentMark)]


def late(run: FederationRun) -> int:
    return sum(note.event == "late" for one in run.processes if one is not None for note in one.notes)


def moving(run: FederationRun, chance: random.Random) -> Callable[[], None]:
    """Every turn some clients are given back, and those who were let go are taken, wherever."""

    def move() -> None:
        for client in run.clients:
            at = server_of(run, client)
            if at is None:
                take(run, client, chance.randrange(len(run.processes)))
            elif chance.random() < 0.05:
                process(run, at).service.release([client], run.now, HandOver())

    return move


def released(run: FederationRun) -> int:
    return sum(note.event == "client_released" for one in run.processes if one is not None for note in one.notes)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("plan", [{}, SECURE, {"round": {"cohort_size": 4}}], ids=["alone", "secure", "cohort"])
def test_clients_that_move_all_the_time_miss_no_round_and_spend_each_update_once(
    plan: dict[str, Any], seed: int
) -> None:
    run, chance = FederationRun(clients=4, processes=3, plan=plan, seed=seed), random.Random(seed)
    run.duration_s = lambda: chance.choice((0.0, 0.5, 1.0))

    run.run(each_turn=moving(run, chance))

    assert released(run) > 10
    assert [figures["clients_counted"] for figures in run.figures()] == [4] * run.plan.round.rounds
    assert run.count("client_lost") == run.count("client_left") == run.count("draw_void") == late(run) == 0
    for client in run.clients:
        spent = marks(run, client)
        assert [mark.version for mark in spent] == list(range(run.plan.round.rounds))
        assert len({mark.update for mark in spent}) == len(spent)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("secure", [False, True])
def test_clients_that_move_all_the_time_in_asynchronous_mode_lose_no_update(secure: bool, seed: int) -> None:
    rounds = {"mode": "async", "rounds": 12, "pool_size": 4, "cooldown": 1}
    plan = {"round": rounds, **({"group_size": 4, "max_colluders": 1} if secure else {})}
    run, chance = FederationRun(clients=6, processes=3, plan=plan, seed=seed), random.Random(seed)
    run.duration_s = lambda: chance.choice((0.0, 0.5, 3.0))

    run.run(each_turn=moving(run, chance))

    assert released(run) > 10
    assert {figures["clients_counted"] for figures in run.figures()} == {4}
    assert run.count("client_lost") == run.count("draw_void") == late(run) == 0
    spent = [marks(run, client) for client in run.clients]
    assert all(len({mark.update for mark in one}) == len(one) for one in spent)
    # Every update that was spent is in a version, and none was drawn for nothing.
    assert sum(map(len, spent)) == 4 * run.plan.round.rounds


def test_data_of_a_client_that_has_moved_on_are_not_kept() -> None:
    loaded: list[str] = []

    class Watched(TinyWorkload):
        def client_data(self, client: str, path: Path | None) -> TensorDataset:
            loaded.append(client)
            return super().client_data(client, path)

    run = FederationRun(clients=4, processes=2, workload=Watched())
    victim = run.shares[0][0]
    for version, target in ((1, 1), (2, 0)):
        run.run(until=lambda version=version: run.version == version)  # type: ignore[misc]
        process(run, 1 - target).service.release([victim], run.now, HandOver(at_once=True))
        take(run, victim, target)
    run.run()

    assert loaded.count(victim) == 3
    assert {loaded.count(client) for client in run.clients if client != victim} == {1}


def test_an_unspent_update_goes_along_and_is_offered_from_there() -> None:
    # Given a client whose offer waits for the others, and whose process has to end now
    run = FederationRun(clients=4, processes=2)
    victim = run.shares[0][0]
    run.slowness = dict.fromkeys(run.shares[1], 10.0)
    run.duration_s = lambda: 1.0
    run.run(until=lambda: process(run, 0).service.clients[victim] is Phase.OFFERED)
    service, trained = process(run, 0).service, len(run.updates)

    # When it is to be handed over, it stays, since a draw may need it; at the end of the process it goes
    service.release([victim], run.now, HandOver())
    run.turn()
    assert service.clients[victim] is Phase.OFFERED
    service.drain(run.now, at_once=True)
    assert victim not in service.clients
    take(run, victim, 1)
    run.run(until=lambda: run.version == 1)

    # Then the same update is offered again from the other process, with fresh keys, and counts
    offers = [message for sender, message in run.from_workers() if sender == victim and isinstance(message, Offer)]
    assert [offer.trained_version for offer in offers[:2]] == [0, 0]
    assert offers[0].counter < offers[1].counter
    assert offers[0].worker != offers[1].worker
    assert not [client for client, _ in run.updates[trained:] if client == victim][1:]
    assert [mark.version for mark in marks(run, victim)][:1] == [0]
    statuses = [m.state for sender, m in run.from_workers() if sender == victim and isinstance(m, Status)]
    assert ClientState.DRAINING not in statuses


@pytest.mark.parametrize("plan", [{}, SECURE], ids=["alone", "secure"])
def test_who_is_taken_out_is_not_waited_for_and_is_counted_again_when_it_is_back(plan: dict[str, Any]) -> None:
    # Given a client in the middle of a training run that would take as long as the round may
    run = FederationRun(clients=5, processes=2, plan=plan)
    victim = run.shares[0][0]
    run.duration_s = lambda: 1.0
    run.run(until=lambda: len(run.figures()) == 1)
    run.slowness = {victim: 1000.0}
    run.run(until=lambda: process(run, 0).service.clients[victim] is Phase.TRAINING and run.version == 1)

    # When the operator takes it out
    began = run.now
    process(run, 0).service.release([victim], run.now, Leave())
    assert server_of(run, victim) is None
    run.run(until=lambda: len(run.figures()) == 3)

    # Then the others go on without waiting for it, and the coordinator knows why
    assert run.now - began < run.plan.round.round_deadline_s / 2
    assert [figures["clients_counted"] for figures in run.figures()] == [5, 4, 4]
    (left,) = [note.fields for note in run.notes if note.event == "client_left"]
    assert left == {"client": victim, "state": ClientState.LEAVING}
    assert run.count("client_lost") == run.count("draw_void") == 0

    # And it is counted again, at the latest in the version after the one under way when it is back
    run.slowness = {}
    take(run, victim, 1)
    run.run()
    assert run.figures()[-1]["clients_counted"] == 5
    assert {mark.version for mark in marks(run, victim)} - {3} == {0, 4}


@pytest.mark.parametrize("at_once", [False, True])
def test_who_is_taken_out_while_its_offer_waits_leaves_after_the_draw_or_at_once(at_once: bool) -> None:
    run = FederationRun(clients=5, processes=2, plan=SECURE)
    victim = run.shares[0][0]
    run.duration_s = lambda: 1.0
    run.slowness = dict.fromkeys(run.shares[1], 3.0)
    run.run(until=lambda: process(run, 0).service.clients[victim] is Phase.OFFERED)

    process(run, 0).service.release([victim], run.now, Leave(at_once))
    run.run(until=lambda: len(run.figures()) == 1)

    assert server_of(run, victim) is None
    assert run.figures()[0]["clients_counted"] == (4 if at_once else 5)
    assert run.count("client_lost") == run.count("draw_void") == 0
    unspent = StateDirectory(run.storages[victim], client=victim, federation=run.keys.directory.federation_id).unspent()
    assert (unspent is not None, len(marks(run, victim))) == ((True, 0) if at_once else (False, 1))


def test_who_is_taken_in_by_a_process_that_follows_the_log_asks_for_its_task() -> None:
    run = FederationRun(clients=4, processes=2)
    run.run(until=lambda: run.version == 2)
    victim = run.shares[0][0]
    process(run, 0).service.release([victim], run.now, HandOver())
    for _ in range(20):
        run.turn()
        if server_of(run, victim) is None:
            break
    take(run, victim, 1)
    assert process(run, 1).service.clients[victim] is Phase.WAITING

    run.turn()
    (status,) = [m for sender, m in run.from_workers()[-8:] if sender == victim and isinstance(m, Status)][-1:]
    assert (status.state, status.log_position) == (ClientState.IDLE, "absent")
    run.run()
    assert run.figures()[-1]["clients_counted"] == 4


def test_a_process_without_clients_waits_for_some() -> None:
    run = FederationRun(clients=2, processes=1)
    run.shares.append(())
    run.known.append(run.keys.signed)
    run.processes.append(None)
    newcomer = run.start_worker(1)
    run.run(until=lambda: run.version == 1)
    newcomer.service.step([], run.now)
    assert newcomer.service.next_wakeup() > run.now + 3600

    for client in run.clients:
        process(run, 0).service.release([client], run.now, HandOver())
    run.run(
        until=lambda: all(server_of(run, client) == 1 for client in run.clients),
        each_turn=lambda: [take(run, c, 1) for c in run.clients if server_of(run, c) is None] and None,
    )
    run.run()
    assert run.figures()[-1]["clients_counted"] == 2
    process(run, 0).service.drain(run.now)
    assert process(run, 0).service.drained


def test_who_comes_to_a_process_that_cannot_serve_the_plan_says_so() -> None:
    run = FederationRun(clients=4, processes=2, plan={"round": {"min_clients": 1}})
    unable = process(run, 1).service

    def refuse(plan: object) -> Any:
        raise PlanError("other layers")

    unable._prepare = refuse
    run.run(until=lambda: run.version == 1)
    moved = run.shares[0][0]
    process(run, 0).service.release([moved], run.now, HandOver())
    run.run(until=lambda: server_of(run, moved) is None)
    take(run, moved, 1)

    assert unable.clients[moved] is Phase.MISMATCH
    said = [m for sender, m in run.from_workers() if sender == moved and isinstance(m, Status)]
    assert (said[-1].state, said[-1].reason) == (ClientState.PLAN_MISMATCH, "other layers")


def test_what_was_on_its_way_to_a_client_that_has_left_is_for_its_next_process() -> None:
    # Given a task that was delivered, but not looked at, when its client leaves
    run = FederationRun(clients=4, processes=2)
    victim = run.shares[0][0]
    first, second = process(run, 0), process(run, 1)
    queue = run.keys.names.client(victim)
    items: list[Any] = []
    while not any(isinstance(item, Delivered) and item.queue == queue for item in items):
        first.service.step([item for item in items if not isinstance(item, Delivered)], run.now)
        run.coordinator.step(run.coordinator_inbox.take(0), run.now)
        items = first.inbox.take(0)
    first.service.release([victim], run.now, HandOver())
    assert victim not in first.service.clients

    first.service.step(items, run.now)
    take(run, victim, 1)

    assert [note.event for note in first.notes if note.event == "refused"] == []
    redelivered = [item for item in second.inbox.take(0) if isinstance(item, Delivered) and item.queue == queue]
    opened = [run.keys.opener().open(frame).message for item in redelivered for frame in _frames(item)]
    assert [type(message) for message in opened] == [Task]


def _frames(item: Delivered) -> list[bytes]:
    return [bytes(frame) for delivery in item.deliveries for frame in split_batch(delivery.body)]


def test_a_result_that_comes_when_its_client_has_left_is_dropped() -> None:
    run = FederationRun(clients=4, processes=2)
    run.duration_s = lambda: 1.0
    victim = run.shares[0][0]
    first = process(run, 0)
    run.run(until=lambda: first.service.clients[victim] is Phase.TRAINING)
    run.now += 2.0
    assert first.training is not None
    first.training.deliver()
    first.service.release([victim], run.now, HandOver())
    assert victim not in first.service.clients

    first.service.step(first.inbox.take(0), run.now)
    take(run, victim, 1)
    run.run()

    assert [figures["clients_counted"] for figures in run.figures()] == [4] * run.plan.round.rounds
