"""The shell around the clients that one worker process serves: deliveries in, effects out, in batches.

Everything that came in is handled in waves. In a wave each client handles at most one event that needs the disk; then
all of them are written, then all are synced (the file system does most of that work once), and only then does
anything leave for the broker.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shared.codec.quantize import UniformSource
from shared.crypto.signing import SigningKey, VerificationCache
from shared.effects import Append, Effect, Note, Publish, Receipt, Settle, note
from shared.incoming import keys_of, open_delivery, transport_note, unexpected
from shared.membership import Membership
from shared.modellog.reader import Accepted, LogReader, Skipped
from shared.outgoing import Outgoing
from shared.telemetry import Telemetry
from shared.transport.port import Confirmed, Delivered, Delivery, Transport, TransportEvent
from shared.wire.framing import Opener, seal
from shared.wire.group_messages import Agreement, GroupMessage
from shared.wire.messages import Message, Offer, Reminder, Task
from shared.wire.topology import Names, client_queue, log_queue, talk_queue
from worker.budget import Spending
from worker.client import ClientMachine
from worker.dealing import Entropy
from worker.events import (
    ChargeRun,
    CounterRaised,
    Drain,
    DropUpdate,
    Event,
    FollowLog,
    GroupMessageArrived,
    HandOver,
    Leave,
    LogMoved,
    Mismatch,
    RaiseCounter,
    RunCharged,
    SaveUpdate,
    SpendUpdate,
    StopTraining,
    TaskArrived,
    Tick,
    Train,
    UpdateSaved,
    UpdateSpent,
    WorkerEffect,
)
from worker.member import GroupMember
from worker.plan_check import training_or_mismatch
from worker.policy import Policy
from worker.reminder import heed
from worker.seat import Seat
from worker.signs_of_life import Phase, RisingNumbers
from worker.state import ClientState, Staged, commit
from worker.stored_update import UpdateId
from worker.trainer import Preparing, Trained, Training
from worker.update import Encode, prepare_words

TASK_PREFETCH = 4
TALK_PREFETCH = 256
LOG_PREFETCH = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process speaks for."""

    members: Membership
    site: str
    worker: str
    keys: Mapping[str, SigningKey]
    policy: Policy


@dataclass(slots=True)
class _Client:
    machine: ClientMachine
    state: ClientState


