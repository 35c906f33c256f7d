"""One client's life: idle, training, offering, in a group (sans-I/O).

    state      event                           next       what is done
    ─────────  ──────────────────────────────  ─────────  ────────────────────────────────────────────────────
    waiting    task                            idle       the log is followed from the snapshot that it names
    idle       a newer task (log or queue)     training   training starts
    idle       unspent update for this head    offering   counter raised, then offered again
    training   finished                        saving     update to the disk
    training   failed, or not a usable update  failed     told the coordinator
    training   the version passed              idle       run given up
    saving     saved                           offered    offer
    offering   counter raised                  offered    offer
    offered    5 minutes                       offered    the same offer leaves again
    offered    roster                          spending   checked (`worker.member`); words made; spent mark to the disk
    offered    void draw                       idle       the update is offered again (see idle)
    spending   spent                           in_group   words leave
    in_group   roster of the same group        in_group   the same words leave again
    in_group   version or attempt moved        idle       words forgotten
    failed     version or attempt moved        idle       -
    *          the version passed              idle       update dropped, unspent
    **         drain                           **         the group may be forming: leave after it
    else       drain                           drained    an unspent update stays on the disk
    any        drain at once                   drained    -
    any        plan mismatch                   mismatch   told the coordinator; stays until the process ends

(* saving, offering, offered, spending; ** offered, spending)

A task is (version, attempt) of the log's head; it is trained once, and not while a draw is open or the log is still
being read up to the task that the coordinator named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from shared.codec.quantize import UniformSource, l2_norm
from shared.effects import Publish, Settle, note
from shared.errors import RefusalReason, RemoteProtocolError, WorkloadError
from shared.modellog.chain import ChainState
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.wire.framing import digest_of
from shared.wire.messages import Message, Offer, Roster, RunState
from shared.wire.topology import Names
from worker.events import (
    CounterRaised,
    Drain,
    DropUpdate,
    Event,
    FollowLog,
    Mismatch,
    RaiseCounter,
    RosterArrived,
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
from worker.member import Bound, check_roster, make_words
from worker.signs_of_life import Phase, SignsOfLife
from worker.stored_update import StoredUpdate, TaskId, UpdateMeta
from worker.update import Encode, PreparedUpdate, prepare_words

OFFER_REPEAT_S = 300.0


@dataclass(frozen=True, slots=True)
class Seat:
    """Who speaks: the client, its site, the worker process that serves it."""

    client: str
    site: str
    worker: str
    seal: Callable[[Message], bytes]


class ClientMachine:
    """The protocol side of one client."""

    def __init__(
        self,
        seat: Seat,
        names: Names,
        log: LogReader,
        *,
        rounding: UniformSource,
        encode: Encode = prepare_words,
        nonce: Callable[[], bytes],
        sequence: Callable[[], int],
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
            rounding: randomness of stochastic rounding.
            encode: makes the words of an update.
            nonce: 16 fresh random bytes per call.
            sequence: numbers that rise with every call, also over restarts.
            counter, last_task, unspent, residual: what the state directory holds.
        """
        self._seat = seat
        self._names = names
        self._log = log
        self._rounding = rounding
        self._encode = encode
        self._nonce = nonce
        self._signs = SignsOfLife(log, seat.worker, sequence)
        self._counter = counter
        self._last_task = last_task
        self._unspent = unspent
        self._feedback = Feedback(residual)
        self.phase = Phase.WAITING
        self._saving: tuple[np.ndarray, UpdateMeta] | None = None
        self._tasked: TaskId | None = None
        self._offer: Publish | None = None
        self._offer_attempt = 0
        self._held_roster: Roster | None = None
        self._bound: Bound | None = None
        self._stage = ""
        self._reason = ""
        self._draining = False
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
        return self._signs.next_at

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
            case RosterArrived(roster):
                yield from self._on_roster(roster)
            case UpdateSpent(counter):
                self._counter = counter
                yield from self._on_spent(now)
            case Mismatch(reason) if self.phase is not Phase.DRAINED:
                self.phase, self._reason = Phase.MISMATCH, reason
            case Drain(at_once):
                self._draining = True
                if at_once:
                    self.phase = Phase.DRAINED
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
        # The log holds the task for good, so its message has done its work.
        yield Settle(event.receipt)

    def _advance(self) -> Iterator[WorkerEffect]:
        """Compare where we stand with the log, which may have moved by any number of versions."""
        chain, plan = self._log.chain, self._log.plan
        if chain is not None and self.phase not in (Phase.WAITING, Phase.MISMATCH, Phase.DRAINED):
            yield from self._leave_the_past(chain)
        if self._draining and self.phase not in (Phase.OFFERED, Phase.SPENDING, Phase.DRAINED):
            if self.phase is Phase.TRAINING:
                yield StopTraining()
            self.phase = Phase.DRAINED
        if chain is None or plan is None or self.phase in (Phase.WAITING, Phase.MISMATCH, Phase.DRAINED):
            return
        if self._held_roster is not None and chain.draw is not None and self._held_roster.draw == chain.draw.entry:
            roster, self._held_roster = self._held_roster, None
            yield from self._on_roster(roster)
        if self.phase is not Phase.IDLE or chain.draw is not None:
            return
        present = TaskId(chain.version, chain.attempt)
        if self._unspent is not None:
            if self._unspent.meta.trained_head == chain.version_head:
                self.phase = Phase.OFFERING
                yield RaiseCounter()
        elif chain.run is not RunState.PAUSED and self._may_train(present, plan):
            self.phase, self._last_task = Phase.TRAINING, present
            restricted = plan.codec.selection == "restricted"
            yield Train(present, self._log.weights, self._log.coordinates if restricted else None)

    def _leave_the_past(self, chain: ChainState) -> Iterator[WorkerEffect]:
        present = TaskId(chain.version, chain.attempt)
        if self._bound is not None and (chain.draw is None or chain.draw.entry != self._bound.draw):
            self._bound = None
        if self._unspent is not None and _has_passed(self._unspent.meta, chain):
            assert self._log.plan is not None
            yield DropUpdate(self._feedback.expire(self._unspent.values, self._log.plan, chain.clipping_norm))
            self._unspent = None
            yield note("late", client=self._seat.client, version=chain.version)
            if self.phase in (Phase.SAVING, Phase.OFFERING, Phase.OFFERED, Phase.SPENDING):
                self._to_idle()
        moved = self._last_task is not None and self._last_task < present
        match self.phase:
            case Phase.TRAINING if self._last_task is not None and self._last_task.version != chain.version:
                yield StopTraining()
                self._to_idle()
            case Phase.OFFERED if self._offer_attempt < chain.attempt:
                self._to_idle()
            case Phase.IN_GROUP | Phase.FAILED if moved:
                self._to_idle()
            case _:
                return

    def _may_train(self, present: TaskId, plan: Plan) -> bool:
        if present.version >= plan.round.rounds or (self._last_task is not None and present <= self._last_task):
            return False
        if self._tasked is not None and present < self._tasked:
            return False
        return plan.round.cohort_size is None or self._tasked == present

    def _on_trained(self, event: TrainingFinished | TrainingFailed) -> Iterator[WorkerEffect]:
        assert self._log.chain is not None
        if isinstance(event, TrainingFailed):
            yield from self._fail(event.reason)
            return
        if event.task.version != self._log.chain.version:
            # The log was read further while the result was on its way.
            self._to_idle()
            return
        problem = _problem(event, self._log.plan)
        if problem:
            yield from self._fail(problem)
            return
        meta = UpdateMeta(
            task=event.task,
            trained_head=self._log.chain.version_head,
            num_examples=event.num_examples,
            metrics=event.metrics,
        )
        self.phase = Phase.SAVING
        self._saving = (event.values, meta)
        yield SaveUpdate(event.values, meta)

    def _fail(self, reason: str) -> Iterator[WorkerEffect]:
        self.phase, self._reason = Phase.FAILED, reason
        yield note("training_failed", "error", client=self._seat.client, reason=reason)

    # ── offer and group ──────────────────────────────────────────────────────────────────────────────────────────────

    def _make_offer(self, now: float) -> Iterator[WorkerEffect]:
        chain = self._log.chain
        assert chain is not None
        if self.phase not in (Phase.SAVING, Phase.OFFERING) or self._unspent is None:
            return
        if _has_passed(self._unspent.meta, chain):
            return
        offer = Offer(
            attempt=chain.attempt,
            trained_version=self._unspent.meta.task.version,
            trained_head=self._unspent.meta.trained_head,
            counter=self._counter,
            nonce=self._nonce(),
            worker=self._seat.worker,
        )
        self._offer = Publish(self._names.up, self._names.offer_key(self._seat.site), self._seat.seal(offer))
        self._offer_attempt = chain.attempt
        self._offer_due = now + OFFER_REPEAT_S
        # A task is answered once: after a void draw this offer answers the new attempt.
        self._last_task = TaskId(chain.version, chain.attempt)
        self._signs.heard(now)
        self.phase = Phase.OFFERED
        yield self._offer

    def _on_roster(self, roster: Roster) -> Iterator[WorkerEffect]:
        if self._bound is not None and roster.draw == self._bound.draw:
            if roster.group != self._bound.group:
                yield self._refused(RefusalReason.NOT_ALLOWED, "another roster after the one that was answered")
            elif self.phase is Phase.IN_GROUP:
                yield from self._send_words(roster.stage, self._bound)
            return
        chain = self._log.chain
        if chain is None or chain.draw is None or chain.draw.entry != roster.draw:
            # Rosters leave together with the draw's entry, and may be faster than it.
            self._held_roster = roster
            return
        try:
            open_offer = digest_of(self._offer.frame) if self.phase is Phase.OFFERED and self._offer else None
            check_roster(roster, chain, self._seat.client, open_offer)
        except RemoteProtocolError as error:
            yield self._refused(error.reason, error.detail)
            return
        yield from self._spend(roster)

    def _refused(self, reason: RefusalReason, detail: str) -> WorkerEffect:
        return note("refused", "warning", sender=self._seat.client, reason=reason, detail=detail)

    def _spend(self, roster: Roster) -> Iterator[WorkerEffect]:
        update, plan = self._unspent, self._log.plan
        assert update is not None
        assert plan is not None
        update = replace(update, values=self._feedback.total(update.values, plan))
        try:
            self._bound, prepared = make_words(roster, self._log, update, self._seat.seal, self._rounding, self._encode)
        except WorkloadError as error:
            self._unspent, self._offer = None, None
            yield DropUpdate()
            yield from self._fail(str(error))
            return
        if update.meta.num_examples > plan.weight_records_max:
            yield note("weight_capped", "warning", client=self._seat.client)
        yield from self._tell(prepared)
        self._stage = roster.stage
        self.phase = Phase.SPENDING
        self._feedback.next = prepared.residual
        yield SpendUpdate(update.update_id, prepared.residual)

    def _tell(self, prepared: PreparedUpdate) -> Iterator[WorkerEffect]:
        """What was cut on the way out is never silent."""
        client = self._seat.client
        if prepared.clipped:
            yield note("update_clipped", "debug", client=client, norm=prepared.norm)
        if prepared.clamped:
            yield note("metrics_clamped", "warning", client=client, metrics=prepared.clamped)

    def _on_spent(self, now: float) -> Iterator[WorkerEffect]:
        if self.phase is not Phase.SPENDING:
            return
        self.phase, self._unspent, self._offer = Phase.IN_GROUP, None, None
        self._feedback.has_left()
        self._signs.heard(now)
        if self._bound is not None:
            yield from self._send_words(self._stage, self._bound)

    def _send_words(self, stage: str, bound: Bound) -> Iterator[WorkerEffect]:
        key = self._names.reply_key(stage, self._seat.site)
        for frame in bound.frames:
            yield Publish(self._names.up, key, frame, persistent=False)

    def _to_idle(self) -> None:
        self.phase, self._offer = Phase.IDLE, None


def _has_passed(update: UpdateMeta, chain: ChainState) -> bool:
    """Whether no draw will take this update any more. A log that is still being read may not have reached it yet."""
    return chain.version >= update.task.version and chain.version_head != update.trained_head


def _problem(outcome: TrainingFinished, plan: Plan | None) -> str:
    """Why an update can never be sent, empty if it can: found out here, it keeps no group waiting."""
    assert plan is not None
    if not math.isfinite(l2_norm(outcome.values)):
        return "the update is not finite; a smaller learning rate or cleaner data would help"
    missing = [name for name in plan.metric_bounds if not math.isfinite(outcome.metrics.get(name, math.nan))]
    return f"no finite number for the metrics {', '.join(missing)}, which the plan asks for" if missing else ""
