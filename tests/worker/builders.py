"""One client's machine on a model log in memory, and what a shell would do with its effects."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from shared.crypto import merkle
from shared.crypto.draw import group_leaf
from shared.effects import Note, Publish, Receipt
from shared.modellog.entries import SealedEntry
from shared.plan import Plan
from shared.wire.framing import digest_of
from shared.wire.messages import Group, Member, Message, Offer, Roster, Status, Task, Words
from tests.builders import FEDERATION_ID, LogBook, make_delivery, make_federation, tiny_plan
from worker.client import ClientMachine, Seat
from worker.events import (
    CounterRaised,
    DropUpdate,
    Event,
    LogMoved,
    RaiseCounter,
    RosterArrived,
    SaveUpdate,
    SpendUpdate,
    TaskArrived,
    Tick,
    Train,
    TrainingFinished,
    UpdateSaved,
    UpdateSpent,
    WorkerEffect,
)
from worker.signs_of_life import Phase
from worker.state import ClientState, commit
from worker.storage import MemoryStorage

E = TypeVar("E")
CLIENT = "client-0"
D = 8
METRICS = {"loss": 1.5}


def client_plan(**fields: Any) -> Plan:
    dimension = fields.pop("dimension", D)
    return tiny_plan(dimension, **{"metric_bounds": {"loss": 10.0}, "round": {"rounds": 50}, **fields})


def only(kind: type[E], effects: Iterable[object]) -> list[E]:
    """The effects of one kind, in their order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def notes(effects: Iterable[object]) -> list[str]:
    """The names of all notes; of a refusal, its reason."""
    return [
        f"refused {note.fields['reason']}" if note.event == "refused" else note.event for note in only(Note, effects)
    ]


