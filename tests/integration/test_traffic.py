"""What does a federation of real processes cost: bytes, broker messages, disk flushes, memory?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.integration.conftest import MakeFederation, Record
from tests.integration.federation import LiveFederation

MEAN = {"rule": "mean", "trim": 0}
DENSE = {"selection": "dense", "density": 1.0}


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


@pytest.mark.slow
def test_a_round_costs_few_messages_and_flushes(make_federation: MakeFederation, record: Record) -> None:
    rounds, clients, processes = 100, 8, 2
    federation = make_federation(
        "Wide",
        clients,
        workload_options={"dimension": 10_000},
        aggregation=MEAN,
        round={"rounds": rounds, "min_clients": clients, "snapshot_every": 1000, "status_interval_s": 600},
    )
    coordinator = federation.start_coordinator()
    workers = federation.start_workers(processes)

    assert coordinator.wait() == 0, coordinator.tail()
    for worker in workers:
        worker.process.terminate()
    assert [worker.wait() for worker in workers] == [0, 0]

    goodbyes = [worker.notes("worker_stopped")[0] for worker in workers]
    sent_down = coordinator.notes("coordinator_stopped")[0]["messages_published"]
    sent_up = sum(goodbye["messages_published"] for goodbye in goodbyes)
    flushes = sum(goodbye["fsyncs"] for goodbye in goodbyes)
    figures = {"messages_down": sent_down, "messages_up": sent_up, "fsyncs": flushes}
    record("per_round", {name: total / rounds for name, total in figures.items()})
    assert [note["clients_counted"] for note in coordinator.notes("round_finished")] == [clients] * rounds
    # Draw and job, a roster for each process, the change; the rest is for the beginning.
    assert sent_down <= (3 + processes) * rounds + 5 * clients
    # One message for offers and one for words of each process, if its clients are ready together.
    assert sent_up <= 1.5 * 2 * processes * rounds + 5 * clients
    # The finished update and the spent mark of each client; before that, its new state directory.
    assert flushes <= (2 * rounds + 12) * clients


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
