"""A whole federation in one process: the real machines and codecs on the in-process broker, under a virtual clock.

There is no thread. A round trip takes no virtual time; deadlines pass as soon as nothing else can happen.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import secrets
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field

from coordinator.dry_run import privacy_notes
from coordinator.events import EvaluationFinished
from coordinator.initial_weights import first_weights
from coordinator.output import Evaluator, InlineOutput
from coordinator.presets import with_preset
from coordinator.service import TICK_S, CoordinatorService
from coordinator.settings import plan_of
from deploy.demo.attacker import Attacker
from deploy.demo.costs import Costs
from deploy.demo.doom import Doom, DoomedTraining, DoomedTransport
from deploy.demo.options import DemoOptions, Share, settings_from
from deploy.demo.simulated_keys import SimulatedKeys, make_simulated_keys
from deploy.federation_keys import Entropy
from shared.attack_odds import odds_table
from shared.effects import Note, note
from shared.errors import ComitiaError
from shared.inbox import Inbox
from shared.membership import Membership
from shared.plan import Plan
from shared.privacy.entropy import SecureSource
from shared.telemetry import Telemetry
from shared.transport.memory import MemoryBroker, MemoryTransport
from shared.transport.port import Transport, TransportEvent
from shared.wire.topology import Names
from shared.workloads.loading import load_workload
from worker.service import Identity, WorkerService
from worker.state import ClientState
from worker.storage import MemoryStorage
from worker.trainer import Deliver, InlineTraining, Runs, Trained, Trainer, Training
from worker.update import prepare_words

FEDERATION = "simulation"
STALLED_TICKS_MAX = 100_000


class Stalled(ComitiaError):
    """A simulation in which nothing happens any more."""

    exit_code = 1


WorkerInbox = Inbox[TransportEvent | Trained]
CoordinatorInbox = Inbox[TransportEvent | EvaluationFinished]


@dataclass
class _Process:
    number: int
    service: WorkerService
    inbox: WorkerInbox
    seat: MemoryTransport
    dies_at: float = math.inf


@dataclass
class Simulation:
    """Coordinator, workers and broker of one run; `run` yields what the coordinator notes, and what it cost.

    Only processes that were sent something, or whose time has come, take a step. Keys, nonces and the federation's id
    come from `entropy`, and with the nonces who meets whom and which coordinates are drawn: a fixed one, as tests use
    it, gives the same run again.
    """

    options: DemoOptions
    now: float = 1.0
    entropy: Entropy = secrets.token_bytes
    _notes: list[Note] = field(default_factory=list)
    _ready: set[int] = field(default_factory=set)
    _timers: list[tuple[float, int]] = field(default_factory=list)

    def run(self) -> Iterator[Note]:
        """Run to the end of the planned rounds.

        Raises:
            ComitiaError: the options cannot be run, or the run stalled.
        """
        self._broker = MemoryBroker(lambda: self.now)
        secure = self.options.group_size > 1
        self._costs = costs = Costs(self.options.clients, secure=secure, journal_bytes=self._journal_bytes)
        keys = make_simulated_keys(FEDERATION, self.options.clients, self.entropy)
        self._members = Membership(keys.signed, keys.enrolment)
        costs.keys_made()
        coordinator, inbox = self._make_coordinator(keys)
        made = (self._make_process(keys, share) for share in self.options.shares(keys.clients))
        self._processes = {process.number: process for process in made}
        coordinator.start()
        for process in self._processes.values():
            process.service.start()
        with costs.sampler:
            yield from self._drive(coordinator, inbox)

    def _drive(self, coordinator: CoordinatorService, inbox: CoordinatorInbox) -> Iterator[Note]:
        idle = 0
        while coordinator.finished is None:
            items = inbox.take(0)
            coordinator.step(items, self.now)
            self._notes += self._costs.coordinator_stepped(coordinator.log.chain)
            busy = bool(items)
            for process in self._due():
                busy = self._step(process) or busy
            yield from self._take_notes()
            idle = 0 if busy else idle + 1
            if idle > STALLED_TICKS_MAX:
                raise Stalled(f"nothing has happened for {STALLED_TICKS_MAX * TICK_S:.0f} simulated seconds")
            if not busy:
                self.now += TICK_S
        yield from self._take_notes()
        yield self._costs.summary(self.options.trains)
        yield self._summary(coordinator)

    def _due(self) -> list[_Process]:
        """Who has something to do now, in the order of their making."""
        while self._timers and self._timers[0][0] <= self.now:
            self._ready.add(heapq.heappop(self._timers)[1])
        ready, self._ready = sorted(self._ready), set()
        return [self._processes[number] for number in ready if number in self._processes]

    def _step(self, process: _Process) -> bool:
        """Let a process act, or die; returns whether it was sent anything."""
        if self.now >= process.dies_at:
            self._broker.crash(process.seat)
            del self._processes[process.number]
            return False
        arrived = process.inbox.take(0)
        process.service.step(arrived, self.now)
        self._costs.worker_steps += 1
        # Timers of before stay: they lead to a step in which nothing is due.
        heapq.heappush(self._timers, (process.service.next_wakeup(), process.number))
        return bool(arrived)

    def _journal_bytes(self) -> int:
        journal = Names(FEDERATION).journal
        return sum(size for (_, key), size in self._broker.published_bytes.items() if key == journal)

    def _summary(self, coordinator: CoordinatorService) -> Note:
        chain, finished = coordinator.log.chain, coordinator.finished
        assert chain is not None
        assert finished is not None
        return note(
            "coordinator_stopped",
            finished=True,
            reason=finished.reason,
            version=chain.version,
            weights_sha256=chain.weights_sha256.hex(),
            counts=dict(coordinator.telemetry.counts),
        )

    def _hear(self, taken: Note) -> None:
        self._notes.append(taken)

    def _take_notes(self) -> Iterator[Note]:
        notes, self._notes = self._notes, []
        yield from notes
        yield from self._costs.progress()

    def _make_coordinator(self, keys: SimulatedKeys) -> tuple[CoordinatorService, CoordinatorInbox]:
        settings = with_preset(settings_from(self.options.coordinator_environment(keys.clients)))
        workload = load_workload(settings.workload, settings.workload_options)
        plan = plan_of(settings, keys.directory, workload)
        inbox: CoordinatorInbox = Inbox()

        def deliver(events: Sequence[TransportEvent]) -> None:
            self._costs.at_coordinator.count(events)
            inbox.put(events)

        service = CoordinatorService(
            plan,
            copy(self._members),
            keys.coordinator,
            MemoryTransport(self._broker, deliver, name="coordinator"),
            first_weights(settings.initial_weights, workload, plan.float_buffers),
            InlineOutput(Evaluator(workload, plan.float_buffers), None, lambda finished: inbox.put([finished])),
            session=self.entropy(16),
            clock_us=lambda: int(self.now * 1e6),
            telemetry=Telemetry(self._hear, process="coordinator"),
        )
        self._notes.append(note("attackers_chosen", clients=list(keys.clients[: self.options.attackers])))
        odds = odds_table(len(keys.clients), plan.group_size, plan.aggregation.trim)
        started: dict[str, object] = {"broker": "in-process", "attack_odds": odds, "plan": plan.model_dump(mode="json")}
        self._notes += [Note("coordinator_started", fields=started), *privacy_notes(plan, len(keys.clients))]
        return service, inbox

    def _make_process(self, keys: SimulatedKeys, share: Share) -> _Process:
        clients, inbox, number = share.clients, WorkerInbox(), keys.clients.index(share.clients[0])

        def deliver(events: Sequence[TransportEvent | Trained]) -> None:
            self._costs.at_workers.count(events)
            self._ready.add(number)
            inbox.put(events)

        seat = MemoryTransport(self._broker, deliver, name=clients[0])
        transport: Transport = seat
        doom: Doom | None = None
        if share.doomed_in is not None:
            doom = Doom(share.doomed_in, self.options.drop_version, lambda delay_s: self._end_later(process, delay_s))
            transport = DoomedTransport(seat, doom)
        attacker: Attacker | None = None
        if share.attacks:
            honest = [client for client in keys.clients if client not in clients]
            attacker = Attacker(self.options.attack_or_default, clients, honest, self.options.seed)
        directory = keys.directory
        service = WorkerService(
            Identity(
                copy(self._members),
                directory.clients[clients[0]].site,
                f"w-{clients[0]}",
                {client: keys.of_client[client] for client in clients},
                self.options.policy,
            ),
            {
                client: ClientState(MemoryStorage(), client=client, federation=directory.federation_id)
                for client in clients
            },
            transport,
            lambda plan: self._make_training(plan, deliver, doom, attacker),
            rounding=SecureSource(hashlib.sha256(f"{self.options.seed}/{','.join(clients)}".encode()).digest()),
            clock_us=lambda: int(self.now * 1e6),
            telemetry=Telemetry(lambda _: None, process="worker"),
            keep_directory=lambda _: None,
            entropy=self.entropy,
            encode=prepare_words if attacker is None else attacker.encode,
        )
        process = _Process(number, service, inbox, seat)
        return process

    def _end_later(self, process: _Process, delay_s: float) -> None:
        process.dies_at = self.now + delay_s
        heapq.heappush(self._timers, (process.dies_at, process.number))

    def _make_training(self, plan: Plan, deliver: Deliver, doom: Doom | None, attacker: Attacker | None) -> Training:
        workload = load_workload(plan.workload, plan.workload_options)
        if attacker is not None:
            workload = attacker.poison(workload)
        trainer: Runs = Trainer(workload, plan, lambda _: None, self.options.seed)
        if attacker is not None:
            trainer = attacker.watch(trainer)
        training: Training = InlineTraining(trainer, deliver)
        return training if doom is None else DoomedTraining(training, doom)
