"""A whole federation on the in-process broker, under a virtual clock: every part may be killed and started again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coordinator.output import Evaluator, InlineOutput
from coordinator.service import CoordinatorService
from shared.codec.flatten import read_weights
from shared.codec.quantize import UniformSource
from shared.effects import Note
from shared.inbox import Inbox
from shared.membership import Membership
from shared.modellog.reader import Accepted
from shared.plan import Plan
from shared.telemetry import Telemetry
from shared.transport.memory import Faults, MemoryBroker, MemoryTransport
from shared.transport.port import Delivered, Delivery, Outcome, Queue, StreamStart, Topology
from shared.wire.framing import split_batch
from shared.wire.log_messages import ChangeEntry, Entry
from shared.wire.messages import Message
from shared.wire.topology import log_queue
from tests.builders import ENROLMENT, make_federation, tiny_plan
from tests.simulation.stages import Stages
from tests.tiny_workload import RECORDS_MAX, TinyWorkload
from worker.events import Train, TrainingFailed, TrainingFinished
from worker.policy import Policy
from worker.service import Identity, WorkerService
from worker.state import ClientState
from worker.storage import MemoryStorage
from worker.trainer import Trained, Trainer

TICK_S = 0.25
TURNS_MAX = 20_000


class PowerCut(Exception):
    """A disk lost power in the middle of an operation."""


def run_plan(workload: TinyWorkload, clients: int, **fields: Any) -> Plan:
    """A plan with short deadlines; `round` and other fields are merged."""
    rounds = {
        "rounds": 5,
        "min_clients": clients,
        "round_deadline_s": 20.0,
        "group_step_s": 6.0,
        "sums_deadline_s": 20.0,
        "status_interval_s": 2.0,
        "snapshot_every": 3,
        **fields.pop("round", {}),
    }
    return tiny_plan(
        workload.dimension,
        **{
            "layout_digest": workload.layout_digest,
            "weight_records_max": 2 * RECORDS_MAX,
            "metric_bounds": dict(workload.recipe.metric_bounds),
            "training": {"optimizer": {"name": "SGD", "options": {"lr": 0.1}}, "batch_size": 2, "local_epochs": 1},
            "codec": {"selection": "dense", "density": 1.0, "bits": 32, "clipping_norm": 20.0,
                      "adaptive_clipping": False},
            "aggregation": {"rule": "mean", "trim": 0},
            "round": rounds,
            **fields,
        },
    )  # fmt: skip


class Tap:
    """A transport that writes down what its owner publishes and how it settles."""

    def __init__(self, inner: MemoryTransport, history: list[tuple[Any, ...]]) -> None:
        self.inner = inner
        self._history = history

    def connect(self) -> str:
        return self.inner.connect()

    def declare(self, topology: Topology) -> None:
        self.inner.declare(topology)

    def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
        self._history.append(("publish", routing_key, bytes(body)))
        return self.inner.publish(exchange, routing_key, body, persistent=persistent)

    def consume(self, queue: Queue, *, prefetch: int, start: StreamStart | None = None) -> None:
        self._history.append(("consume", queue.name))
        self.inner.consume(queue, prefetch=prefetch, start=start)

    def cancel(self, queue: str) -> None:
        self.inner.cancel(queue)

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        self._history.append(("settle", delivery.queue, outcome))
        self.inner.settle(delivery, outcome)

    def close(self, timeout_s: float = 5.0) -> None:
        self.inner.close(timeout_s)


class TimedTraining:
    """Training whose outcome is there after `duration_s()` of virtual time, times its client's `slowness` (1)."""

    def __init__(self, run: FederationRun, trainer: Trainer, inbox: Inbox[Any]) -> None:
        self._run = run
        self._trainer = trainer
        self._inbox = inbox
        self._due: dict[str, tuple[float, Trained]] = {}

    def start(self, client: str, order: Train) -> None:
        trained = self._trainer.run(client, order, lambda: False)
        assert trained is not None
        trained = self._run.tamper(trained)
        if isinstance(trained.outcome, TrainingFinished):
            self._run.updates.append((client, trained.outcome))
        self._due[client] = (self._run.now + self._run.duration_s() * self._run.slowness.get(client, 1.0), trained)

    def stop(self, client: str) -> None:
        self._due.pop(client, None)

    def forget(self, client: str) -> None:
        self.stop(client)
        self._trainer.forget(client)

    def close(self) -> None:
        self._due.clear()

    def deliver(self) -> None:
        for client, (due, trained) in list(self._due.items()):
            if self._run.now >= due:
                del self._due[client]
                self._inbox.put([trained])


