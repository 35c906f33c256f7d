"""One client's machine on a model log in memory, and what a shell would do with its effects."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from shared.crypto import merkle
from shared.crypto.draw import group_leaf
from shared.effects import Note, Publish, Receipt
from shared.modellog.entries import SealedEntry
from shared.plan import Plan
from shared.wire.group_messages import (
    COMMITMENTS_BYTES,
    SHARE_BOX_BYTES,
    Agreement,
    Arrived,
    Group,
    Member,
    Participants,
    Roster,
    Shares,
    Unmask,
    Words,
)
from shared.wire.member_sets import encode_members
from shared.wire.messages import Message, Offer, PublicKeys, Status, Task
from tests.builders import FEDERATION_ID, LogBook, make_delivery, make_federation, make_offer, tiny_plan
from worker.budget import Spending
from worker.client import ClientMachine
from worker.events import (
    ChargeRun,
    CounterRaised,
    DropUpdate,
    Event,
    GroupMessageArrived,
    LogMoved,
    RaiseCounter,
    RunCharged,
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
from worker.member import GroupMember
from worker.policy import Policy
from worker.seat import Seat
from worker.signs_of_life import Phase
from worker.state import ClientState, commit
from worker.storage import MemoryStorage
from worker.update import prepare_words

E = TypeVar("E")
CLIENT = "client-0"
D = 8
METRICS = {"loss": 1.5}
AT_US = 1_700_000_000_000_000
PRIVATE: dict[str, Any] = {
    "privacy": {"level": "record", "noise_multiplier": 2.0, "epsilon": 1000.0, "delta": 1e-5, "nominal_records": 5.0},
    "codec": {"selection": "dense", "density": 1.0, "bits": 32, "clipping_norm": 4.0, "adaptive_clipping": False},
    "metric_bounds": {},
}
"""A plan in which every run is charged."""


def client_plan(**fields: Any) -> Plan:
    dimension = fields.pop("dimension", D)
    return tiny_plan(dimension, **{"metric_bounds": {"loss": 10.0}, "round": {"rounds": 50}, **fields})


def entropy_of(seed: str) -> Callable[[int], bytes]:
    """Bytes that are the same in every run, and others at every call."""
    calls = itertools.count()
    return lambda count: hashlib.shake_256(f"{seed} {next(calls)}".encode()).digest(count)


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

    def __init__(self, plan: Plan | None = None, book: LogBook | None = None, policy: Policy | None = None) -> None:
        self.federation = make_federation(5)
        self.book = book or LogBook(self.federation, plan or client_plan())
        if self.book.reader.chain is None:
            self.book.snapshot()
        self.storage = MemoryStorage()
        self._sequence = itertools.count(1)
        self._entropy = entropy_of(CLIENT)
        size = self.book.plan.group_size
        self.policy = policy or Policy(allow_groups_of_one=True, min_members=min(3, size), min_summed=min(3, size))
        self.peers: dict[str, GroupMember] = {}
        self.start()

    def start(self) -> None:
        """A new process serves the client, from its disk."""
        self.state = ClientState(self.storage, client=CLIENT, federation=FEDERATION_ID)
        self.machine = ClientMachine(
            self.seat(CLIENT),
            self.federation.names,
            self.book.reader,
            self.member(CLIENT, self._entropy),
            entropy=self._entropy,
            sequence=lambda: next(self._sequence),
            spending=Spending(self.state.charges, self.policy.privacy_budget),
            counter=self.state.counter,
            last_task=self.state.last_task,
            unspent=self.state.unspent(),
            residual=self.state.residual(),
        )
        self.history: list[WorkerEffect] = []

    def seat(self, client: str) -> Seat:
        return Seat(client, "site-0", f"w-{client[-1]}", lambda message: self.federation.seal_as(client, message))

    def member(self, client: str, entropy: Callable[[int], bytes]) -> GroupMember:
        """A client's part in groups."""
        return GroupMember(
            self.seat(client),
            self.federation.names,
            self.book.reader,
            self.federation.opener(),
            self.policy,
            rounding=np.random.default_rng(0),
            encode=prepare_words,
            entropy=entropy,
        )

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
                case SpendUpdate(update_id, residual, charge):
                    commit([self.state.stage_spend(update_id, residual, charge=charge, at_us=AT_US)])
                    event = UpdateSpent(self.state.counter)
                case ChargeRun(task, charge):
                    commit([self.state.stage_failure(task, charge, AT_US)])
                    event = RunCharged(self.state.counter)
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

    def draw(self, *offers: bytes) -> tuple[SealedEntry, list[Roster]]:
        """Draw these offers (default: ours), groups of one; the entry is in the log, but `LogMoved` was not said."""
        entry, rosters = self.draft_draw(*((offer,) for offer in offers or (self.offer_frame(),)))
        self.book.write(*entry.frames())
        return entry, rosters

    def draft_draw(self, *groups: tuple[bytes, ...]) -> tuple[SealedEntry, list[Roster]]:
        """A draw of groups of these offers (default: ours alone), on its way: of each group its first member's roster.

        A roster says what is true of its draw; whether the plan would make such a group is not asked.
        """
        drawn = [tuple(self.make_member(offer) for offer in group) for group in groups or ((self.offer_frame(),),)]
        unproven = [Group(index=index, members=members, path=()) for index, members in enumerate(drawn)]
        leaves = [group_leaf(group.index, group.leaf) for group in unproven]
        entry = self.book.seal(self.book.draw_draft(len(drawn), merkle.root(leaves)))
        rosters = [
            Roster(
                client=group.members[0].client,
                draw=entry.digest,
                version=self.book.chain.version,
                group=group.model_copy(update={"path": merkle.path(leaves, group.index)}),
                groups=len(drawn),
                stage="stage-1",
            )
            for group in unproven
        ]
        return entry, rosters

    def make_member(self, offer: bytes) -> Member:
        """The member that has made this offer."""
        opened = self.federation.opener().open(offer)
        assert isinstance(opened.message, Offer)
        return Member(client=opened.sender, site="site-0", worker=opened.message.worker, offer=offer)

    def offer_of(self, client: str, **fields: Any) -> bytes:
        """A genuine offer of a client for the present round, with keys of its own if groups need them."""
        chain = self.book.chain
        keys = None
        if self.book.plan.group_size > 1:
            keys = PublicKeys(sealing=hashlib.sha256(client.encode()).digest(), masking=bytes(31) + client[-1].encode())
        present = {"version": chain.version, "head": chain.version_head, "attempt": chain.attempt}
        own = {"keys": keys, "worker": f"w-{client[-1]}"}
        return self.federation.seal_as(client, make_offer(**{**present, **own, **fields}))

    def peer_offer(self, client: str) -> bytes:
        """An offer of another client whose part in the group is really played: see `participants`."""
        self.peers[client] = self.member(client, entropy_of(client))
        frame = self.offer_of(client, keys=self.peers[client].draw_keys())
        self.peers[client].offered(frame)
        return frame

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

    def offer_frame(self) -> bytes:
        """The newest offer that has left."""
        opener = self.federation.opener()
        return [p.frame for p in only(Publish, self.history) if isinstance(opener.open(p.frame).message, Offer)][-1]

    # ── a group of three ──

    def group_draw(self) -> Roster:
        """Draw our open offer together with those of two others; `LogMoved` was not said."""
        offers = (self.offer_frame(), self.peer_offer("client-1"), self.peer_offer("client-2"))
        entry, (roster,) = self.draft_draw(offers)
        self.book.write(*entry.frames())
        return roster

    def participants(self, roster: Roster, places: Iterable[int] = (0, 1, 2), **fields: Any) -> Participants:
        """What the stage asks of us when these have dealt: the boxes are what they have sealed."""
        boxes, commitments, transcript = [], [], b""
        for place, member in enumerate(roster.group.members):
            if member.client == CLIENT:
                continue
            to_peer = roster.model_copy(update={"client": member.client})
            (shares,) = self.said(Shares, self.peers[member.client].handle(to_peer, None))
            transcript = shares.transcript
            if place in places:
                boxes.append(shares.boxes[:SHARE_BOX_BYTES])
                commitments.append(shares.commitments[:COMMITMENTS_BYTES])
        whole = {"participants": encode_members(places, 3), "boxes": tuple(boxes), "commitments": tuple(commitments)}
        return Participants(**{"client": CLIENT, "stage": "stage-1", "transcript": transcript, **whole, **fields})

    def arrived(self, words: Words, places: Iterable[int] = (0, 1, 2), **fields: Any) -> Arrived:
        """What the stage asks of us when the words of these have arrived."""
        named = {"participants": words.participants, "arrived": encode_members(places, 3)}
        return Arrived(**{"client": CLIENT, "stage": "stage-1", "transcript": words.transcript, **named, **fields})

    def unmask(self, agreement: Agreement, signers: Iterable[str] = (CLIENT, "client-1", "client-2")) -> Unmask:
        """What the stage asks of us when these have signed the same."""
        frames = tuple(self.federation.seal_as(client, agreement) for client in signers)
        return Unmask(client=CLIENT, stage="stage-1", transcript=agreement.transcript, agreements=frames)

    # ── ways into each phase ──

    def to_idle(self) -> None:
        """Idle, with nothing to train: a draw is open."""
        self.draw(self.offer_of(CLIENT))
        self.do(self.task())
        assert self.phase is Phase.IDLE

    def to_training(self) -> list[WorkerEffect]:
        effects = self.do(self.task())
        assert self.phase is Phase.TRAINING
        return effects

    def to_failed(self) -> None:
        self.do(self.trained(self.to_training(), values=np.full(D, np.nan, np.float32)))
        assert self.phase is Phase.FAILED

    def to_charging(self) -> list[WorkerEffect]:
        """Only where runs are charged."""
        effects = self.handle(self.trained(self.to_training(), values=np.full(D, np.nan, np.float32)))
        assert self.phase is Phase.CHARGING
        return list(effects)

    def to_exhausted(self) -> None:
        """Only where runs are charged, and the first one is too much."""
        self.do(self.task())
        assert self.phase is Phase.EXHAUSTED

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

    def to_sharing(self) -> tuple[list[WorkerEffect], Roster]:
        """Only where groups are of three."""
        self.to_offered()
        roster = self.group_draw()
        effects = self.handle(GroupMessageArrived(roster))
        assert self.phase is Phase.SHARING
        return list(effects), roster

    def to_spending(self) -> tuple[list[WorkerEffect], Roster]:
        if self.book.plan.group_size > 1:
            _, roster = self.to_sharing()
            effects = self.handle(GroupMessageArrived(self.participants(roster)))
        else:
            self.to_offered()
            _, (roster,) = self.draw()
            effects = self.handle(GroupMessageArrived(roster))
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
            case Phase.CHARGING:
                return self.to_charging()
            case Phase.SPENDING:
                return self.to_spending()[0]
            case Phase.SHARING:
                self.to_sharing()
                return []
            case _:
                getattr(self, f"to_{phase.value}")()
                return []


def statuses(client: Client, effects: Iterable[object]) -> list[Status]:
    return client.said(Status, effects)


def words_of(client: Client, effects: Iterable[object]) -> list[Words]:
    return client.said(Words, effects)
