"""The scheduler: who gets a task, and when the waiting offers are drawn (sans-I/O).

A round is the work that leads from version v to v+1. It begins when the entry that made v (or a void draw of v) is
accepted; in synchronous mode that entry is the task of every live client, unless a smaller cohort is chosen. The draw
happens once, when every live client of the cohort has offered, when `offer_quorum` of them have and the grace for
stragglers is over, or at the round's deadline. In asynchronous mode it happens when the pool is full
(`coordinator.scheduler.full_pool`), and nothing else differs but what becomes of the offers that were not drawn: they
wait on. Below `min_offers` there is no draw: the federation waits and says so.

    state      event                                  next       what is done
    ─────────  ─────────────────────────────────────  ─────────  ──────────────────────────────────────────────────
    -          TookOffice                             gathering  what the journal keeps is taken over; a round without
                                                                 a cohort; an open draw goes on (jobs again), or is
                                                                 closed (void) if its offers are not kept
    gathering  enough clients are live                open       the deadline begins; the cohort is chosen, tasked
    gathering  deadline                               gathering  said once
    open       offers of the cohort, quorum and       drawn      draw entry and jobs
               grace, or deadline; or a full pool
    open       deadline, but below `min_offers`       gathering  said once; who has not offered is lost (in
                                                                 asynchronous mode: nobody, if enough are live)
    drawn      own draw accepted                      drawn      its offers are settled
    any        change or void accepted                open       late offers refused, held ones looked at; in
                                                                 asynchronous mode a task for who was drawn unheard
    any        OfferArrived                           -          pooled, held (next round), or refused with a reason
    any        StatusArrived                          -          the roll; a task for who joins or has no log yet
    any        GroupGivenUp, silence                  -          the clients are lost until they are heard again
    any        run entry: paused                      -          a draw under way goes on; nothing else begins
    any        run entry: running                     -          a round that was paused has its whole time again
    any        run entry: stopping                    -          told when the round under way, if any, is over
    any        too few clients have budget left       -          told when the run is over

Gathering needs as many live clients as one draw needs, and at first that `min_clients` have been heard of: one that
cannot train has come too. A session that takes over an old federation waits for them until the deadline only. With a
`cohort_size` only clients of the cohort are tasked: others are told of the log when their turn comes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from coordinator.events import (
    ClientLost,
    CoordinatorEffect,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupReplyArrived,
    GroupSummed,
    OfferArrived,
    RunStopped,
    StatusArrived,
    Tell,
    Tick,
    TookOffice,
)
from coordinator.kept import SchedulerMemory
from coordinator.log_writer import LogWriter
from coordinator.scheduler.attempt import Round, choose_cohort, next_deadline_s, voids_alarm
from coordinator.scheduler.clients import Roll
from coordinator.scheduler.draw import make_draw, sites_of
from coordinator.scheduler.full_pool import FullPool
from coordinator.scheduler.letters import Letters
from coordinator.scheduler.pool import Pool, WaitingOffer, is_ahead, refusal_of
from coordinator.scheduler.recall import recall, remember, resume_draw
from coordinator.scheduler.run_word import RunWord
from coordinator.scheduler.turnout import Turnout
from coordinator.scheduler.under_way import DrawUnderWay
from shared.effects import Append, Note, Publish, Settle, note
from shared.errors import RefusalReason
from shared.modellog.chain import ChainState
from shared.modellog.entries import Sealer
from shared.plan import Plan
from shared.wire.log_messages import ChangeEntry, DirectoryEntry, DrawEntry, Entry, RunEntry, VoidEntry
from shared.wire.messages import OFFER_BYTES_MAX, RunState
from shared.wire.topology import Names

BY_OPERATOR = "stopped by the operator"


class Scheduler:
    """Keeps the roll and the pool, opens rounds, makes draws."""

    def __init__(self, plan: Plan, writer: LogWriter, seal: Sealer) -> None:
        """
        Args:
            plan: the federation's plan.
            writer: the coordinator's access to the log.
            seal: the coordinator's signature.
        """
        self._plan = plan
        self._names = Names(plan.federation)
        self._writer = writer
        self._log = writer.log
        self._roll = Roll(plan.round.status_interval_s)
        self._pool = Pool()
        self._letters = Letters(self._names, writer, self._pool, seal)
        self._is_async = plan.round.mode == "async"
        self._full_pool = FullPool(plan)
        self._under_way = DrawUnderWay(self._names, seal)
        self._round: Round | None = None
        self._turnout: Turnout | None = None
        self._gathering = True
        self._word = RunWord()
        self._deadline_s = plan.round.round_deadline_s

    @property
    def live(self) -> Collection[str]:
        """Who takes part now."""
        return self._roll.live

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match event:
            case OfferArrived():
                effects = self._on_offer(event, now)
            case StatusArrived():
                effects = self._on_status(event, now)
            case GroupReplyArrived():
                effects = self._on_reply(event, now)
            case TookOffice():
                effects = self._begin(event, now)
            case EntryAccepted():
                effects = self._on_entry(event, now)
            case GroupGivenUp():
                effects = self._after_group(event.silent, event.blamed)
            case GroupSummed():
                self._under_way.summed(event.arrived)
                effects = self._after_group(event.dropped, event.blamed)
            case Tick():
                effects = self._lose(self._roll.silent(now))
            case _:
                return ()
        done = tuple(effects)
        if self._turnout is not None and isinstance(event, OfferArrived | StatusArrived):
            self._turnout.recount(event.client)
        return (*done, *self._maybe_draw(now))

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_offer(self, event: OfferArrived, now: float) -> Iterator[CoordinatorEffect]:
        if (again := self._under_way.takes(event)) is not None:
            yield from again
            return
        chain = self._chain()
        waiting = WaitingOffer(event.client, event.offer, event.digest, event.frame, event.receipt)
        ahead = chain is None or is_ahead(event.offer, chain)
        reason = None if ahead or chain is None else self._refusal(event, chain)
        if reason is not None:
            yield Settle(event.receipt)
            yield _refused(event.client, reason, "offer")
            return
        self._roll.signed(event.client, event.offer.counter, event.frame)
        reason, settles = self._pool.add(waiting, held=ahead)
        yield from settles
        if reason is RefusalReason.DUPLICATE:
            yield note("repeated", "debug", client=event.client, what="offer")
            return
        if reason is not None:
            yield _refused(event.client, reason, "offer")
            return
        self._roll.heard(event.client, event.offer.trained_version, "offer", now)
        if self._roll.join(event.client):
            yield self._joined(event.client)
        if self._round is not None and not ahead:
            self._round.offer_times.setdefault(event.client, now - self._round.started_at)

    def _on_status(self, event: StatusArrived, now: float) -> Iterator[CoordinatorEffect]:
        status = event.status
        was_live = event.client in self._roll.live
        joined = self._roll.status(event.client, status, now)
        if joined is None:
            yield _refused(event.client, RefusalReason.REPLAYED, "status")
            return
        if newest := self._roll.signed(event.client, status.counter, event.frame):
            yield note("client_is_behind", "warning", client=event.client, counter=status.counter)
            yield self._letters.reminder(event.client, newest)
        chain = self._chain()
        if status.reason and self._roll.is_news(event.client, status.reason):
            yield note(f"client_{status.state}", "warning", client=event.client, reason=status.reason)
        if event.client not in self._roll.live:
            if was_live and not status.reason:
                yield note("client_left", client=event.client, state=status.state)
            yield from self._pool.withdraw(event.client)
            return
        if chain is None or self._round is None:
            return
        if joined:
            yield self._joined(event.client)
        if (joined or status.log_position == "absent") and self._may_task(event.client, self._round):
            yield self._letters.task(event.client)

    def _refusal(self, event: OfferArrived, chain: ChainState) -> RefusalReason | None:
        if (event.offer.keys is None) != (self._plan.group_size == 1) or len(event.frame) > OFFER_BYTES_MAX:
            return RefusalReason.MALFORMED
        if self._roll.is_backed_off(event.client, chain.version):
            return RefusalReason.BACKED_OFF
        return refusal_of(event.offer, chain, self._plan.round)

    def _joined(self, client: str) -> Note:
        if self._gathering and self._round is not None and self._plan.round.cohort_size is None:
            self._round.cohort.add(client)
        return note("client_joined", client=client, live=len(self._roll.live))

    def _may_task(self, client: str, current: Round) -> bool:
        return self._plan.round.cohort_size is None or client in current.cohort

    def _on_reply(self, event: GroupReplyArrived, now: float) -> Iterator[CoordinatorEffect]:
        chain = self._chain()
        if chain is not None and chain.draw is not None:
            self._roll.heard(event.client, chain.version, type(event.message).__name__.lower(), now)
        return iter(())

    def _after_group(self, silent: tuple[str, ...], blamed: tuple[str, ...]) -> Iterator[CoordinatorEffect]:
        chain = self._chain()
        assert chain is not None
        for client in blamed:
            until, self._turnout = self._roll.back_off(client, chain.version), None
            yield note("client_backed_off", "warning", client=client, until_version=until)
        yield from self._lose(silent)

    def _on_entry(self, event: EntryAccepted, now: float) -> Iterator[CoordinatorEffect]:
        match event.accepted.entry:
            case DrawEntry():
                yield from self._under_way.read_back(event.accepted.digest)
            case ChangeEntry():
                if (draw := self._under_way.draw) is not None:
                    self._full_pool.counted(draw.clients, draw.version)
                yield from self._next_round(now)
            case VoidEntry(reason=reason):
                yield note("draw_void", "warning", reason=reason)
                yield from voids_alarm(self._chain())
                yield from self._next_round(now)
            case DirectoryEntry():
                yield from self._on_directory()
            case RunEntry() as entry:
                yield from self._on_run(entry, now)
            case _:
                return

    def _on_directory(self) -> Iterator[CoordinatorEffect]:
        """Who is revoked is not counted on from here on; an offer of theirs is not drawn."""
        self._turnout = None
        for client in self._roll.forget_others(self._log.directory.active_clients()):
            yield note("client_revoked", "warning", client=client)
            yield from self._pool.withdraw(client)

    # ── sessions, and the operator's word ────────────────────────────────────────────────────────────────────────────

    def keep(self, entry: Entry) -> SchedulerMemory:
        """What a successor must know once `entry` stands in the log."""
        return remember(entry, self._pool, self._roll, self._full_pool, self._under_way.draw, self._deadline_s)

    def _begin(self, event: TookOffice, now: float) -> Iterator[CoordinatorEffect]:
        chain = self._chain()
        assert chain is not None
        if event.kept is not None:
            memory = event.kept.scheduler
            clients = self._log.directory.active_clients()
            recall(memory, clients, now, pool=self._pool, roll=self._roll, full_pool=self._full_pool)
            self._deadline_s = memory.deadline_s
        yield from self._word.begin(chain)
        yield from self._open_round(now)
        yield from resume_draw(event, self._plan, self._writer, self._under_way)
        # A draw may have ended with the session before; who was in it does not see that in the log (below).
        for client in sorted(self._roll.live) if self._is_async and chain.draw is None else ():
            yield self._letters.task(client)

    def _on_run(self, entry: RunEntry, now: float) -> Iterator[CoordinatorEffect]:
        yield from self._word.take(entry, gathering=self._gathering)
        if entry.run is RunState.RUNNING:
            yield from self._reopen(now)

    def _reopen(self, now: float) -> Iterator[CoordinatorEffect]:
        """The round that was paused begins anew, with the offers that are there."""
        chain, current = self._chain(), self._round
        if chain is None or current is None or chain.draw is not None:
            return
        current.reopen(now, self._deadline_s)
        if not self._gathering:
            yield from self._choose_cohort(current, chain)

    # ── rounds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_round(self, now: float) -> Iterator[CoordinatorEffect]:
        chain = self._chain()
        assert chain is not None
        late, held = self._pool.next_round(lambda offer: refusal_of(offer, chain, self._plan.round) is not None)
        for waiting in late:
            yield Settle(waiting.receipt)
            yield _refused(waiting.client, RefusalReason.LATE, "offer")
        yield from self._open_round(now)
        unsummed = self._under_way.end() & self._roll.live
        # Others than in synchronous mode do not see in the log that they offered for a draw that is over.
        for client in sorted(unsummed) if self._is_async else ():
            yield self._letters.task(client)
        for waiting in held:
            again = OfferArrived(waiting.client, waiting.offer, waiting.digest, waiting.frame, waiting.receipt)
            yield from self._on_offer(again, now)

    def _open_round(self, now: float) -> Iterator[CoordinatorEffect]:
        chain = self._chain()
        assert chain is not None
        self._deadline_s = next_deadline_s(self._plan.round, self._round, self._deadline_s)
        self._turnout = None
        self._round = Round(chain.version, now, now + self._deadline_s, set(self._roll.live))
        if not self._gathering:
            yield from self._choose_cohort(self._round, chain)

    def _choose_cohort(self, current: Round, chain: ChainState) -> Iterator[Publish]:
        """Every client that may be drawn, whose task is the log's entry, or `cohort_size` of them, who are told."""
        size = None if self._finished(chain) else self._plan.round.cohort_size
        self._turnout = None
        current.cohort = choose_cohort(self._roll.drawable(self._roll.live, chain.version), size, chain)
        for client in sorted(current.cohort) if size is not None else ():
            yield self._letters.task(client)

    def _maybe_draw(self, now: float) -> Iterator[CoordinatorEffect]:
        chain, current = self._chain(), self._round
        if chain is None or current is None or chain.draw is not None or not self._writer.ready:
            return
        if self._finished(chain):
            return
        if self._word.stops(chain.version, gathering=self._gathering):
            yield Tell(RunStopped(BY_OPERATOR))
            return
        if self._word.paused:
            return
        enrolled, late = self._log.directory.active_clients(), self._gathering and now >= current.deadline
        if spent_up := self._roll.spent_up(enrolled, self._plan.min_offers, late=late):
            yield Tell(RunStopped(spent_up))
            return
        if self._gathering:
            yield from self._gather(current, chain, now)
        if self._gathering:
            return
        rule = self._draw_when_full if self._is_async else self._draw_when_offered
        yield from rule(current, chain, now)

    def _draw_when_full(self, current: Round, chain: ChainState, now: float) -> Iterator[CoordinatorEffect]:
        """Asynchronous mode: nobody is waited for but those who fill the pool."""
        live = self._roll.drawable(self._roll.live, chain.version)
        chosen = self._full_pool.chosen(self._pool.clients & live, live, chain.version)
        if chosen:
            yield from self._make_draw(chain, chosen)
        elif now >= current.deadline:
            yield from self._say_waiting(current, self._plan.min_offers)
            self._gathering = len(live) < self._plan.min_offers

    def _draw_when_offered(self, current: Round, chain: ChainState, now: float) -> Iterator[CoordinatorEffect]:
        """Synchronous mode: the cohort is waited for, within the round's bounds."""
        self._turnout = turnout = self._turnout or Turnout(current.cohort, self._roll, self._pool, chain.version)
        missing, expected = len(turnout.missing), len(turnout.expected)
        if now >= current.deadline:
            yield from self._lose(sorted(turnout.missing))
            missing = 0
        if len(self._pool) >= self._plan.min_offers:
            if not missing or current.is_grace_over(self._plan.round, expected - missing, expected, now):
                yield from self._make_draw(chain)
        elif now >= current.deadline:
            yield from self._say_waiting(current, self._plan.min_offers)
            self._gathering = True

    def _gather(self, current: Round, chain: ChainState, now: float) -> Iterator[CoordinatorEffect]:
        """Wait for enough clients; the deadline begins when they are there."""
        late = now >= current.deadline
        # A session that takes over finds out by the deadline who is gone for good.
        awaited = 0 if late and chain.version > 0 else self._plan.round.min_clients
        if len(self._roll.live) >= self._plan.min_offers and len(self._roll.heard_of) >= awaited:
            self._gathering = False
            current.restart(now, self._deadline_s)
            yield from self._choose_cohort(current, chain)
        elif late:
            yield from self._say_waiting(current, max(awaited, self._plan.min_offers))

    def _make_draw(self, chain: ChainState, clients: Collection[str] | None = None) -> Iterator[CoordinatorEffect]:
        offers = self._pool.draw(clients)
        draw, sealed = make_draw(offers, self._plan.group_size, sites_of(self._log.directory), self._writer)
        yield Append(sealed)
        yield from self._under_way.begin(draw, [waiting.receipt for waiting in offers])

    def _lose(self, clients: tuple[str, ...] | list[str]) -> Iterator[CoordinatorEffect]:
        for client in clients:
            if last := self._roll.lose(client):
                self._turnout = None
                version, phase = last
                yield note("client_lost", "warning", client=client, version=version, phase=phase)
                yield Tell(ClientLost(client, version, phase))

    def _say_waiting(self, current: Round, needed: int) -> Iterator[Note]:
        return current.say_waiting(len(self._pool), needed, self._roll)

    def _finished(self, chain: ChainState) -> bool:
        return chain.version >= self._plan.round.rounds

    def _chain(self) -> ChainState | None:
        return self._writer.chain


def _refused(client: str, reason: RefusalReason, what: str) -> Note:
    return note("refused", "warning", sender=client, reason=reason, what=what)