class WorkerService:
    """One worker process without its threads: `step` handles what came in."""

    def __init__(
        self,
        identity: Identity,
        states: Mapping[str, ClientState],
        transport: Transport,
        prepare: Preparing,
        *,
        rounding: UniformSource,
        clock_us: Callable[[], int],
        telemetry: Telemetry,
        keep_directory: Callable[[Membership], None],
        encode: Encode = prepare_words,
        entropy: Entropy = secrets.token_bytes,
    ) -> None:
        """
        Args:
            identity: the directory that we begin with, our site and name, the clients' keys.
            states: the open state directory of each client.
            transport: where messages go; its events are given to `step`.
            prepare: makes the training once the plan is known.
            rounding: randomness of stochastic rounding.
            clock_us: wall clock in microseconds since 1970, for status sequence numbers and the ledger.
            telemetry: takes the machines' notes.
            keep_directory: makes a newer directory of the log durable, before anything that follows it leaves.
            encode: makes the words of an update.
            entropy: fresh random bytes of a cryptographic generator: keys, seeds and nonces come from it.
        """
        self._members, self._kept = identity.members, identity.members.signed
        self._keep_directory = keep_directory
        directory = identity.members.directory
        self._federation_id = directory.federation_id
        self._names = Names(directory.federation)
        self._transport = transport
        self._prepare = prepare
        self._encode = encode
        self._entropy = entropy
        self._training: Training | None = None
        self._opener = Opener(directory.federation_id, keys_of(identity.members), VerificationCache())
        self.log = LogReader(self._opener, identity.members)
        self.telemetry = telemetry
        self._outgoing = Outgoing(transport, self._names)
        self._identity = identity
        self._rounding = rounding
        self._following = self._started = False
        self._mismatch: Mismatch | None = None
        self._fsyncs_before = 0
        self._leaving: set[str] = set()
        self._clock_us = clock_us
        self._sequence = RisingNumbers(clock_us)
        self._clients = {
            client: self._make_client(client, state, identity.keys[client]) for client, state in sorted(states.items())
        }

    def _make_client(self, client: str, state: ClientState, key: SigningKey) -> _Client:

        def seal_as_client(message: Message) -> bytes:
            # These two come back, in rosters and among the agreements that open a sum.
            made = self._opener.cache if isinstance(message, Offer | Agreement) else None
            return seal(message, sender=client, federation=self._federation_id, key=key, made=made)

        seat = Seat(client, self._identity.site, self._identity.worker, seal_as_client)
        member = GroupMember(
            seat,
            self._names,
            self.log,
            self._opener,
            self._identity.policy,
            rounding=self._rounding,
            encode=self._encode,
            entropy=self._entropy,
        )
        machine = ClientMachine(
            seat,
            self._names,
            self.log,
            member,
            entropy=self._entropy,
            sequence=self._sequence,
            spending=Spending(state.charges, self._identity.policy.privacy_budget),
            counter=state.counter,
            last_task=state.last_task,
            unspent=state.unspent(),
            residual=state.residual(),
        )
        return _Client(machine, state)

    def start(self) -> None:
        """Subscribe to the clients' queues and to our own."""
        self._transport.consume(
            talk_queue(self._names, self._identity.site, self._identity.worker), prefetch=TALK_PREFETCH
        )
        self._started = True
        for client in self._clients:
            self._transport.consume(client_queue(self._names, client), prefetch=TASK_PREFETCH)

    @property
    def clients(self) -> dict[str, Phase]:
        """Whom this process serves, and where they stand."""
        return {client: one.machine.phase for client, one in self._clients.items()}

    def take(self, client: str, state: ClientState, key: SigningKey, now: float) -> None:
        """Serve one more client, whose state directory is open and whose identity key this is, after `start`."""
        assert self._started
        self._clients[client] = self._make_client(client, state, key)
        self._transport.consume(client_queue(self._names, client), prefetch=TASK_PREFETCH)
        if self._mismatch is not None:
            effects: list[Effect] = []
            self._handle([(client, self._mismatch)], effects, now)
            self._carry_out(effects)

    def release(self, clients: Iterable[str], now: float, event: HandOver | Leave) -> None:
        """Let go of these clients; an unspent update stays on the disk. If nobody is to serve them, let them `Leave`.

        Each leaves `clients`, and its directory is free, as soon as no group may be waiting for it, or at once.
        """
        effects: list[Effect] = []
        leaving = self._clients.keys() & set(clients)
        self._leaving |= leaving
        self._handle([(client, event) for client in sorted(leaving)], effects, now)
        self._carry_out(effects)

    def step(self, items: Sequence[TransportEvent | Trained], now: float) -> None:
        """Handle everything that came in, then give a tick to every client whose time has come.

        Raises:
            StateError: a state directory failed; nothing that depends on it has left.
            BrokerUnavailable: the transport was closed.
        """
        events: list[tuple[str, Event]] = []
        effects: list[Effect] = []
        for item in items:
            match item:
                case Delivered(queue, deliveries) if queue == self._names.log:
                    # In front: the log has moved for every client, also for those whose event came before.
                    events[:0] = self._read_log(deliveries, effects)
                case Delivered(_, deliveries):
                    for delivery in deliveries:
                        events += self._open(delivery, effects)
                case Confirmed(through):
                    self._outgoing.on_confirmed(through)
                case Trained(client, outcome):
                    events += [(client, outcome)] if client in self._clients else []
                case _:
                    told = transport_note(item)
                    effects += () if told is None else (told,)
        # With many clients in a process, asking all of them after every message would cost more than the messages.
        events += [(client, Tick()) for client, one in self._clients.items() if now >= one.machine.next_wakeup()]
        self._handle(events, effects, now)
        self._carry_out(effects)

    def next_wakeup(self) -> float:
        """When `step` should be called again at the latest (seconds, monotonic)."""
        return min((client.machine.next_wakeup() for client in self._clients.values()), default=math.inf)

    def drain(self, now: float, *, at_once: bool = False) -> None:
        """Take nothing new; unspent updates stay on the disk. See `drained`."""
        effects: list[Effect] = []
        self._handle([(client, Drain(at_once)) for client in self._clients], effects, now)
        self._carry_out(effects)

    @property
    def drained(self) -> bool:
        """Whether no client is in anything any more."""
        return all(client.machine.phase is Phase.DRAINED for client in self._clients.values())

    def close(self) -> None:
        """End training and let go of the state directories."""
        if self._training is not None:
            self._training.close()
        for client in self._clients.values():
            client.state.close()

    @property
    def messages_published(self) -> int:
        """Broker messages published so far."""
        return self._outgoing.messages_published

    @property
    def fsyncs(self) -> int:
        """Disk flushes of all clients so far."""
        return self._fsyncs_before + sum(client.state.fsyncs for client in self._clients.values())

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, delivery: Delivery, effects: list[Effect]) -> Iterable[tuple[str, Event]]:
        received, refusals = open_delivery(self._opener, delivery)
        effects += refusals
        events: list[tuple[str, Event]] = []
        for one in received:
            match one.opened.message:
                case Task(client=client) | Reminder(client=client) if self._is_for_others(client, delivery):
                    pass  # left behind by a subscription that was cancelled: the broker delivers it again, to them
                case Task(client=client) as task if delivery.queue == self._names.client(client):
                    events.append((client, TaskArrived(task, one.receipt)))
                case GroupMessage(client=client) as message if client in self._clients:
                    events.append((client, GroupMessageArrived(message)))
                    effects.append(Settle(one.receipt))
                case Reminder(client=client) as reminder if delivery.queue == self._names.client(client):
                    effects += (*heed(reminder, self._opener, self._clients[client].state), Settle(one.receipt))
                case _:
                    effects += unexpected(one, f"in {delivery.queue}")
        return events

    def _is_for_others(self, client: str, delivery: Delivery) -> bool:
        return client not in self._clients and delivery.queue == self._names.client(client)

    def _read_log(self, deliveries: Sequence[Delivery], effects: list[Effect]) -> Iterable[tuple[str, Event]]:
        began = self.log.chain is not None
        moved = False
        for delivery in deliveries:
            assert delivery.offset is not None
            for event in self.log.feed(delivery.offset, delivery.body):
                moved = moved or isinstance(event, Accepted)
                if isinstance(event, Skipped):
                    effects.append(note("log_entry_skipped", "debug", reason=event.reason, detail=event.detail))
            effects.append(Settle(Receipt(delivery, 1)))
        if not moved:
            return []
        if not began:
            prepared = training_or_mismatch(self.log, self._members, self._identity.policy, self._prepare)
            if isinstance(prepared, Mismatch):
                self._mismatch = prepared
                return [(client, prepared) for client in self._clients]
            self._training = prepared
        revoked = self._follow_directory()
        return [
            (client, Mismatch("this client was revoked") if client in revoked else LogMoved())
            for client in self._clients
        ]

    def _follow_directory(self) -> frozenset[str]:
        """Keep the newest directory; returns who has no place in it."""
        if self._members.signed is not self._kept:
            self._keep_directory(self._members)
            self._kept = self._members.signed
        return self._members.directory.revoked

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _handle(self, events: list[tuple[str, Event]], effects: list[Effect], now: float) -> None:
        """Handle events in waves: what an earlier event of a client asks of the disk is there before its next one."""
        waiting = events
        while waiting:
            wave, waiting, busy = waiting, [], set()
            staged: list[tuple[str, Staged, Event]] = []
            for client, event in wave:
                if client in busy:
                    waiting.append((client, event))
                    continue
                for effect in self._clients[client].machine.handle(event, now):
                    pending = self._perform(client, effect, effects)
                    if pending is not None:
                        staged.append((client, *pending))
                        busy.add(client)
            commit([operation for _, operation, _ in staged])
            waiting = [(client, event) for client, _, event in staged] + waiting

    def _perform(self, client: str, effect: WorkerEffect, effects: list[Effect]) -> tuple[Staged, Event] | None:
        """Carry out one effect; returns what has to be synced, and the event that follows it."""
        state = self._clients[client].state
        match effect:
            case SaveUpdate(values, meta):
                return state.stage_update(values, meta), UpdateSaved(UpdateId(state.counter + 1))
            case RaiseCounter():
                return state.stage_counter(), CounterRaised(state.counter + 1)
            case SpendUpdate(update_id, residual, charge):
                staged = state.stage_spend(update_id, residual, charge=charge, at_us=self._clock_us())
                return staged, UpdateSpent(state.counter + 1)
            case ChargeRun(task, charge):
                return state.stage_failure(task, charge, self._clock_us()), RunCharged(state.counter + 1)
            case DropUpdate(residual) if residual is not None:
                state.fold_update(residual)
            case DropUpdate():
                state.drop_update()
            case Train():
                assert self._training is not None
                self._training.start(client, effect)
            case StopTraining():
                assert self._training is not None
                self._training.stop(client)
            case FollowLog(offset):
                self._follow(offset)
            case Publish() | Settle() | Append() | Note():
                effects.append(effect)
        return None

    def _follow(self, offset: int) -> None:
        if not self._following:
            self._following = True
            self._transport.consume(log_queue(self._names, 0), prefetch=LOG_PREFETCH, start=offset)

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Note):
                self.telemetry.note(effect)
        self._outgoing.carry_out(effect for effect in effects if not isinstance(effect, Note))
        for client in sorted(self._leaving):
            if self._clients[client].machine.phase in (Phase.RELEASED, Phase.LEFT):
                self._let_go(client)

    def _let_go(self, client: str) -> None:
        """Everything that it had to say was handed to the transport."""
        self._leaving.discard(client)
        self._transport.cancel(self._names.client(client))
        one = self._clients.pop(client)
        if self._training is not None:
            self._training.forget(client)
        self._fsyncs_before += one.state.fsyncs
        one.state.close()
        self.telemetry.note(note("client_released", client=client, away=one.machine.phase is Phase.LEFT))