class Client:
    """A machine with a state directory. What it asks of the disk is done by `disk`, when the test says so."""

    def __init__(self, plan: Plan | None = None, book: LogBook | None = None) -> None:
        self.federation = make_federation(3)
        self.book = book or LogBook(self.federation, plan or client_plan())
        if self.book.reader.chain is None:
            self.book.snapshot()
        self.storage = MemoryStorage()
        self._sequence = itertools.count(1)
        self._nonces = itertools.count(1)
        self.start()

    def start(self) -> None:
        """A new process serves the client, from its disk."""
        self.state = ClientState(self.storage, client=CLIENT, federation=FEDERATION_ID)
        self.machine = ClientMachine(
            Seat(CLIENT, "site-0", "w-0", lambda message: self.federation.seal_as(CLIENT, message)),
            self.federation.names,
            self.book.reader,
            rounding=np.random.default_rng(0),
            nonce=lambda: next(self._nonces).to_bytes(16, "big"),
            sequence=lambda: next(self._sequence),
            counter=self.state.counter,
            last_task=self.state.last_task,
            unspent=self.state.unspent(),
            residual=self.state.residual(),
        )
        self.history: list[WorkerEffect] = []

    @property
    def phase(self) -> Phase:
        return self.machine.phase

    def handle(self, event: Event, now: float = 0.0) -> tuple[WorkerEffect, ...]:
        effects = self.machine.handle(event, now)
        self.history += effects
        return effects

    def disk(self, effects: Iterable[WorkerEffect], now: float = 0.0) -> list[WorkerEffect]:
        """Do what the effects ask of the disk, and hand over what follows; returns all effects of that."""
        following: list[WorkerEffect] = []
        for effect in effects:
            event: Event
            match effect:
                case SaveUpdate(values, meta):
                    event = UpdateSaved(self.state.save_update(values, meta).update_id)
                case RaiseCounter():
                    event = CounterRaised(self.state.next_counter())
                case SpendUpdate(update_id, residual):
                    commit([self.state.stage_spend(update_id, residual)])
                    event = UpdateSpent(self.state.counter)
                case DropUpdate(residual) if residual is not None:
                    self.state.fold_update(residual)
                    continue
                case DropUpdate():
                    self.state.drop_update()
                    continue
                case _:
                    continue
            more = self.handle(event, now)
            following += [*more, *self.disk(more, now)]
        return following

    def do(self, event: Event, now: float = 0.0) -> list[WorkerEffect]:
        """Handle an event and everything the disk has to do about it."""
        effects = self.handle(event, now)
        return [*effects, *self.disk(effects, now)]

    # ── events ──

    def task(self, **fields: Any) -> TaskArrived:
        chain = self.book.chain
        present = {"version": chain.version, "attempt": chain.attempt, "head": chain.version_head, "snapshot_offset": 0}
        return TaskArrived(Task(**{"client": CLIENT, **present, **fields}), Receipt(make_delivery(b""), 1))

    def trained(self, effects: Iterable[WorkerEffect], **fields: Any) -> TrainingFinished:
        """The end of the run that the effects began."""
        (order,) = only(Train, effects)
        values = np.linspace(-0.2, 0.3, D, dtype=np.float32) + np.float32(order.task.version / 100)
        outcome: dict[str, Any] = {"values": values, "num_examples": 5, "metrics": METRICS}
        return TrainingFinished(**{"task": order.task, **outcome, **fields})

    def draw(self, *offers: tuple[str, bytes]) -> tuple[SealedEntry, list[Roster]]:
        """Draw these offers (default: ours), groups of one; the entry is in the log, but `LogMoved` was not said."""
        entry, rosters = self.draft_draw(*offers)
        self.book.write(*entry.frames())
        return entry, rosters

    def draft_draw(self, *offers: tuple[str, bytes]) -> tuple[SealedEntry, list[Roster]]:
        """As `draw`, but the entry is still on its way."""
        drawn = offers or ((CLIENT, self.offer_digest()),)
        leaves = [group_leaf(index, [offer]) for index, offer in enumerate(drawn)]
        entry = self.book.seal(self.book.draw_draft(len(drawn), merkle.root(leaves)))
        rosters = [
            Roster(
                client=client,
                draw=entry.digest,
                version=self.book.chain.version,
                group=Group(
                    index=index,
                    members=(Member(client=client, site="site-0", worker="w-0", offer=offer),),
                    path=merkle.path(leaves, index),
                ),
                groups=len(drawn),
                stage="stage-1",
            )
            for index, (client, offer) in enumerate(drawn)
        ]
        return entry, rosters

    def change(self) -> None:
        """The open draw is closed by a step; `LogMoved` was not said."""
        self.book.change(self.book.reader.weights + np.float32(1))

    # ── what was said ──

    def open(self, effects: Iterable[object]) -> list[Message]:
        opener = self.federation.opener()
        return [opener.open(publish.frame).message for publish in only(Publish, effects)]

    def said(self, kind: type[E], effects: Iterable[object]) -> list[E]:
        """Messages of one kind."""
        return only(kind, self.open(effects))

    def offer_digest(self) -> bytes:
        """The digest of the newest offer that has left."""
        opener = self.federation.opener()
        frames = [p.frame for p in only(Publish, self.history) if isinstance(opener.open(p.frame).message, Offer)]
        return digest_of(frames[-1])

    # ── ways into each phase ──

    def to_idle(self) -> None:
        """Idle, with nothing to train: a draw is open."""
        self.draw((CLIENT, bytes(32)))
        self.do(self.task())
        assert self.phase is Phase.IDLE

    def to_training(self) -> list[WorkerEffect]:
        effects = self.do(self.task())
        assert self.phase is Phase.TRAINING
        return effects

    def to_failed(self) -> None:
        self.do(self.trained(self.to_training(), values=np.full(D, np.nan, np.float32)))
        assert self.phase is Phase.FAILED

    def to_saving(self) -> tuple[WorkerEffect, ...]:
        effects = self.handle(self.trained(self.to_training()))
        assert self.phase is Phase.SAVING
        return effects

    def to_offered(self) -> list[WorkerEffect]:
        effects = self.disk(self.to_saving())
        assert self.phase is Phase.OFFERED
        return effects

    def to_offering(self) -> list[WorkerEffect]:
        self.to_offered()
        self.draw()
        self.do(LogMoved())
        self.book.void()
        effects = self.handle(LogMoved())
        assert self.phase is Phase.OFFERING
        return list(effects)

    def to_spending(self) -> tuple[list[WorkerEffect], Roster]:
        self.to_offered()
        _, (roster,) = self.draw()
        effects = self.handle(RosterArrived(roster))
        assert self.phase is Phase.SPENDING
        return list(effects), roster

    def to_in_group(self) -> tuple[list[WorkerEffect], Roster]:
        effects, roster = self.to_spending()
        words = self.disk(effects)
        assert self.phase is Phase.IN_GROUP
        return words, roster

    def to(self, phase: Phase) -> list[WorkerEffect]:
        """Into a phase; returns what the disk still has to do there."""
        match phase:
            case Phase.WAITING:
                self.do(Tick())
                return []
            case Phase.SAVING:
                return list(self.to_saving())
            case Phase.OFFERING:
                return self.to_offering()
            case Phase.SPENDING:
                return self.to_spending()[0]
            case _:
                getattr(self, f"to_{phase.value}")()
                return []


def statuses(client: Client, effects: Iterable[object]) -> list[Status]:
    return client.said(Status, effects)


def words_of(client: Client, effects: Iterable[object]) -> list[Words]:
    return client.said(Words, effects)
