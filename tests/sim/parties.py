"""The processes of a simulated federation: each can die between two effects, stand still, and come back."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.events import Evaluate, EvaluationFinished, KeepModel
from coordinator.log_writer import Fenced
from coordinator.service import CoordinatorService
from coordinator.summing.service import StageService
from shared.effects import Note
from shared.inbox import Inbox
from shared.membership import Membership
from shared.plan import Plan
from shared.privacy.entropy import SecureSource
from shared.telemetry import Telemetry
from shared.transport.memory import MemoryTransport
from tests.builders import ENROLMENT
from tests.sim.training import SimulatedTraining
from tests.sim.transport import Killed, WatchedTransport
from tests.sim.witness import tag_of
from worker.service import Identity, WorkerService
from worker.signs_of_life import Phase
from worker.state import ClientState
from worker.update import PreparedUpdate, prepare_words

if TYPE_CHECKING:
    from tests.sim.world import World

BROKER_PATIENCE_S = 16.0
"""The broker closes the connection of a client after two heartbeats without a sign of life."""


class Party(ABC):
    """One process. `down_until` is None while it lives; a party that is gone for good has infinity there."""

    kind = "party"

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.sessions = 0
        self.doom: int | None = None
        self.down_until: float | None = 0.0
        self.frozen_at = self.frozen_until = 0.0
        self.cut_off = False
        self.inbox: Inbox[Any] = Inbox()
        self.transport: MemoryTransport | None = None
        self.notes_from = 0

    @property
    def alive(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self.down_until is None

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self.alive and self.world.now < self.frozen_until

    # ── to be said by each kind ──

    @abstractmethod
    def begin(self) -> None:
        """Make the service and start it."""

    @abstractmethod
    def advance(self, items: list[Any], now: float) -> None:
        """One step of the service."""

    @abstractmethod
    def died(self) -> None:
        """The process is gone."""

    @abstractmethod
    def next_at(self) -> float:
        """When it wants to be stepped although nothing came in."""

    # ── life ──

    def start(self) -> None:
        """A new process in this party's place."""
        self.sessions += 1
        self.down_until, self.frozen_until, self.cut_off = None, 0.0, False
        self.inbox = Inbox()
        self.transport = MemoryTransport(self.world.broker, self.inbox.put, name=f"{self.name}.{self.sessions}")
        self.world.tell(f"{self.name} starts")
        self._guarded(self.begin)

    def step(self) -> bool:
        """Handle what came in; whether there was anything."""
        world = self.world
        if not self.alive:
            assert self.down_until is not None
            if world.now < self.down_until:
                return False
            self.start()
            return True
        if self.frozen:
            self._stand_still()
            return False
        items = self.inbox.take(0)
        if len(items) > 1 and world.order.random() < 0.2:
            # A process may be woken at any point of what comes in.
            keep = world.order.randrange(1, len(items))
            self.inbox.put(items[keep:])
            items = items[:keep]
        if items or world.now >= self.next_at():
            self._guarded(lambda: self.advance(items, world.now))
        return bool(items)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Killed as where:
            self.world.tell(f"{self.name} is killed {where}")
            self.world.count(f"crash_{self.kind}")
            self.world.count(f"crash_{_place(str(where))}")
            self.end(self.world.order.uniform(0.2, 6.0))

    def end(self, back_in_s: float | None) -> None:
        """The process is gone; another takes its place after so long, or never."""
        assert self.transport is not None
        self.world.count("overtaking", self.transport.seat.overtakings)
        self.world.broker.crash(self.transport)
        self.doom = None
        self.down_until = float("inf") if back_in_s is None else self.world.now + back_in_s
        self.died()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP now, SIGCONT after so many seconds."""
        self.frozen_at, self.frozen_until, self.cut_off = self.world.now, self.world.now + seconds, False
        self.world.tell(f"{self.name} stands still for {seconds:.0f} s")
        self.world.count(f"freeze_{self.kind}")

    def _stand_still(self) -> None:
        now = self.world.now
        if not self.cut_off and now >= self.frozen_at + BROKER_PATIENCE_S:
            assert self.transport is not None
            self.cut_off = True
            self.world.tell(f"{self.name} is cut off by the broker")
            self.world.broker.disconnect(self.transport, self.frozen_until - now)

    def boundary(self, effect: str) -> None:
        """Between two effects: here a party whose time has come dies."""
        if self.doom is not None:
            self.doom -= 1
            if self.doom <= 0:
                self.doom = None
                raise Killed(effect)

    def tap(self) -> WatchedTransport:
        """The transport of this session, watched."""
        assert self.transport is not None
        return WatchedTransport(
            self.transport,
            self.boundary,
            lambda key, body: self.world.on_publish(self, key, body),
            lambda queue, outcome: self.world.trace(f"{self.name} settles {queue} {outcome}"),
        )

    def entropy(self) -> Callable[[int], bytes]:
        """The random bytes of this session."""
        return random.Random(f"{self.world.scenario.seed} {self.name} {self.sessions}").randbytes

    def hear(self, note: Note) -> None:
        """What the process tells its operator."""
        self.world.on_note(self, note)


def _place(where: str) -> str:
    before_or_after, _, rest = where.partition(" ")
    kind = rest.split()[0]
    return f"{before_or_after}_{kind}" if kind in ("publish", "settle") else "in_disk_write"


class Coordinator(Party):
    """One coordinator process."""

    kind = "coordinator"
    TICK_S = 0.5

    def begin(self) -> None:
        world = self.world
        self._next = 0.0
        inbox = self.inbox
        self.service = CoordinatorService(
            world.scenario.plan,
            world.keys.members(),
            world.keys.coordinator,
            self.tap(),
            np.zeros(world.scenario.plan.dimension, dtype=np.float32),
            NoOutput(lambda finished: inbox.put([finished])),
            session=self.entropy()(16),
            clock_us=world.clock_us,
            telemetry=Telemetry(self.hear),
            sums_here=world.scenario.stages == 0,
        )
        self.service.start()

    def advance(self, items: list[Any], now: float) -> None:
        self._next = now + self.TICK_S
        try:
            self.service.step(items, now)
        except Fenced as error:
            # It stands by again, with another session.
            self.world.tell(f"{self.name} is replaced: {error}")
            self.end(1.0)

    def died(self) -> None:
        """Nothing of it is on a disk."""

    def next_at(self) -> float:
        return self._next


class NoOutput:
    """Evaluates nothing and keeps nothing: the model means nothing here."""

    def __init__(self, deliver: Callable[[EvaluationFinished], None]) -> None:
        self._deliver = deliver

    def evaluate(self, order: Evaluate) -> None:
        self._deliver(EvaluationFinished(order.version, order.weights, None))

    def keep(self, order: KeepModel) -> None:
        return


class Stage(Party):
    """One summing process."""

    kind = "stage"
    TICK_S = 0.5

    def begin(self) -> None:
        self._next = 0.0
        self.service = StageService(
            self.world.keys.members(),
            self.world.keys.coordinator,
            self.tap(),
            session=self.entropy()(16),
            heartbeat_s=BROKER_PATIENCE_S / 2,
            telemetry=Telemetry(self.hear),
        )
        self.service.start()

    def advance(self, items: list[Any], now: float) -> None:
        self._next = now + self.TICK_S
        self.service.step(items, now)

    def died(self) -> None:
        """Nothing of it is on a disk."""

    def next_at(self) -> float:
        return self._next


class Worker(Party):
    """One worker process and the disks of its clients."""

    kind = "worker"

    def __init__(self, world: World, name: str, clients: tuple[str, ...]) -> None:
        super().__init__(world, name)
        self.clients = clients
        self.known = world.keys.signed
        self.states: dict[str, ClientState] = {}
        self.training: SimulatedTraining | None = None
        self.service: WorkerService | None = None
        self.power_cut = False

    def begin(self) -> None:
        world = self.world
        self.training, self.service, self.states = None, None, {}
        directory = world.keys.directory
        for client in self.clients:
            storage = world.storages[client]
            storage.on_boundary = self.boundary
            self.states[client] = ClientState(storage, client=client, federation=directory.federation_id)
            world.witness.restarted(client, self.states[client], tag_of(self.states[client]))
        members = Membership(self.known, ENROLMENT.public)
        seed = hashlib.sha256(f"{world.scenario.seed} rounding {self.name} {self.sessions}".encode()).digest()
        self.service = WorkerService(
            Identity(
                members,
                "site-0",
                f"{self.name}-{self.sessions}",
                {client: world.keys.clients[client] for client in self.clients},
                world.scenario.policy,
            ),
            self.states,
            self.tap(),
            self._prepare,
            rounding=SecureSource(seed),
            clock_us=world.clock_us,
            telemetry=Telemetry(self.hear),
            keep_directory=self._keep,
            encode=self._encode,
            entropy=self.entropy(),
        )
        self.service.start()

    def advance(self, items: list[Any], now: float) -> None:
        assert self.service is not None
        if self.training is not None:
            items = [*items, *self.training.finished(now)]
        self.service.step(items, now)

    def next_at(self) -> float:
        assert self.service is not None
        due = self.service.next_wakeup()
        return due if self.training is None else min(due, self.training.next_at())

    def died(self) -> None:
        for client in self.clients:
            self.world.storages[client].on_boundary = None
        if self.power_cut:
            self.world.count("power_cut")
            for client in self.clients:
                self.world.storages[client].crash(self.world.order)
        self.power_cut = False

    @property
    def able(self) -> int:
        """How many of its clients can take part in a draw: those that have not failed, or spent their budget."""
        if not self.alive or self.service is None:
            return 0
        phases = [one.machine.phase for one in self.service._clients.values()]
        return sum(phase not in (Phase.FAILED, Phase.EXHAUSTED) for phase in phases)

    def unspent(self) -> Mapping[str, float | None]:
        """Which update each client has on its disk."""
        return {client: tag_of(state) for client, state in self.states.items()}

    def _prepare(self, plan: Plan) -> SimulatedTraining:
        self.training = SimulatedTraining(self.world, plan, self.name)
        return self.training

    def _keep(self, members: Membership) -> None:
        self.known = members.signed

    def _encode(self, *args: Any, **kwargs: Any) -> PreparedUpdate:
        prepared = prepare_words(*args, **kwargs)
        tag = kwargs["metrics"]["loss"]
        self.world.witness.encoded(self.world.owner[tag], tag, prepared.words.copy())
        return prepared