@dataclass
class Process:
    """One worker process."""

    clients: tuple[str, ...]
    service: WorkerService
    inbox: Inbox[Any]
    transport: MemoryTransport
    history: list[tuple[Any, ...]]
    training: TimedTraining | None = None
    notes: list[Note] = field(default_factory=list)


class FederationRun:
    """Coordinator, worker processes, broker. `turn` lets everybody handle what came in, then time pass."""

    rounding_of: Callable[[int], UniformSource] = staticmethod(np.random.default_rng)

    def __init__(
        self,
        *,
        clients: int = 4,
        processes: int = 2,
        plan: dict[str, Any] | None = None,
        faults: Faults | None = None,
        workload: TinyWorkload | None = None,
        policy: Policy | None = None,
        seed: int = 0,
        stages: int | None = None,
    ) -> None:
        """`stages` processes sum, if that is given; if not, the coordinator does it."""
        self.workload = workload or TinyWorkload()
        self.keys = make_federation(clients)
        self.clients = sorted(self.keys.clients)
        self.plan = run_plan(self.workload, clients, **(plan or {}))
        self.policy = policy or Policy(allow_groups_of_one=self.plan.group_size == 1)
        self.now = 1.0
        self.broker = MemoryBroker(lambda: self.now, faults)
        self.chance = random.Random(seed)
        # Nonces decide who meets whom and in which order things happen: they are the same in every run.
        self.entropy = random.Random(f"entropy of {seed}").randbytes
        self.duration_s: Callable[[], float] = lambda: 0.0
        self.slowness: dict[str, float] = {}
        self.tamper: Callable[[Trained], Trained] = lambda trained: trained
        self.updates: list[tuple[str, TrainingFinished]] = []
        self.notes: list[Note] = []
        self.published: list[tuple[str, bytes]] = []
        self.storages = {client: MemoryStorage(client) for client in self.clients}
        self.shares = [tuple(self.clients[i::processes]) for i in range(processes)]
        self.known = [self.keys.signed] * processes
        self._sessions = 0
        self._sums_here = stages is None
        self.start_coordinator()
        self.stages = Stages(self, stages or 0)
        self.processes: list[Process | None] = [None] * processes
        for index in range(processes):
            self.start_worker(index)

    # ── parts ──

    def start_coordinator(self) -> None:
        self._sessions += 1
        inbox: Inbox[Any] = Inbox()
        self.coordinator_inbox = inbox
        self.coordinator_transport = MemoryTransport(self.broker, inbox.put, name="coordinator")
        self.coordinator_history: list[tuple[Any, ...]] = []
        self.coordinator = CoordinatorService(
            self.plan,
            self.keys.members(),
            self.keys.coordinator,
            Tap(self.coordinator_transport, self.coordinator_history),
            read_weights(self.workload.model(), float_buffers=self.plan.float_buffers),
            InlineOutput(
                Evaluator(self.workload, self.plan.float_buffers), None, lambda finished: inbox.put([finished])
            ),
            session=self._sessions.to_bytes(16, "big"),
            clock_us=lambda: int(self.now * 1e6),
            telemetry=Telemetry(self.notes.append),
            sums_here=self._sums_here,
        )
        self.coordinator.start()

    def crash_coordinator(self) -> None:
        self.broker.crash(self.coordinator_transport)
        self.start_coordinator()

    def start_worker(self, index: int, *, members: Membership | None = None) -> Process:
        clients = self.shares[index]
        inbox: Inbox[Any] = Inbox()
        history: list[tuple[Any, ...]] = []
        members = members or Membership(self.known[index], ENROLMENT.public)
        directory = members.directory
        self._sessions += 1
        transport = MemoryTransport(self.broker, inbox.put, name=f"p{self._sessions}")
        notes: list[Note] = []
        service = WorkerService(
            Identity(members, "site-0", f"w-{self._sessions}", {c: self.keys.clients[c] for c in clients}, self.policy),
            {
                client: ClientState(self.storages[client], client=client, federation=directory.federation_id)
                for client in clients
            },
            Tap(transport, history),
            lambda plan: self._make_training(index, plan, inbox),
            rounding=self.rounding_of(self._sessions),
            clock_us=lambda: int(self.now * 1e6),
            telemetry=Telemetry(notes.append),
            keep_directory=lambda newest: self.known.__setitem__(index, newest.signed),
            entropy=self.entropy,
        )
        process = Process(clients, service, inbox, transport, history, notes=notes)
        self.processes[index] = process
        service.start()
        return process

    def _make_training(self, index: int, plan: Plan, inbox: Inbox[Any]) -> TimedTraining:
        process = self.processes[index]
        assert process is not None
        process.training = TimedTraining(self, Trainer(self.workload, plan, lambda _: None, 0), inbox)
        return process.training

    def crash_worker(self, index: int) -> None:
        """Kill a process without a word; its clients' disks lose what was not synced."""
        process = self.processes[index]
        if process is not None:
            self._collect(process)
            self.broker.crash(process.transport)
            self.processes[index] = None
        for client in self.shares[index]:
            self.storages[client].on_boundary = None
            self.storages[client].crash(self.chance)

    # ── time ──

    def turn(self) -> None:
        self.broker.advance(self.now)
        busy = self._step_coordinator()
        busy = self.stages.step() or busy
        for index, process in enumerate(self.processes):
            if process is None:
                continue
            if process.training is not None:
                process.training.deliver()
            items = process.inbox.take(0)
            busy = busy or bool(items)
            try:
                process.service.step(items, self.now)
            except PowerCut:
                self.crash_worker(index)
        if not busy:
            due = self.broker.next_event_at()
            self.now = min(self.now + TICK_S, max(self.now, due) if due is not None else self.now + TICK_S)

    def _step_coordinator(self) -> bool:
        items = self.coordinator_inbox.take(0)
        self.coordinator.step(items, self.now)
        return bool(items)

    def run(self, until: Callable[[], bool] | None = None, each_turn: Callable[[], None] = lambda: None) -> None:
        """Turn until the coordinator is finished, or `until` holds."""
        for _ in range(TURNS_MAX):
            if until() if until else self.coordinator.finished is not None:
                return
            self.turn()
            each_turn()
        raise AssertionError(f"stalled at version {self.version} after {self.now:.0f} virtual seconds")

    # ── what came of it ──

    @property
    def version(self) -> int:
        chain = self.coordinator.log.chain
        return -1 if chain is None else chain.version

    def figures(self) -> list[dict[str, Any]]:
        return [note.fields for note in self.notes if note.event == "round_finished"]

    def count(self, event: str) -> int:
        return sum(note.event == event for note in self.notes)

    def messages(self, history: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, Message]]:
        """Sender and content of every message in a history's publishes, in order."""
        opener = self.keys.opener()
        for entry in history:
            if entry[0] == "publish":
                for frame in split_batch(entry[2]):
                    opened = opener.open(frame)
                    yield opened.sender, opened.message

    def from_workers(self) -> list[tuple[str, Message]]:
        """Every message that any worker process has published, process by process."""
        for process in self.processes:
            if process is not None:
                self._collect(process)
        return list(self.messages([("publish", key, body) for key, body in self.published]))

    def _collect(self, process: Process) -> None:
        self.published += [(entry[1], entry[2]) for entry in process.history if entry[0] == "publish"]
        process.history.clear()

    def read_log(self) -> tuple[list[Entry], list[np.ndarray]]:
        """What a new reader of the whole log accepts: all entries, and the weights of every version."""
        inbox: Inbox[Any] = Inbox()
        transport = MemoryTransport(self.broker, inbox.put, name="reader")
        self.broker.inject(None)
        transport.consume(log_queue(self.keys.names, 0), prefetch=65_535, start="first")
        reader = self.keys.reader()
        entries: list[Entry] = []
        weights: list[np.ndarray] = []
        for item in inbox.take(0):
            if isinstance(item, Delivered):
                for delivery in item.deliveries:
                    assert delivery.offset is not None
                    for event in reader.feed(delivery.offset, delivery.body):
                        if isinstance(event, Accepted):
                            entries.append(event.entry)
                            if isinstance(event.entry, ChangeEntry) or len(entries) == 1:
                                weights.append(reader.weights)
        return entries, weights


def unlike_others(trained: Trained, chance: random.Random) -> Trained:
    """The same run with an update that no other run has: few records in few orders give equal ones by chance."""
    outcome = trained.outcome
    if isinstance(outcome, TrainingFailed):
        return trained
    return replace(trained, outcome=replace(outcome, values=outcome.values + np.float32(chance.uniform(-0.01, 0.01))))


def pushed_away(trained: Trained) -> Trained:
    """The same run with an update that leads away from any solution."""
    outcome = trained.outcome
    if isinstance(outcome, TrainingFailed):
        return trained
    return replace(trained, outcome=replace(outcome, values=np.ones_like(outcome.values)))


def failed(trained: Trained, reason: str) -> Trained:
    """The same run, but failed."""
    return Trained(trained.client, TrainingFailed(trained.outcome.task, reason))
