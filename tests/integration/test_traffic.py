"""What does a federation of real processes cost: bytes, broker messages, disk flushes, memory?"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil
import pytest

from tests.integration.conftest import MakeFederation, Record
from tests.integration.federation import LiveFederation

MEAN = {"rule": "mean", "trim": 0}
DENSE = {"selection": "dense", "density": 1.0}

NEW_STATE_FSYNCS = 16
"""A client's new state directory: seven files and their names, then its identity. A round then takes two: one for the
finished update, one for its spent mark."""


@contextmanager
def tap(federation: LiveFederation) -> Iterator[list[int]]:
    """On leaving, the list holds the size of every message that clients published meanwhile."""
    sizes: list[int] = []
    with federation.channel() as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, federation.names.up, "#")
        yield sizes
        while (body := channel.basic_get(queue, auto_ack=True)[2]) is not None:
            sizes.append(len(body))


def test_a_client_sends_an_eighteenth_of_a_dense_update(make_federation: MakeFederation, record: Record) -> None:
    rounds, clients, dimension = 3, 4, 1_000_000
    federation = make_federation(
        "Wide",
        clients,
        workload_options={"dimension": dimension},
        codec={"density": 0.1},
        aggregation=MEAN,
        round={"rounds": rounds, "min_clients": clients},
    )
    coordinator = federation.start_coordinator()

    with tap(federation) as sizes:
        federation.start_workers(2)
        assert coordinator.wait() == 0, coordinator.tail()

    counted = sum(note["clients_counted"] for note in coordinator.notes("round_finished"))
    assert counted == rounds * clients
    record("dense_over_sent", 4 * dimension * counted / sum(sizes))
    assert 0 < sum(sizes) / counted <= 4 * dimension / 18


@dataclass(frozen=True)
class Costs:
    """Broker messages and disk flushes of whole processes, from their beginning to their end."""

    down: int
    up: int
    fsyncs: int

    @classmethod
    def of_run(cls, federation: LiveFederation, processes: int, rounds: int, policy: Mapping[str, object]) -> Costs:
        """Let a federation run, with every client counted in every round."""
        coordinator = federation.start_coordinator()
        shares = [federation.clients[number::processes] for number in range(processes)]
        workers = [federation.start_worker(*share, policy=policy) for share in shares]
        assert coordinator.wait() == 0, coordinator.tail()
        for worker in workers:
            worker.process.terminate()
        assert [worker.wait() for worker in workers] == [0] * processes
        counted = [note["clients_counted"] for note in coordinator.notes("round_finished")]
        assert counted == [len(federation.clients)] * rounds
        goodbyes = [worker.notes("worker_stopped")[0] for worker in workers]
        return cls(
            coordinator.notes("coordinator_stopped")[0]["messages_published"],
            sum(goodbye["messages_published"] for goodbye in goodbyes),
            sum(goodbye["fsyncs"] for goodbye in goodbyes),
        )


def quiet(rounds: int, clients: int) -> dict[str, object]:
    """Rounds without snapshots and signs of life: what is counted is the rounds' own."""
    return {"rounds": rounds, "min_clients": clients, "snapshot_every": 1000, "status_interval_s": 600}


@pytest.mark.slow
def test_a_round_costs_few_messages_and_flushes(make_federation: MakeFederation, record: Record) -> None:
    rounds, clients, processes = 100, 8, 2
    federation = make_federation(
        "Wide",
        clients,
        group_size=1,
        workload_options={"dimension": 10_000},
        aggregation=MEAN,
        round=quiet(rounds, clients),
    )

    costs = Costs.of_run(federation, processes, rounds, {"allow_groups_of_one": True})

    record("per_round", {name: total / rounds for name, total in asdict(costs).items()})
    # Draw and job, a roster for each process, the change, two records; the rest is for the beginning.
    assert costs.down <= (5 + processes) * rounds + 5 * clients
    # One message for offers and one for words of each process, if its clients are ready together.
    assert costs.up <= 1.5 * 2 * processes * rounds + 5 * clients
    assert costs.fsyncs == (2 * rounds + NEW_STATE_FSYNCS) * clients


@pytest.mark.slow
def test_a_secure_round_costs_few_messages_and_no_more_flushes(make_federation: MakeFederation, record: Record) -> None:
    rounds, clients, processes, groups = 40, 8, 2, 2
    federation = make_federation(
        "Wide",
        clients,
        group_size=clients // groups,
        workload_options={"dimension": 10_000},
        aggregation=MEAN,
        round=quiet(rounds, clients),
    )

    costs = Costs.of_run(federation, processes, rounds, {})

    record("per_secure_round", {name: total / rounds for name, total in asdict(costs).items()})
    # However many members of a group a process serves, what is said to them, or by them, at one step is one message.
    parts = groups * processes
    # Draw, job, change, two records; the rosters of all groups at once; then participants, arrived and unmask as each
    # group goes on.
    assert costs.down <= (5 + processes + 3 * parts) * rounds + 5 * clients
    # Offers, in two goes at most; shares in answer to all rosters; then words, agreements and reveals of each group.
    assert costs.up <= (2 * processes + processes + 3 * parts) * rounds + 5 * clients
    # As in groups of one: all that a secure group adds is in memory only.
    assert costs.fsyncs == (2 * rounds + NEW_STATE_FSYNCS) * clients


class MemoryWatch:
    """The largest resident memory of a process, looked at every 50 ms."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = self.now()
        self._thread.start()

    def now(self) -> int:
        """Bytes at this moment."""
        return int(self._process.memory_info().rss)

    def stop(self) -> int:
        """End, and return the peak in bytes."""
        self._done.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            try:
                self.peak = max(self.peak, self.now())
            except psutil.NoSuchProcess:
                return


@pytest.mark.slow
def test_a_large_dense_model_needs_less_than_six_times_its_size(
    make_federation: MakeFederation, record: Record
) -> None:
    dimension, clients = 25_000_000, 4
    federation = make_federation(
        "Wide",
        clients,
        workload_options={"dimension": dimension},
        codec=DENSE,
        aggregation=MEAN,
        round={
            "rounds": 2,
            "min_clients": clients,
            "round_deadline_s": 120,
            "group_step_s": 120,
            "sums_deadline_s": 300,
            "status_interval_s": 30,
        },
    )
    coordinator = federation.start_coordinator()
    watch = MemoryWatch(coordinator.process.pid)
    idle = watch.now()

    federation.start_workers(2)
    code = coordinator.wait()
    growth = watch.stop() - idle

    record("memory_growth_in_models", growth / (4 * dimension))
    assert code == 0, coordinator.tail()
    assert [note["version"] for note in coordinator.notes("round_finished")] == [1, 2]
    assert [note["clients_counted"] for note in coordinator.notes("round_finished")] == [clients] * 2
    assert growth < 6 * 4 * dimension
