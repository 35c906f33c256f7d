"""Summing stages in processes of their own, beside a federation on the in-process broker: killed, frozen, woken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from coordinator.summing.service import StageService
from shared.effects import Note
from shared.inbox import Inbox
from shared.telemetry import Telemetry
from shared.transport.memory import MemoryTransport
from shared.transport.port import Delivered
from shared.wire.framing import split_batch
from shared.wire.group_messages import GivenUp, Sum
from shared.wire.messages import Message

if TYPE_CHECKING:
    from tests.simulation.federation import FederationRun

BROKER_PATIENCE_S = 16.0
"""The broker closes the connection of a client after two heartbeats without a sign of life."""

FROZEN_S = 40.0


@dataclass
class StageProcess:
    """One summing process."""

    service: StageService
    inbox: Inbox[Any]
    transport: MemoryTransport
    notes: list[Note] = field(default_factory=list)
    frozen_at: float = 0.0
    frozen_until: float = 0.0
    cut_off: bool = False

    def count(self, event: str) -> int:
        return sum(note.event == event for note in self.notes)


class Fate(Enum):
    """What becomes of a stage when these messages are about to reach it."""

    LIVES = "lives"
    IS_KILLED = "is killed"
    FREEZES = "freezes for 40 s"


class Stages:
    """The summing processes of one run, and everything that they ever told the aggregator.

    `fate` decides by a stage's number and the kinds of message that are about to reach it.
    """

    def __init__(self, run: FederationRun, count: int) -> None:
        self._run = run
        self._sessions = 0
        self.fate: Callable[[int, set[type[Message]]], Fate] = lambda index, incoming: Fate.LIVES
        self.published: list[bytes] = []
        self.notes: list[Note] = []
        self.processes = [self.start() for _ in range(count)]

    def start(self) -> StageProcess:
        """A new process; put it into `processes` to let it live."""
        from tests.simulation.federation import Tap

        run, inbox, notes = self._run, Inbox[Any](), list[Note]()
        self._sessions += 1
        session = self._sessions.to_bytes(6, "big") + bytes(10)
        transport = MemoryTransport(run.broker, inbox.put, name=f"stage-{self._sessions}")

        def take(note: Note) -> None:
            notes.append(note)
            self.notes.append(note)

        tap = Tap(transport, _Publishes(run.keys.names.sums, self.published))
        service = StageService(
            run.keys.members(),
            run.keys.coordinator,
            tap,
            session=session,
            heartbeat_s=BROKER_PATIENCE_S / 2,
            telemetry=Telemetry(take),
        )
        service.start()
        return StageProcess(service, inbox, transport, notes)

    def crash(self, index: int) -> None:
        """Kill -9; another process begins in its place."""
        self._run.broker.crash(self.processes[index].transport)
        self.processes[index] = self.start()

    def freeze(self, index: int, seconds: float) -> None:
        """SIGSTOP now, SIGCONT after so many seconds."""
        process = self.processes[index]
        process.frozen_at, process.frozen_until, process.cut_off = self._run.now, self._run.now + seconds, False

    def step(self) -> bool:
        """Let everybody handle what came in; whether anybody had something."""
        now, busy = self._run.now, False
        for index, process in enumerate(list(self.processes)):
            if now < process.frozen_until:
                if not process.cut_off and now >= process.frozen_at + BROKER_PATIENCE_S:
                    process.cut_off = True
                    self._run.broker.disconnect(process.transport, process.frozen_until - now)
                continue
            items = process.inbox.take(0)
            busy = busy or bool(items)
            match self.fate(index, self._kinds(items)) if items else Fate.LIVES:
                case Fate.IS_KILLED:
                    self.crash(index)
                case Fate.FREEZES:
                    process.inbox.put(items)
                    self.freeze(index, FROZEN_S)
                case Fate.LIVES:
                    process.service.step(items, now)
        return busy

    def _kinds(self, items: Iterable[object]) -> set[type[Message]]:
        bodies = [one.body for item in items if isinstance(item, Delivered) for one in item.deliveries]
        opener = self._run.keys.opener()
        return {type(opener.open(frame).message) for body in bodies for frame in split_batch(body)}

    def ends(self) -> dict[tuple[bytes, int], set[Sum | GivenUp]]:
        """What was said of each group of each draw, whoever said it."""
        opener = self._run.keys.opener()
        ends: dict[tuple[bytes, int], set[Sum | GivenUp]] = {}
        for body in self.published:
            for frame in split_batch(body):
                message = opener.open(frame).message
                assert isinstance(message, Sum | GivenUp)
                ends.setdefault((message.draw, message.group), set()).add(message.model_copy(update={"stage": "any"}))
        return ends


class _Publishes(list[tuple[Any, ...]]):
    """A history that keeps the bodies of one routing key only."""

    def __init__(self, routing_key: str, bodies: list[bytes]) -> None:
        super().__init__()
        self._routing_key = routing_key
        self._bodies = bodies

    def append(self, entry: tuple[Any, ...]) -> None:
        if entry[0] == "publish" and entry[1] == self._routing_key:
            self._bodies.append(entry[2])
