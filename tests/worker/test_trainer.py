"""Training outside the protocol's thread: what comes back, what does not, and whose failure it is."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import TensorDataset

from shared.errors import WorkloadError
from tests.simulation.federation import run_plan
from tests.tiny_workload import TINY_DIMENSION, TinyWorkload
from worker.events import Train, TrainingFailed, TrainingFinished
from worker.stored_update import TaskId
from worker.trainer import InlineTraining, Trained, Trainer, TrainingThread


def order(version: int = 0, attempt: int = 0) -> Train:
    return Train(TaskId(version, attempt), np.zeros(TINY_DIMENSION, np.float32))


def trainer(workload: TinyWorkload | None = None, seed: int | None = 0) -> Trainer:
    workload = workload or TinyWorkload()
    return Trainer(workload, run_plan(workload, 2), lambda client: Path("data") / client, seed)


def finished(trained: Trained | None) -> TrainingFinished:
    assert trained is not None
    assert isinstance(trained.outcome, TrainingFinished)
    return trained.outcome


def test_an_outcome_says_what_was_trained_on_how_much() -> None:
    outcome = finished(trainer().run("client-0", order(3, 1), lambda: False))

    assert outcome.task == TaskId(3, 1)
    assert outcome.values.shape == (TINY_DIMENSION,)
    assert outcome.values.dtype == np.float32
    assert np.any(outcome.values != 0)
    assert outcome.num_examples == len(TinyWorkload().client_data("client-0", None))
    assert set(outcome.metrics) == {"loss"}


def test_a_seed_makes_runs_repeatable_and_tells_client_and_task_apart() -> None:
    first, again = (finished(trainer().run("client-0", order(), lambda: False)).values for _ in range(2))
    np.testing.assert_array_equal(first, again)

    shared = trainer()
    others = [
        finished(shared.run(client, order(version, attempt), lambda: False)).values
        for client, version, attempt in (("client-1", 0, 0), ("client-0", 1, 0), ("client-0", 0, 1))
    ]
    assert all(np.any(first != other) for other in others)


def test_a_clients_data_are_loaded_once_from_its_own_place() -> None:
    asked: list[tuple[str, Path | None]] = []

    class Watched(TinyWorkload):
        def client_data(self, client: str, path: Path | None) -> TensorDataset:
            asked.append((client, path))
            return super().client_data(client, path)

    shared = trainer(Watched())
    for client in ("client-0", "client-1", "client-0"):
        shared.run(client, order(), lambda: False)
    assert asked == [("client-0", Path("data/client-0")), ("client-1", Path("data/client-1"))]


def test_data_of_a_client_that_is_forgotten_are_let_go_of_and_loaded_anew() -> None:
    loaded: list[weakref.ref[TensorDataset]] = []

    class Watched(TinyWorkload):
        def client_data(self, client: str, path: Path | None) -> TensorDataset:
            data = super().client_data(client, path)
            loaded.append(weakref.ref(data))
            return data

    shared = trainer(Watched())
    finished(shared.run("client-0", order(), lambda: False))
    assert loaded[0]() is not None
    shared.forget("client-0")
    assert loaded[0]() is None
    finished(shared.run("client-0", order(), lambda: False))
    assert len(loaded) == 2


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        # What foreign code says may quote a record.
        (KeyError("Doe"), TrainingFailed(TaskId(0, 0), "KeyError; the worker's log says more", "KeyError: 'Doe'")),
        (SystemExit(3), TrainingFailed(TaskId(0, 0), "SystemExit; the worker's log says more", "SystemExit: 3")),
        (WorkloadError("workload: no file x"), TrainingFailed(TaskId(0, 0), "workload: no file x")),
    ],
)
def test_whatever_a_workload_raises_is_this_runs_failure(error: BaseException, failure: TrainingFailed) -> None:
    class Broken(TinyWorkload):
        tries = 0

        def client_data(self, client: str, path: Path | None) -> TensorDataset:
            Broken.tries += 1
            if Broken.tries == 1:
                raise error
            return super().client_data(client, path)

    shared = trainer(Broken())
    assert shared.run("client-0", order(), lambda: False) == Trained("client-0", failure)
    finished(shared.run("client-0", order(), lambda: False))


def test_a_stopped_run_has_no_outcome() -> None:
    assert trainer().run("client-0", order(), lambda: True) is None


def test_inline_training_delivers_at_once() -> None:
    delivered: list[Trained] = []
    training = InlineTraining(trainer(), delivered.extend)
    training.start("client-0", order())

    assert [trained.client for trained in delivered] == ["client-0"]
    training.stop("client-0")
    training.close()


class Held:
    """A trainer whose runs begin when they are let go, and notice when they are stopped."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.runs: list[tuple[str, TaskId]] = []
        self.forgotten: list[str] = []

    def run(self, client: str, order: Train, should_stop: Any) -> Trained | None:
        self.runs.append((client, order.task))
        self.begun.release()
        assert self.go.acquire(timeout=10)
        return None if should_stop() else Trained(client, TrainingFailed(order.task, "held"))

    def forget(self, client: str) -> None:
        self.forgotten.append(client)


