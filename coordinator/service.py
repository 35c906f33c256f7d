"""The shell around the coordinator's machines: deliveries in, events round, effects out.

The roles of one process (scheduler, summing stage, aggregator) share one bus: every event is shown to each machine, and
what one machine tells (`Tell`) is an event for all. Until this session is in office it follows the log, and waits on
the offers queue for its turn (`coordinator.lease`): nothing that is delivered there is looked at before.
While the broker is away the machines' time stands still: nobody is late or silent because nobody could be heard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from coordinator.aggregator.arriving import SumCollector
from coordinator.aggregator.buffer import Aggregator
from coordinator.arrivals import event_of
from coordinator.control import RunControl
from coordinator.enrolment import Enrolment
from coordinator.events import (
    CoordinatorEffect,
    DirectoryArrived,
    EntryAccepted,
    Evaluate,
    EvaluationFinished,
    Event,
    Finish,
    GroupReplyArrived,
    KeepModel,
    StatusArrived,
    Tell,
    Tick,
    TookOffice,
)
from coordinator.journal import JournalReader, JournalWriter
from coordinator.kept import Kept
from coordinator.lease import HandOver, Lease, LeaseEvent, StandBy, StopWaiting, TakeOffice
from coordinator.log_writer import LogWriter
from coordinator.office import JournalRead, Office, OfficeState
from coordinator.outage_clock import OutageClock
from coordinator.scheduler.rounds import BY_OPERATOR, Scheduler
from coordinator.status.record import RunRecord
from coordinator.summing.stage import SummingStage
from shared.crypto.signing import SigningKey, VerificationCache
from shared.effects import Append, Effect, Note, Receipt, Settle, note
from shared.errors import BrokerUnavailable
from shared.identity import COORDINATOR
from shared.incoming import keys_of, open_delivery, transport_note, unexpected
from shared.membership import Membership
from shared.modellog.reader import Accepted, LogEvent, LogReader, Skipped
from shared.outgoing import Outgoing
from shared.plan import Plan
from shared.telemetry import Telemetry
from shared.transport.port import (
    Confirmed,
    ConsumerWaiting,
    Delivered,
    Delivery,
    Disconnected,
    Refused,
    Topology,
    Transport,
    TransportEvent,
)
from shared.wire.framing import Opener, seal
from shared.wire.log_messages import DirectoryEntry, Entry
from shared.wire.messages import Candidacy, Message
from shared.wire.topology import (
    Names,
    client_queue,
    federation_topology,
    groups_queue,
    journal_queue,
    log_queue,
    offers_queue,
    stage_queue,
    sums_queue,
)

OFFERS_PREFETCH_MIN = 1_000
"""Offers stay unsettled until they are drawn: the prefetch must exceed what can wait."""

GROUPS_PREFETCH = 64
SUMS_PREFETCH = 65_535
"""Sums stay unsettled until their draw is closed; they are bounded by the draw."""

STAGE_PREFETCH = 64
LOG_PREFETCH = 32
TICK_S = 0.25

CoordinatorItem = TransportEvent | EvaluationFinished | DirectoryArrived
"""What `step` takes."""


class Output(Protocol):
    """What leaves the protocol: evaluations and models."""

    def evaluate(self, order: Evaluate) -> None:
        """Measure a version; `EvaluationFinished` comes back as an item of `step`."""

    def keep(self, order: KeepModel) -> None:
        """Write a model to the output directory."""


class CoordinatorService:
    """One coordinator process without its threads: `step` handles what came in."""

    def __init__(
        self,
        plan: Plan,
        members: Membership,
        key: SigningKey,
        transport: Transport,
        initial_weights: np.ndarray,
        output: Output,
        *,
        session: bytes,
        clock_us: Callable[[], int],
        telemetry: Telemetry,
        sums_here: bool = True,
    ) -> None:
        """
        Args:
            plan: the federation's plan.
            members: its clients.
            key: the coordinator's signing key, the one that the directory names.
            transport: where messages go; its events are given to `step`.
            initial_weights: float32 (d,), used if the federation is new.
            output: evaluations and models.
            session: 16 fresh random bytes; also names the stage's queue.
            clock_us: wall clock in microseconds since 1970, for the age of the operator's commands.
            telemetry: takes the machines' notes.
            sums_here: this process is a summing stage as well; if not, others must be.

        Raises:
            PlanError: the plan does not fit the directory, or its optimizer does not exist.
        """
        self._clients = members.directory.active_clients()
        plan.check_clients(len(self._clients))
        self._plan = plan
        self._names = Names(plan.federation)
        self._transport = transport
        self._output = output
        self._opener = Opener(plan.federation_id, keys_of(members), VerificationCache.for_clients(len(self._clients)))
        self._stage_id = f"stage-{session.hex()[:12]}"
        self._session = session
        self._clock_us = clock_us

        def seal_as_coordinator(message: Message) -> bytes:
            return seal(message, sender=COORDINATOR, federation=plan.federation_id, key=key)

        self.log = LogReader(self._opener, members)
        self.telemetry = telemetry
        self._outgoing = Outgoing(transport, self._names)
        self._bytes_in = 0
        self._lease = Lease(self._names, session, seal_as_coordinator)
        writer = LogWriter(self.log, plan, seal_as_coordinator)
        aggregator = Aggregator(plan, writer)
        self._writer = writer
        self._aggregator = aggregator
        self._office = Office(plan, writer, initial_weights, seal_as_coordinator)
        self._scheduler = Scheduler(plan, writer, seal_as_coordinator)
        optimizer_state = aggregator.optimizer_state if aggregator.moves_all else None
        self._journal = JournalWriter(self._keep, optimizer_state, seal_as_coordinator)
        self._recall: JournalReader | None = JournalReader(self._opener, 4 * plan.dimension)
        self._record = RunRecord(plan, self.log, lambda: (self._bytes_in, self._outgoing.bytes_published))
        self._sums_here = sums_here
        stage = SummingStage(self._stage_id, plan, self.log, self._opener, seal_as_coordinator)
        self._machines = (
            # First: a snapshot that is due behind a change is written before the next draw, which may follow at once.
            aggregator,
            RunControl(writer),
            Enrolment(writer, members),
            self._scheduler,
            SumCollector(plan, self.log),
            *((stage,) if sums_here else ()),
            self._record,
        )
        self._clock = OutageClock()
        self.finished: Finish | None = None

    def start(self) -> None:
        """Declare the federation's queues and begin to read its log.

        Raises:
            BrokerUnavailable: no broker, or one that refuses the declarations.
        """
        model_bytes = 4 * self._plan.dimension
        self._transport.declare(federation_topology(self._names, self._clients, model_bytes))
        self._transport.consume(log_queue(self._names, model_bytes), prefetch=LOG_PREFETCH, start="first")
        if self._aggregator.moves_all and self._plan.codec.selection != "dense":
            self.telemetry.note(
                note(
                    "dense_entries",
                    optimizer=self._plan.aggregation.server_optimizer.name,
                    bytes=4 * self._plan.dimension,
                    bytes_of_round=4 * self._plan.coordinate_count,
                )
            )
        self._outgoing.carry_out([self._lease.start()])

    def step(self, items: Sequence[CoordinatorItem], now: float) -> None:
        """Handle everything that came in, then give every machine a tick.

        Raises:
            Fenced: another coordinator writes the log.
            PlanError: the log belongs to another plan.
            BrokerUnavailable: the transport was closed, or the broker refuses entries of the log.
        """
        effects: list[Effect] = []
        for item in items:
            self._clock.watch(item, now)
            there = self._clock.at(now)
            self._dispatch(self._receive(item, effects, there), effects, there)
        there = self._clock.at(now)
        self._dispatch(self._follow(Tick(), effects, there), effects, there)
        if self._office.state is OfficeState.IN_OFFICE:
            self._dispatch([Tick()], effects, there)
        for effect in effects:
            if isinstance(effect, Note):
                self.telemetry.note(effect)
        self._outgoing.carry_out(self._with_record(effect) for effect in effects if not isinstance(effect, Note))

    def _with_record(self, effect: Effect) -> Effect:
        """When all machines have seen what led to an entry, what they keep is written down ahead of it."""
        if not isinstance(effect, Append):
            return effect
        record = self._journal.record(effect.sealed)
        return effect if record is None else replace(effect, record=record.frames())

    def _keep(self, entry: Entry) -> Kept:
        return Kept(self._scheduler.keep(entry), self._record.keep(), self._aggregator.changed_bytes)

    @property
    def messages_published(self) -> int:
        """Broker messages published so far."""
        return self._outgoing.messages_published

    def _receive(self, item: CoordinatorItem, effects: list[Effect], now: float) -> Iterable[Event]:
        match item:
            case Delivered(queue, deliveries) if queue == self._names.log:
                return self._read_log(deliveries, effects, now)
            case Delivered(queue, deliveries) if queue == self._names.journal:
                return self._read_journal(deliveries, effects, now)
            case Delivered(queue) if queue in (self._names.offers, self._names.sums):
                return self._follow(item, effects, now)
            case Delivered(_, deliveries):
                return [event for delivery in deliveries for event in self._open(delivery, effects)]
            case Confirmed(through):
                self._outgoing.on_confirmed(through)
            case EvaluationFinished() | DirectoryArrived():
                return [item]
            case Refused(_, routing_key, reason) if routing_key in (self._names.log, self._names.journal):
                what = "entries of the model log" if routing_key == self._names.log else "records of the journal"
                raise BrokerUnavailable(f"the broker refuses {what} {routing_key}: {reason}")
            case _:
                told = transport_note(item)
                effects += () if told is None else (told,)
                if isinstance(item, Disconnected | ConsumerWaiting):
                    return self._follow(item, effects, now)
        return []

    def _dispatch(self, events: Iterable[Event], effects: list[Effect], now: float) -> None:
        """Show events to every machine, and what they tell each other after each of them, in order.

        One by one as they are read: no machine may look at a log that is ahead of the entries it has been told of.
        """
        for told in events:
            waiting = deque([told])
            while waiting:
                event = waiting.popleft()
                for machine in self._machines:
                    for effect in machine.handle(event, now):
                        self._perform(effect, waiting, effects)

    def _perform(self, effect: CoordinatorEffect, waiting: deque[Event], effects: list[Effect]) -> None:
        match effect:
            case Tell(event):
                waiting.append(event)
            case Evaluate():
                self._output.evaluate(effect)
            case KeepModel():
                self._output.keep(effect)
            case Finish():
                self.finished = self.finished or effect
            case _:
                effects.append(effect)

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, delivery: Delivery, effects: list[Effect]) -> Iterable[Event]:
        self._bytes_in += len(delivery.body)
        received, refusals = open_delivery(self._opener, delivery)
        effects += refusals
        for one in received:
            if isinstance(one.opened.message, Candidacy) and delivery.queue == self._names.offers:
                effects.append(Settle(one.receipt))
                continue
            event = event_of(one, delivery.queue, self._names, self._stage_id, self._clock_us)
            if event is None:
                effects += unexpected(one, f"in {delivery.queue}")
                continue
            if isinstance(event, StatusArrived | GroupReplyArrived):
                effects.append(Settle(one.receipt))
            yield event

    def _follow(self, event: LeaseEvent, effects: list[Effect], now: float) -> Iterator[Event]:
        for effect in self._lease.handle(event, now):
            match effect:
                case StandBy():
                    self._office.compare_plans()
                    prefetch = max(OFFERS_PREFETCH_MIN, 2 * len(self._clients))
                    self._transport.consume(offers_queue(self._names), prefetch=min(prefetch, 65_535))
                case TakeOffice():
                    effects.append(self._office.start(self._session))
                case HandOver(delivered):
                    for delivery in delivered.deliveries:
                        yield from self._open(delivery, effects)
                case StopWaiting():
                    self.finished = Finish(BY_OPERATOR)
                case _:
                    effects.append(effect)

    def _read_log(self, deliveries: Sequence[Delivery], effects: list[Effect], now: float) -> Iterator[Event]:
        for delivery in deliveries:
            assert delivery.offset is not None
            for event in self.log.feed(delivery.offset, delivery.body):
                self._writer.observe(event)
                was_in_office = self._office.state is OfficeState.IN_OFFICE
                yield from self._follow(event, effects, now)
                if self._recall is not None and isinstance(event, Accepted):
                    self._recall.observe(event)
                effects += self._ask_office(event)
                if isinstance(event, Skipped):
                    effects.append(note("log_entry_skipped", "debug", reason=event.reason, detail=event.detail))
                elif was_in_office and isinstance(event, Accepted):
                    if isinstance(event.entry, DirectoryEntry):
                        self._declare_new_clients()
                    yield EntryAccepted(event)
                elif not was_in_office and isinstance(event, Accepted):
                    self._record.observe(event.entry)
                if not was_in_office and self._office.state is OfficeState.IN_OFFICE:
                    yield from self._begin_work(effects, now)
            effects.append(Settle(Receipt(delivery, 1)))

    def _ask_office(self, event: LogEvent | JournalRead) -> Iterable[Effect]:
        before = self._office.state
        effects = self._office.handle(event)
        if self._office.state is OfficeState.RECALLING is not before:
            queue = journal_queue(self._names, 4 * self._plan.dimension)
            self._transport.consume(queue, prefetch=LOG_PREFETCH, start="first")
        return effects

    def _read_journal(self, deliveries: Sequence[Delivery], effects: list[Effect], now: float) -> Iterator[Event]:
        for delivery in deliveries:
            assert delivery.offset is not None
            effects.append(Settle(Receipt(delivery, 1)))
            for session in self._recall.feed(delivery.offset, delivery.body) if self._recall is not None else ():
                effects += self._ask_office(JournalRead(session))
                if self._office.state is OfficeState.IN_OFFICE:
                    self._transport.cancel(delivery.queue)
                    yield from self._begin_work(effects, now)
                    break

    def _declare_new_clients(self) -> None:
        before, self._clients = set(self._clients), self.log.directory.active_clients()
        if queues := tuple(client_queue(self._names, client) for client in self._clients if client not in before):
            self._transport.declare(Topology(exchanges=(), queues=queues))

    def _begin_work(self, effects: list[Effect], now: float) -> Iterator[Event]:
        """In office: consume what this session is now responsible for, and go on from what the journal says."""
        # Enrolled since we began to read; the session that wrote the directory may have died before it got to this.
        self._declare_new_clients()
        if self._sums_here:
            queue = stage_queue(self._names, self._stage_id, 4 * self._plan.dimension)
            self._transport.consume(queue, prefetch=STAGE_PREFETCH)
            self._transport.consume(groups_queue(self._names), prefetch=GROUPS_PREFETCH)
        self._transport.consume(sums_queue(self._names), prefetch=SUMS_PREFETCH)
        assert self._recall is not None
        recalled, self._recall = self._recall, None
        if recalled.is_behind:
            self.telemetry.note(note("journal_is_behind", "warning"))
        yield recalled.took_office()
        yield from self._follow(TookOffice(), effects, now)
