"""A coordinator's desk in memory: what a machine appends to the log is read back when the test says so."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from coordinator.events import CoordinatorEffect, EntryAccepted, Event, OfferArrived, StatusArrived, Tell
from coordinator.log_writer import LogWriter
from shared.effects import Append, Note, Publish, Receipt, Settle
from shared.modellog.chain import ChainState
from shared.modellog.reader import Accepted, LogEvent
from shared.plan import Plan
from shared.wire.framing import digest_of, pack_batches
from shared.wire.log_messages import Entry
from shared.wire.messages import ClientState, Message
from tests.builders import Federation, make_delivery, make_federation, make_offer, make_status, tiny_plan

E = TypeVar("E")


def receipt(messages: int = 1) -> Receipt:
    """The receipt of a delivery."""
    return Receipt(make_delivery(b""), messages)


def only(kind: type[E], effects: Iterable[object]) -> list[E]:
    """The effects of one kind, in their order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def notes(effects: Iterable[object]) -> list[str]:
    """The names of all notes; of a refusal, its reason."""
    return [
        f"refused {note.fields['reason']}" if note.event == "refused" else note.event for note in only(Note, effects)
    ]


def told(effects: Iterable[object]) -> list[Event]:
    """The events that the effects tell."""
    return [effect.event for effect in only(Tell, effects)]


class Settled(Counter[int]):
    """Counts how often each receipt was settled."""

    def watch(self, effects: Iterable[object]) -> None:
        self.update(id(effect.receipt) for effect in only(Settle, effects))


class Desk:
    """A log reader and the writer on top of it, of a federation whose first snapshot is there."""

    def __init__(self, plan: Plan | None = None, clients: int = 5, *, founded: bool = True) -> None:
        self.plan = plan or tiny_plan()
        self.federation: Federation = make_federation(clients)
        self.clients = sorted(self.federation.clients)
        self.log = self.federation.reader()
        self.writer = LogWriter(self.log, self.plan, self.federation.seal)
        self.stream: list[bytes] = []
        self._sequence = itertools.count(1)
        if founded:
            self.read_back([self.writer.snapshot(np.zeros(self.plan.dimension, np.float32))])

    @property
    def sites(self) -> dict[str, str]:
        return {client: self.federation.directory.clients[client].site for client in self.clients}

    @property
    def chain(self) -> ChainState:
        assert self.log.chain is not None
        return self.log.chain

    def write(self, *frames: bytes) -> list[LogEvent]:
        """Let frames stand in the stream, and read them."""
        events: list[LogEvent] = []
        for body in pack_batches(frames):
            self.stream.append(body)
            events += self.log.feed(len(self.stream) - 1, body)
        for event in events:
            self.writer.observe(event)
        return events

    def read_back(self, effects: Iterable[object]) -> list[EntryAccepted]:
        """Let all that was appended stand in the stream, and read it."""
        events = [event for append in only(Append, effects) for event in self.write(*append.sealed.frames())]
        return [EntryAccepted(event) for event in events if isinstance(event, Accepted)]

    def append(self, entry: Entry, body: np.ndarray | bytes = b"", weights: np.ndarray | None = None) -> EntryAccepted:
        """Write an entry of our own and read it back."""
        (accepted,) = self.read_back([self.writer.append(entry, body, weights)])
        return accepted

    def open(self, publishes: Iterable[object]) -> list[Message]:
        """What published frames say."""
        opener = self.federation.opener()
        return [opener.open(publish.frame).message for publish in only(Publish, publishes)]

    def offer(self, client: str, counter: int = 1, **fields: Any) -> OfferArrived:
        """An offer for the present round, unless `fields` say otherwise."""
        version = fields.get("version", self.chain.version)
        present = {
            "version": version,
            "attempt": self.chain.attempt if version == self.chain.version else 0,
            "head": self.chain.version_head,
        }
        message = make_offer(**{**present, "counter": counter, **fields})
        frame = self.federation.seal_as(client, message)
        return OfferArrived(client, message, digest_of(frame), frame, receipt())

    def status(self, client: str, state: ClientState = ClientState.IDLE, **fields: Any) -> StatusArrived:
        """A newer status than all before."""
        status = make_status(state, next(self._sequence), **fields)
        return StatusArrived(client, status, self.federation.seal_as(client, status))


class Bus:
    """Shows events to machines one after the other, and what they tell to all of them, as the service does."""

    def __init__(self, *machines: Any) -> None:
        self.machines = machines

    def handle(self, events: Event | Sequence[Event], now: float) -> list[CoordinatorEffect]:
        """All effects but what was told."""
        waiting = list(events) if isinstance(events, Sequence) else [events]
        effects: list[CoordinatorEffect] = []
        while waiting:
            event = waiting.pop(0)
            for machine in self.machines:
                for effect in machine.handle(event, now):
                    if isinstance(effect, Tell):
                        waiting.append(effect.event)
                    else:
                        effects.append(effect)
        return effects
