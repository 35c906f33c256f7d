"""Runs the training of all seats of a process, outside the protocol's thread."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from shared.codec.validation import slot_values
from shared.errors import ComitiaError
from shared.plan import Plan
from shared.privacy.entropy import SecureSource
from shared.workloads.port import Examples, TrainingRecipe, Workload
from worker.events import Train, TrainingFailed, TrainingFinished
from worker.training.device import CPU
from worker.training.dp_sgd import DpSgd, check_model
from worker.training.plain import PlainTraining, TrainingOutcome, TrainingStopped
from worker.training.validation import Records, measure, split_records


@dataclass(frozen=True, slots=True)
class Trained:
    """A run ended; for whom, and how."""

    client: str
    outcome: TrainingFinished | TrainingFailed


Deliver = Callable[[Sequence[Trained]], None]

TOGETHER_S = 0.01


class Training(Protocol):
    """Runs training somewhere and delivers `Trained` to whoever made it."""

    def start(self, client: str, order: Train) -> None:
        """Begin a run."""

    def stop(self, client: str) -> None:
        """Give a run up."""

    def forget(self, client: str) -> None:
        """Give its run up and let go of its data: it is served here no more."""

    def close(self) -> None:
        """Give everything up."""


class Preparing(Protocol):
    """Makes the training for a plan, or says why this worker cannot serve it."""

    def __call__(self, plan: Plan) -> Training:
        """Raises ComitiaError with the reason of a mismatch."""


class Runs(Protocol):
    """Whatever can train once."""

    def run(self, client: str, order: Train, should_stop: Callable[[], bool]) -> Trained | None:
        """See `Trainer.run`."""

    def forget(self, client: str) -> None:
        """See `Trainer.forget`."""


class Trainer:
    """Trains one client after the other on one model object. Not thread-safe: one run at a time."""

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        data_path: Callable[[str], Path | None],
        seed: int | None,
        device: torch.device = CPU,
    ) -> None:
        """
        Args:
            workload: model and data.
            plan: says how to train.
            data_path: where a client keeps its data, None if the workload knows.
            seed: makes runs repeatable; None draws from the operating system. Noise that follows from a seed that
                somebody knows protects nothing.
            device: where to train.

        Raises:
            WorkloadError: the plan's optimizer does not exist, or the model cannot be made.
        """
        training = plan.training
        recipe = TrainingRecipe(
            optimizer=training.optimizer.name,
            options=training.optimizer.options,
            batch_size=training.batch_size,
            local_epochs=training.local_epochs,
        )
        self._workload = workload
        self._training = PlainTraining(
            workload.loss, recipe, training.proximal_mu, float_buffers=plan.float_buffers, device=device
        )
        noise = plan.record_noise
        self._private = None if noise is None else DpSgd(workload.loss, noise, device=device)
        self._model: nn.Module = workload.model().to(device)
        self._data_path = data_path
        self._records: dict[str, Records] = {}
        self._plan = plan
        self._seed = seed

    def run(self, client: str, order: Train, should_stop: Callable[[], bool]) -> Trained | None:
        """Measure the received weights, if the plan asks for it, then train once.

        Whatever goes wrong in a user's model or data is a `TrainingFailed`; None if it was stopped.
        """
        try:
            records = self._records_of(client)
            measured = measure(
                self._workload,
                self._model,
                order.weights,
                records.validation,
                float_buffers=self._plan.float_buffers,
            )
            outcome = self._train(client, order, records.training, should_stop)
        except TrainingStopped:
            return None
        except ComitiaError as error:
            return Trained(client, TrainingFailed(order.task, str(error)))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code: its failure is this client's alone
            kind = type(error).__name__
            failed = TrainingFailed(order.task, f"{kind}; the worker's log says more", f"{kind}: {error}")
            return Trained(client, failed)
        metrics = {**outcome.metrics, **slot_values(measured, self._plan.metric_bounds)}
        return Trained(client, TrainingFinished(order.task, outcome.update, outcome.num_examples, metrics))

    def forget(self, client: str) -> None:
        """Let go of a client's data; they are loaded again if it comes back."""
        self._records.pop(client, None)

    def _train(self, client: str, order: Train, records: Examples, should_stop: Callable[[], bool]) -> TrainingOutcome:
        seed = self._run_seed(client, order)
        if self._private is None:
            return self._training.train(self._model, records, order.weights, seed, should_stop, order.coordinates)
        seeded = self._seed is not None
        source = SecureSource(hashlib.sha256(f"noise/{seed}".encode()).digest()) if seeded else SecureSource.fresh()
        return self._private.train(self._model, records, order.weights, seed, source, should_stop, order.coordinates)

    def _records_of(self, client: str) -> Records:
        if client not in self._records:
            records = self._workload.client_data(client, self._data_path(client))
            if self._private is not None:
                check_model(self._model, records)
            name = f"{self._plan.federation_id}/{client}"
            self._records[client] = split_records(records, self._plan.evaluation.client_share, name)
        return self._records[client]

    def _run_seed(self, client: str, order: Train) -> int:
        if self._seed is None:
            return secrets.randbits(63)
        text = f"{self._seed}/{client}/{order.task.version}/{order.task.attempt}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class TrainingThread:
    """One thread that runs the seats' training in the order in which it was asked for.

    Results of short runs are handed over together: each hand-over costs the protocol's thread a turn, a wake-up and a
    message of its own. A result waits for the next run at most `TOGETHER_S`.
    """

    def __init__(self, trainer: Runs, deliver: Deliver) -> None:
        self._trainer = trainer
        self._deliver = deliver
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self._stops: dict[str, threading.Event] = {}
        self._waiting = 0
        self._lock = threading.Lock()
        self._kept: list[tuple[Trained, threading.Event]] = []

    def start(self, client: str, order: Train) -> None:
        """Queue a run; an older one of this client is given up."""
        self.stop(client)
        stop = self._stops[client] = threading.Event()
        with self._lock:
            self._waiting += 1
        self._executor.submit(self._run, client, order, stop)

    def stop(self, client: str) -> None:
        """Give this client's run up, if there is one."""
        stop = self._stops.pop(client, None)
        if stop is not None:
            stop.set()

    def forget(self, client: str) -> None:
        """See `Training.forget`. In turn: the run that is given up may only be loading them."""
        self.stop(client)
        self._executor.submit(self._trainer.forget, client)

    def close(self) -> None:
        """Give all runs up and wait for the one in progress to notice."""
        for client in list(self._stops):
            self.stop(client)
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, client: str, order: Train, stop: threading.Event) -> None:
        trained = None if stop.is_set() else self._trainer.run(client, order, stop.is_set)
        with self._lock:
            self._waiting -= 1
            last, first = self._waiting == 0, not self._kept
            if trained is not None:
                self._kept.append((trained, stop))
        if last:
            self._hand_over()
        elif first and trained is not None:
            threading.Timer(TOGETHER_S, self._hand_over).start()

    def _hand_over(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, []
        if kept:
            self._deliver([trained for trained, stop in kept if not stop.is_set()])


class InlineTraining:
    """Training in the caller's thread, for simulations: the outcome is there when `start` returns."""

    def __init__(self, trainer: Runs, deliver: Deliver) -> None:
        self._trainer = trainer
        self._deliver = deliver

    def start(self, client: str, order: Train) -> None:
        """Train now."""
        trained = self._trainer.run(client, order, lambda: False)
        if trained is not None:
            self._deliver([trained])

    def stop(self, client: str) -> None:
        """Nothing runs between two calls of `start`."""

    def forget(self, client: str) -> None:
        """See `Training.forget`."""
        self._trainer.forget(client)

    def close(self) -> None:
        """Nothing is held."""
