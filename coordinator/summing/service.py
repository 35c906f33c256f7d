"""The shell around a summing stage in a process of its own: jobs and replies in, group messages and sums out.

Stages compete for the jobs of their federation's queue, so starting more of them is all that scaling out takes. A sum
is published, and confirmed, before its job is settled. A process that stood still for longer than a heartbeat is taken
for dead by the broker, which has given its jobs to another: it puts them back and forgets its groups. While the broker
is away the groups' time stands still: no member is silent because it could not be heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from coordinator.events import (
    CoordinatorEffect,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupReplyArrived,
    GroupSummed,
    JobArrived,
    Tell,
    Tick,
)
from coordinator.outage_clock import OutageClock
from coordinator.summing.stage import SummingStage
from shared.crypto.signing import SigningKey, VerificationCache
from shared.effects import Effect, Note, Publish, Receipt, Settle, note
from shared.identity import COORDINATOR
from shared.incoming import Received, keys_of, open_delivery, transport_note, unexpected
from shared.membership import Membership
from shared.modellog.entries import cut
from shared.modellog.reader import Accepted, LogReader, Skipped
from shared.outgoing import Outgoing
from shared.telemetry import Telemetry
from shared.transport.port import Confirmed, Delivered, Delivery, Transport, TransportEvent
from shared.wire.framing import Opener, seal
from shared.wire.group_messages import Agreement, GivenUp, GroupJob, Reveal, Shares, Sum, Words
from shared.wire.messages import Message
from shared.wire.pieces import piece_count
from shared.wire.topology import Names, groups_queue, log_queue, stage_queue

GROUPS_PREFETCH = 64
STAGE_PREFETCH = 64
LOG_PREFETCH = 32


class StageService:
    """One summing process without its threads: `step` handles what came in."""

    def __init__(
        self,
        members: Membership,
        key: SigningKey,
        transport: Transport,
        *,
        session: bytes,
        heartbeat_s: float,
        telemetry: Telemetry,
    ) -> None:
        """
        Args:
            members: the federation's identities.
            key: the coordinator's signing key.
            transport: where messages go; its events are given to `step`.
            session: 16 fresh random bytes; they name the stage's queue.
            heartbeat_s: the connection's; who stood still for longer may have been replaced.
            telemetry: takes the machine's notes.
        """
        directory = members.directory
        self._federation_id = directory.federation_id
        self._names = Names(directory.federation)
        self._transport = transport
        self._stage_id = f"stage-{session.hex()[:12]}"
        self._opener = Opener(directory.federation_id, keys_of(members), VerificationCache())
        self._outgoing = Outgoing(transport, self._names)
        self._key = key
        self._stage: SummingStage | None = None
        self._heartbeat_s = heartbeat_s
        self._stepped_at: float | None = None
        self._clock = OutageClock()
        self.log = LogReader(self._opener, members)
        self.telemetry = telemetry

    def start(self) -> None:
        """Begin to read the log; jobs are taken once it has told us the plan.

        Raises:
            BrokerUnavailable: there is no broker.
        """
        self._transport.consume(log_queue(self._names, 0), prefetch=LOG_PREFETCH, start="first")

    def step(self, items: Sequence[TransportEvent], now: float) -> None:
        """Handle everything that came in, then let the stage know the time.

        Raises:
            PlanError: the log belongs to a plan that this version cannot read.
            BrokerUnavailable: the transport was closed.
        """
        effects: list[Effect] = []
        if self._stepped_at is not None and now - self._stepped_at > self._heartbeat_s and self._stage is not None:
            effects.append(note("stage_paused", "warning", seconds=now - self._stepped_at))
            self._perform(self._stage.forget(), effects)
        self._stepped_at = now
        for item in items:
            self._clock.watch(item, now)
            for event in self._receive(item, effects):
                self._show(event, self._clock.at(now), effects)
        self._show(Tick(), self._clock.at(now), effects)
        for effect in effects:
            if isinstance(effect, Note):
                self.telemetry.note(effect)
        self._outgoing.carry_out(effect for effect in effects if not isinstance(effect, Note))

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, item: TransportEvent, effects: list[Effect]) -> Iterable[Event]:
        match item:
            case Delivered(queue, deliveries) if queue == self._names.log:
                return self._read_log(deliveries, effects)
            case Delivered(_, deliveries):
                return [event for delivery in deliveries for event in self._open(delivery, effects)]
            case Confirmed(through):
                self._outgoing.on_confirmed(through)
            case _:
                told = transport_note(item)
                effects += () if told is None else (told,)
        return []

    def _open(self, delivery: Delivery, effects: list[Effect]) -> Iterator[Event]:
        received, refusals = open_delivery(self._opener, delivery)
        effects += refusals
        for one in received:
            event = self._event_of(one, delivery.queue)
            if event is None:
                effects += unexpected(one, f"in {delivery.queue}")
                continue
            if isinstance(event, GroupReplyArrived):
                effects.append(Settle(one.receipt))
            elif isinstance(event, JobArrived):
                groups = [group.index for group in event.job.members]
                effects.append(note("job_taken", "debug", version=event.job.version, groups=groups))
            yield event

    def _event_of(self, one: Received, queue: str) -> Event | None:
        match one.opened.message:
            case GroupJob() as job if queue == self._names.groups:
                return JobArrived(job, one.receipt)
            case Shares() | Words() | Agreement() | Reveal() as reply if queue == self._names.stage(self._stage_id):
                return GroupReplyArrived(one.opened.sender, reply, one.opened.frame)
            case _:
                return None

    def _read_log(self, deliveries: Sequence[Delivery], effects: list[Effect]) -> Iterator[Event]:
        for delivery in deliveries:
            assert delivery.offset is not None
            for event in self.log.feed(delivery.offset, delivery.body):
                if isinstance(event, Skipped):
                    effects.append(note("log_entry_skipped", "debug", reason=event.reason, detail=event.detail))
                elif isinstance(event, Accepted):
                    self._begin()
                    yield EntryAccepted(event)
            effects.append(Settle(Receipt(delivery, 1)))

    def _begin(self) -> None:
        """The first entry has told us the plan: take jobs from now on."""
        plan = self.log.plan
        if self._stage is not None or plan is None:
            return
        self._stage = SummingStage(self._stage_id, plan, self.log, self._opener, self._seal)
        # Replies first: whoever takes a job must be able to hear its members.
        queue = stage_queue(self._names, self._stage_id, 4 * plan.dimension)
        self._transport.consume(queue, prefetch=STAGE_PREFETCH)
        self._transport.consume(groups_queue(self._names), prefetch=GROUPS_PREFETCH)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self, event: Event, now: float, effects: list[Effect]) -> None:
        if self._stage is not None:
            self._perform(self._stage.handle(event, now), effects)

    def _perform(self, asked: Iterable[CoordinatorEffect], effects: list[Effect]) -> None:
        for effect in asked:
            match effect:
                case Tell(GroupSummed() as summed):
                    effects.append(note("group_summed", "debug", group=summed.group, arrived=len(summed.arrived)))
                    effects += (self._to_aggregator(piece) for piece in self._pieces(summed))
                case Tell(GroupGivenUp() as given_up):
                    effects.append(note("group_given_up", "warning", group=given_up.group, reason=given_up.reason))
                    effects.append(self._to_aggregator(self._given_up(given_up)))
                case Publish() | Settle() | Note():
                    effects.append(effect)
                case _:
                    raise AssertionError(f"{effect!r} is not for a summing stage")

    def _pieces(self, summed: GroupSummed) -> Iterator[Sum]:
        words = summed.words.data.cast("B")
        view = memoryview(b"".join((words, summed.positions))) if summed.positions else words
        for part, body in enumerate(cut(view)):
            yield Sum(
                stage=self._stage_id,
                draw=summed.draw,
                group=summed.group,
                arrived=summed.arrived,
                dropped=summed.dropped,
                unheard=summed.unheard,
                blamed=summed.blamed,
                part=part,
                parts=piece_count(view.nbytes),
                body=bytes(body),
            )

    def _given_up(self, given_up: GroupGivenUp) -> GivenUp:
        return GivenUp(
            stage=self._stage_id,
            draw=given_up.draw,
            group=given_up.group,
            unheard=given_up.silent,
            blamed=given_up.blamed,
            reason=given_up.reason,
        )

    def _to_aggregator(self, message: Message) -> Publish:
        return Publish(self._names.down, self._names.sums, self._seal(message))

    def _seal(self, message: Message) -> bytes:
        return seal(message, sender=COORDINATOR, federation=self._federation_id, key=self._key)
