"""One client's life: idle, training, offering, in a group (sans-I/O).

    state      event                           next       what is done
    ─────────  ──────────────────────────────  ─────────  ────────────────────────────────────────────────────
    waiting    task                            idle       the log is followed from the snapshot that it names
    idle       a newer task (log or queue)     training   training starts
    idle       unspent update for this head    offering   counter raised, then offered again
    training   finished                        saving     update to the disk
    training   failed, or not a usable update  charging   its charge to the disk (without privacy failed, at once)
    charging   charged                         failed     told the coordinator
    training   the version passed              idle       run given up
    saving     saved                           offered    offer
    offering   counter raised                  offered    offer
    offered    5 minutes                       offered    the same offer leaves again
    offered    roster                          sharing    the rest of the group's talk is `worker.member`'s
    sharing    words made                      spending   spent mark and charge to the disk (in a group of one, at once)
    spending   spent                           in_group   words leave
    offered    void draw                       idle       the update is offered again (see idle)
    sharing    void draw                       idle       the same
    in_group   version or attempt moved        idle       -
    failed     version or attempt moved        idle       -
    *          the version passed              idle       update dropped, unspent
    **         drain, hand over, leave         **         the group needs us: gone after it
    else       drain, leave                    drained, left      an unspent update stays on the disk
    else       hand over                       released   the same; nothing is said, since the client stays
    any        one of them at once             drained, released, left
    idle       a run would pass the budget     exhausted  told the coordinator; stays until the process ends
    any        plan mismatch                   mismatch   told the coordinator; stays until the process ends

(* saving, offering, offered, sharing, spending; ** offered, sharing, spending, in_group until its shares have left)

A task is (version, attempt) of the log's head; it is trained once, and not while a draw is open or the log is still
being read up to the task that the coordinator named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from shared.effects import Publish, Settle, note
from shared.errors import WorkloadError
from shared.modellog.chain import ChainState
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.privacy.charges import Charge
from shared.wire.messages import Offer, RunState
from shared.wire.topology import Names
from worker.budget import Spending, terms_of
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
    Mismatch,
    RaiseCounter,
    RunCharged,
    SaveUpdate,
    SpendUpdate,
    StopTraining,
    TaskArrived,
    Tick,
    Train,
    TrainingFailed,
    TrainingFinished,
    UpdateSaved,
    UpdateSpent,
    WorkerEffect,
)
from worker.feedback import Feedback
from worker.member import GroupMember
from worker.prospects import has_passed, problem_of
from worker.seat import Seat
from worker.signs_of_life import Phase, SignsOfLife
from worker.steps import MemberState
from worker.stored_update import StoredUpdate, TaskId, UpdateMeta

OFFER_REPEAT_S = 300.0
NONCE_BYTES = 16

_GONE_BY = {Drain: Phase.DRAINED, HandOver: Phase.RELEASED, Leave: Phase.LEFT}
_GONE = tuple(_GONE_BY.values())
_STANDING = (Phase.WAITING, Phase.MISMATCH, Phase.OBJECTING, Phase.EXHAUSTED, *_GONE)
"""Phases in which the log moves nothing."""


class ClientMachine:
    """The protocol side of one client."""

    def __init__(
        self,
        seat: Seat,
        names: Names,
        log: LogReader,
        member: GroupMember,
        *,
        entropy: Entropy,
        sequence: Callable[[], int],
        spending: Spending,
        counter: int,
        last_task: TaskId | None,
        unspent: StoredUpdate | None,
        residual: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            seat: who speaks.
            names: the federation's addresses.
            log: the worker's reader (read only here).
            member: its part in groups.
            entropy: fresh random bytes of a cryptographic generator.
            sequence: numbers that rise with every call, also over restarts.
            spending: what this client has spent so far, and its budget.
            counter, last_task, unspent, residual: what the state directory holds.
        """
        self._seat = seat
        self._names = names
        self._log = log
        self._member = member
        self._entropy = entropy
        self._signs = SignsOfLife(log, seat.worker, sequence)
        self._spending = spending
        self._counter = counter
        self._last_task = last_task
        self._unspent = unspent
        self._feedback = Feedback(residual)
        self.phase = Phase.WAITING
        self._saving: tuple[np.ndarray, UpdateMeta] | None = None
        self._tasked: TaskId | None = None
        self._offer: Publish | None = None
        self._offer_attempt = 0
        self._reason = ""
        self._leaving: Phase | None = None
        self._offer_due = 0.0

    def handle(self, event: Event, now: float) -> tuple[WorkerEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        before = self.phase
        effects = list(self._dispatch(event, now))
        effects += self._advance()
        if self.phase is not before:
            self._signs.changed(self.phase, now)
        if now >= self._signs.next_at:
            status = self._signs.status(self.phase, self._counter, self._reason, now)
            effects.append(Publish(self._names.up, self._names.offer_key(self._seat.site), self._seat.seal(status)))
        return tuple(effects)

    def next_wakeup(self) -> float:
        """When this machine wants its next tick (seconds, monotonic)."""
        return min(self._signs.next_at, self._offer_due if self.phase is Phase.OFFERED else math.inf)

    def _dispatch(self, event: Event, now: float) -> Iterator[WorkerEffect]:
        match event:
            case TaskArrived():
                yield from self._on_task(event)
            case TrainingFinished() | TrainingFailed() if (
                self.phase is Phase.TRAINING and event.task == self._last_task
            ):
                yield from self._on_trained(event)
            case UpdateSaved(update_id) if self._saving is not None:
                (values, meta), self._saving = self._saving, None
                self._unspent = StoredUpdate(update_id=update_id, meta=meta, values=values)
                self._counter = update_id
                yield from self._make_offer(now)
            case CounterRaised(counter):
                self._counter = counter
                yield from self._make_offer(now)
            case GroupMessageArrived(message):
                yield from self._in_group(self._member.handle(message, self._sendable()))
            case UpdateSpent(counter):
                self._counter = counter
                yield from self._on_spent(now)
            case RunCharged(counter) if self.phase is Phase.CHARGING:
                self._counter = counter
                self._spending.add(self._cost())
                self.phase = Phase.FAILED
            case Mismatch(reason, by_policy) if self.phase not in _GONE:
                if self.phase is Phase.TRAINING:
                    yield StopTraining()
                self.phase, self._reason = Phase.OBJECTING if by_policy else Phase.MISMATCH, reason
            case Drain(at_once) | HandOver(at_once) | Leave(at_once):
                if self._leaving is None or isinstance(event, Leave):
                    self._leaving = _GONE_BY[type(event)]
                if at_once:
                    self.phase = self._leaving
            case Tick() if self.phase is Phase.OFFERED and self._offer is not None and now >= self._offer_due:
                self._offer_due = now + OFFER_REPEAT_S
                yield self._offer
            case _:
                return

    # ── tasks and training ───────────────────────────────────────────────────────────────────────────────────────────

    def _on_task(self, event: TaskArrived) -> Iterator[WorkerEffect]:
        task = event.task
        self._tasked = max(self._tasked or TaskId(0, 0), TaskId(task.version, task.attempt))
        if self.phase is Phase.WAITING:
            self.phase = Phase.IDLE
            yield FollowLog(task.snapshot_offset)
        if self.phase is Phase.OFFERED and not self._is_sync and self._counter <= task.drawn:
            # A draw has taken this offer, and we were not heard in its group.
            self._to_idle()
        # The log holds the task for good, so its message has done its work.
        yield Settle(event.receipt)

    def _advance(self) -> Iterator[WorkerEffect]:
        """Compare where we stand with the log, which may have moved by any number of versions."""
        chain, plan = self._log.chain, self._log.plan
        if chain is not None:
            if self.phase not in _STANDING:
                yield from self._leave_the_past(chain)
            # Before the look at draining: a group whose draw is closed needs nobody.
            yield from self._in_group(self._member.follow(chain, self._sendable()))
            if self.phase is Phase.SHARING and self._member.state is MemberState.OUT:
                self._to_idle()
        if self._leaving is not None and not self._is_awaited() and self.phase not in _GONE:
            if self.phase is Phase.TRAINING:
                yield StopTraining()
            self.phase = self._leaving
        if chain is None or plan is None or self.phase in _STANDING:
            return
        if self.phase is not Phase.IDLE or chain.draw is not None:
            return
        yield from self._take_up(chain, plan)

    def _take_up(self, chain: ChainState, plan: Plan) -> Iterator[WorkerEffect]:
        """Idle: offer the update that is there, or train, if there is a task and it can be afforded."""
        present = TaskId(chain.version, chain.attempt)
        if self._unspent is not None:
            meta = self._unspent.meta
            if meta.trained_head == chain.head_of(meta.task.version) and self._can_afford(plan):
                self.phase = Phase.OFFERING
                yield RaiseCounter()
        elif chain.run is not RunState.PAUSED and self._may_train(present, plan) and self._can_afford(plan):
            self.phase, self._last_task = Phase.TRAINING, present
            restricted = plan.codec.selection == "restricted"
            yield Train(present, self._log.weights, self._log.coordinates if restricted else None)
        if self.phase is Phase.EXHAUSTED:
            yield note("budget_exhausted", "warning", client=self._seat.client, reason=self._reason)

    def _is_awaited(self) -> bool:
        """Whether a group may be forming that we are in, or one cannot end without us."""
        return self.phase in (Phase.OFFERED, Phase.SHARING, Phase.SPENDING) or self._member.is_awaited

    def _leave_the_past(self, chain: ChainState) -> Iterator[WorkerEffect]:
        present = TaskId(chain.version, chain.attempt)
        if self._unspent is not None and has_passed(self._unspent.meta, chain):
            assert self._log.plan is not None
            yield DropUpdate(self._feedback.expire(self._unspent.values, self._log.plan, chain.clipping_norm))
            self._unspent = None
            yield note("late", client=self._seat.client, version=chain.version)
            if self.phase in (Phase.SAVING, Phase.OFFERING, Phase.OFFERED, Phase.SHARING, Phase.SPENDING):
                self._to_idle()
        moved = self._last_task is not None and self._last_task < present
        match self.phase:
            case Phase.TRAINING if self._last_task is not None and chain.head_of(self._last_task.version) is None:
                yield StopTraining()
                self._to_idle()
            case Phase.OFFERED | Phase.SHARING if self._is_sync and self._offer_attempt < chain.attempt:
                self._to_idle()
            case Phase.IN_GROUP | Phase.FAILED if moved:
                self._to_idle()
            case _:
                return

    @property
    def _is_sync(self) -> bool:
        return self._log.plan is None or self._log.plan.round.mode == "sync"

    def _may_train(self, present: TaskId, plan: Plan) -> bool:
        if present.version >= plan.round.rounds or (self._last_task is not None and present <= self._last_task):
            return False
        if self._tasked is not None and present < self._tasked:
            return False
        return plan.round.cohort_size is None or self._tasked == present

    def _can_afford(self, plan: Plan) -> bool:
        objection = self._spending.objection_to(terms_of(plan))
        if objection:
            self.phase, self._reason = Phase.EXHAUSTED, objection
        return not objection

    def _cost(self) -> Charge | None:
        """What a run, and the update that comes of it, costs."""
        assert self._log.plan is not None
        return terms_of(self._log.plan).charge

    def _on_trained(self, event: TrainingFinished | TrainingFailed) -> Iterator[WorkerEffect]:
        chain, plan = self._log.chain, self._log.plan
        assert chain is not None
        assert plan is not None
        if isinstance(event, TrainingFailed):
            yield from self._fail(event.reason, event.detail)
            return
        trained_head = chain.head_of(event.task.version)
        if trained_head is None:
            # The log was read further while the result was on its way.
            self._to_idle()
            return
        problem = problem_of(event, plan)
        if problem:
            yield from self._fail(problem)
            return
        meta = UpdateMeta(
            task=event.task,
            trained_head=trained_head,
            num_examples=event.num_examples,
            metrics=event.metrics,
        )
        self.phase = Phase.SAVING
        self._saving = (event.values, meta)
        yield SaveUpdate(event.values, meta)

    def _fail(self, reason: str, detail: str = "") -> Iterator[WorkerEffect]:
        """A failure says something about the data, so it is charged before it is told; only our own log has details."""
        assert self._last_task is not None
        self.phase, self._reason, charge = Phase.CHARGING, reason, self._cost()
        yield note("training_failed", "error", client=self._seat.client, reason=detail or reason)
        if charge is None:
            self.phase = Phase.FAILED
        else:
            yield ChargeRun(self._last_task, charge)

    # ── offer and group ──────────────────────────────────────────────────────────────────────────────────────────────

    def _make_offer(self, now: float) -> Iterator[WorkerEffect]:
        chain = self._log.chain
        assert chain is not None
        if self.phase not in (Phase.SAVING, Phase.OFFERING) or self._unspent is None:
            return
        if has_passed(self._unspent.meta, chain):
            return
        offer = Offer(
            attempt=chain.attempt,
            trained_version=self._unspent.meta.task.version,
            trained_head=self._unspent.meta.trained_head,
            counter=self._counter,
            nonce=self._entropy(NONCE_BYTES),
            worker=self._seat.worker,
            keys=self._member.draw_keys(),
        )
        self._offer = Publish(self._names.up, self._names.offer_key(self._seat.site), self._seat.seal(offer))
        self._member.offered(self._offer.frame)
        self._offer_attempt = chain.attempt
        self._offer_due = now + OFFER_REPEAT_S
        # A task is answered once: after a void draw this offer answers the new attempt.
        self._last_task = TaskId(chain.version, chain.attempt)
        self._signs.heard(now)
        self.phase = Phase.OFFERED
        yield self._offer

    def _in_group(self, effects: Iterator[WorkerEffect]) -> Iterator[WorkerEffect]:
        """Let the member go on, and see where that brings us."""
        try:
            for effect in effects:
                if isinstance(effect, SpendUpdate):
                    self._feedback.next = effect.residual
                    yield replace(effect, charge=self._cost())
                else:
                    yield effect
        except WorkloadError as error:
            self._unspent, self._offer = None, None
            yield DropUpdate()
            yield from self._fail(str(error))
            return
        if self.phase is Phase.OFFERED and self._member.state is MemberState.SHARED:
            self.phase = Phase.SHARING
        if self.phase in (Phase.OFFERED, Phase.SHARING) and self._member.state is MemberState.SPENDING:
            assert self._log.chain is not None
            # A draw takes one update of a client, whichever version it was trained on.
            self.phase, self._last_task = Phase.SPENDING, TaskId(self._log.chain.version, self._log.chain.attempt)

    def _on_spent(self, now: float) -> Iterator[WorkerEffect]:
        if self.phase is not Phase.SPENDING:
            return
        self._spending.add(self._cost())
        self.phase, self._unspent, self._offer = Phase.IN_GROUP, None, None
        self._feedback.has_left()
        self._signs.heard(now)
        yield from self._member.spent()

    def _sendable(self) -> StoredUpdate | None:
        """What a group would be sent: the unspent update, with what is owed from before."""
        if self._unspent is None or self._log.plan is None:
            return None
        values = self._feedback.total(self._unspent.values, self._log.plan)
        return self._unspent if values is self._unspent.values else replace(self._unspent, values=values)

    def _to_idle(self) -> None:
        self.phase, self._offer = Phase.IDLE, None
        self._member.offered(None)