class Bench:
    """A training thread over a held trainer, and what it has delivered."""

    def __init__(self) -> None:
        self.held = Held()
        self.delivered: list[tuple[str, TaskId]] = []
        self.news = threading.Semaphore(0)
        self.training = TrainingThread(self.held, self._take)  # type: ignore[arg-type]

    def _take(self, trained: Sequence[Trained]) -> None:
        for one in trained:
            self.delivered.append((one.client, one.outcome.task))
            self.news.release()

    def await_delivered(self, count: int) -> None:
        for _ in range(count):
            assert self.news.acquire(timeout=10)


def test_runs_follow_each_other_in_one_thread() -> None:
    bench = Bench()
    for client in ("a", "b", "c"):
        bench.training.start(client, order())
    for _ in range(3):
        bench.held.go.release()
    bench.await_delivered(3)
    bench.training.close()

    assert bench.held.runs == bench.delivered == [(client, TaskId(0, 0)) for client in ("a", "b", "c")]


def test_a_newer_order_gives_the_older_run_up() -> None:
    bench = Bench()
    bench.training.start("a", order(0))
    assert bench.held.begun.acquire(timeout=10)
    bench.training.start("a", order(1))
    for _ in range(2):
        bench.held.go.release()
    bench.await_delivered(1)
    bench.training.close()

    assert bench.delivered == [("a", TaskId(1, 0))]


def test_a_run_that_was_stopped_in_the_queue_never_begins() -> None:
    bench = Bench()
    bench.training.start("a", order())
    assert bench.held.begun.acquire(timeout=10)
    bench.training.start("b", order())
    bench.training.stop("b")
    bench.held.go.release()
    bench.await_delivered(1)
    bench.training.close()

    assert bench.held.runs == bench.delivered == [("a", TaskId(0, 0))]


def test_a_client_is_forgotten_when_its_run_has_ended() -> None:
    bench = Bench()
    bench.training.start("a", order())
    assert bench.held.begun.acquire(timeout=10)
    bench.training.forget("a")
    assert bench.held.forgotten == []
    bench.training.start("b", order())
    for _ in range(2):
        bench.held.go.release()
    bench.await_delivered(1)
    bench.training.close()

    assert bench.held.forgotten == ["a"]
    assert bench.delivered == [("b", TaskId(0, 0))]


def test_closing_gives_everything_up() -> None:
    bench = Bench()
    for client in ("a", "b"):
        bench.training.start(client, order())
    assert bench.held.begun.acquire(timeout=10)
    closing = threading.Thread(target=bench.training.close)
    closing.start()
    # Let go any earlier, the first run could end, and the second begin, before it is given up.
    while bench.training._stops:
        time.sleep(0.001)
    bench.held.go.release()
    closing.join()

    assert bench.held.runs == [("a", TaskId(0, 0))]
    assert bench.delivered == []


def test_an_order_with_coordinates_moves_only_these() -> None:
    restricted = Train(TaskId(0, 0), np.zeros(TINY_DIMENSION, np.float32), np.array([1]))
    assert np.flatnonzero(finished(trainer().run("client-0", restricted, lambda: False)).values).tolist() == [1]
