"""One client's life: idle, training, offering, in a group (sans-I/O).

    state      event                           next       what is done
    ─────────  ──────────────────────────────  ─────────  ────────────────────────────────────────────────────
    waiting    task                            idle       the log is followed from the snapshot that it names
    idle       a newer task (log or queue)     training   training starts
    idle       unspent update for this head    offering   counter raised, then offered again
    training   finished                        saving     update to the disk
    training   failed                          failed     told the coordinator; no task until the next version
    training   the version passed              idle       run given up
    saving     saved                           offered    offer
    offered    roster                          spending   checked; words made; spent mark to the disk
    offered    void draw                       offering   counter raised, then offered again
    offered    the version passed              idle       update dropped, unspent
    spending   spent                           in_group   words leave
    in_group   the same roster                 in_group   the same words leave again
    in_group   version or attempt moved        idle       words forgotten
    offered    drain                           offered    the group may be forming: leave after it
    else       drain                           drained    an unspent update stays on the disk

A task is (version, attempt) of the log's head; it is trained once. Everything that a group's words depend on
(coordinates, clipping norm, scale, threshold) is computed here from plan and log; no message decides it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from shared.codec.quantize import UniformSource
from shared.crypto import merkle
from shared.crypto.draw import group_leaf
from shared.effects import Publish, Settle, note
from shared.errors import RefusalReason, RemoteProtocolError, WorkloadError
from shared.modellog.chain import ChainState
from shared.modellog.entries import cut
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.rounds import ground_of, transcript_of
from shared.wire.framing import digest_of
from shared.wire.messages import PIECE_BYTES_MAX, ClientState, Message, Offer, Roster, Status, Words
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
from worker.stored_update import StoredUpdate, TaskId, UpdateMeta
from worker.update import PreparedUpdate, prepare_words

STATUS_INTERVAL_S = 8.0
"""Until the plan is known."""

STATUS_DEBOUNCE_S = 0.1
"""A state that lasts no longer than this is not worth a status."""

OFFER_REPEAT_S = 300.0


class Phase(StrEnum):
    """Where a client stands."""

    WAITING = "waiting"
    IDLE = "idle"
    TRAINING = "training"
    SAVING = "saving"
    OFFERING = "offering"
    OFFERED = "offered"
    SPENDING = "spending"
    IN_GROUP = "in_group"
    FAILED = "failed"
    MISMATCH = "mismatch"
    DRAINED = "drained"


_STATUS_OF = {
    Phase.TRAINING: ClientState.TRAINING,
    Phase.SAVING: ClientState.TRAINING,
    Phase.OFFERING: ClientState.OFFERED,
    Phase.OFFERED: ClientState.OFFERED,
    Phase.SPENDING: ClientState.IN_GROUP,
    Phase.IN_GROUP: ClientState.IN_GROUP,
    Phase.FAILED: ClientState.TRAINING_FAILED,
    Phase.MISMATCH: ClientState.PLAN_MISMATCH,
    Phase.DRAINED: ClientState.DRAINING,
}


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
        directory_digest: bytes,
        *,
        rounding: UniformSource,
        nonce: Callable[[], bytes],
        sequence: Callable[[], int],
        counter: int,
        last_task: TaskId | None,
        unspent: StoredUpdate | None,
    ) -> None:
        """
        Args:
            seat: who speaks.
            names: the federation's addresses.
            log: the worker's reader (read only here).
            directory_digest: digest of the directory that this worker holds (32 bytes).
            rounding: randomness of stochastic rounding.
            nonce: 16 fresh random bytes per call.
            sequence: numbers that rise with every call, also over restarts.
            counter, last_task, unspent: what the state directory holds.
        """
        self._seat = seat
        self._names = names
        self._log = log
        self._directory_digest = directory_digest
        self._rounding = rounding
        self._nonce = nonce
        self._sequence = sequence
        self._counter = counter
        self._last_task = last_task
        self._unspent = unspent
        self.phase = Phase.WAITING
        self._saving: tuple[np.ndarray, UpdateMeta] | None = None
        self._tasked: TaskId | None = None
        self._offer: Publish | None = None
        self._offer_attempt = 0
        self._held_roster: Roster | None = None
        self._words: tuple[bytes, tuple[Publish, ...]] | None = None
        self._reason = ""
        self._draining = False
        self._announce_at = math.inf
        self._heartbeat_at = 0.0
        self._offer_due = 0.0

    def handle(self, event: Event, now: float) -> tuple[WorkerEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        before = self.phase
        effects = list(self._dispatch(event, now))
        effects += self._advance()
        if self.phase is not before:
            self._announce_at = _announcement(self.phase, now)
        if now >= min(self._announce_at, self._heartbeat_at):
            effects += self._say(now)
        return tuple(effects)

    def next_wakeup(self) -> float:
        """When this machine wants its next tick (seconds, monotonic)."""
        return min(self._announce_at, self._heartbeat_at)

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
            case CounterRaised(counter) if self.phase is Phase.OFFERING:
                self._counter = counter
                yield from self._make_offer(now)
            case RosterArrived(roster):
                yield from self._on_roster(roster)
            case UpdateSpent(counter) if self.phase is Phase.SPENDING:
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
        if self._draining and self.phase not in (Phase.SAVING, Phase.OFFERING, Phase.OFFERED, Phase.SPENDING):
            if self.phase is Phase.TRAINING:
                yield StopTraining()
            self.phase = Phase.DRAINED
        if chain is None or plan is None or self.phase in (Phase.WAITING, Phase.MISMATCH, Phase.DRAINED):
            return
        if self._held_roster is not None and chain.draw is not None:
            roster, self._held_roster = self._held_roster, None
            if roster.draw == chain.draw.entry:
                yield from self._on_roster(roster)
        if self.phase is not Phase.IDLE or chain.draw is not None:
            return
        present = TaskId(chain.version, chain.attempt)
        if self._unspent is not None:
            self.phase = Phase.OFFERING
            yield RaiseCounter()
        elif self._may_train(present, plan):
            self.phase, self._last_task = Phase.TRAINING, present
            yield Train(present, self._log.weights)

    def _leave_the_past(self, chain: ChainState) -> Iterator[WorkerEffect]:
        present = TaskId(chain.version, chain.attempt)
        if self._words is not None and self._words[0] != (chain.draw.entry if chain.draw else b""):
            self._words = None
        if self._unspent is not None and self._unspent.meta.trained_head != chain.version_head:
            self._unspent = None
            yield DropUpdate()
            yield note("late", client=self._seat.client, version=chain.version)
            if self.phase in (Phase.OFFERING, Phase.OFFERED, Phase.SPENDING):
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
        assert self._unspent is not None
        assert self._log.chain is not None
        offer = Offer(
            attempt=self._log.chain.attempt,
            trained_version=self._unspent.meta.task.version,
            trained_head=self._unspent.meta.trained_head,
            counter=self._counter,
            nonce=self._nonce(),
            worker=self._seat.worker,
        )
        self._offer = Publish(self._names.up, self._names.offer_key(self._seat.site), self._seat.seal(offer))
        self._offer_attempt = self._log.chain.attempt
        self._offer_due = now + OFFER_REPEAT_S
        # A task is answered once: after a void draw this offer answers the new attempt.
        self._last_task = TaskId(self._log.chain.version, self._log.chain.attempt)
        self._put_heartbeat_off(now)
        self.phase = Phase.OFFERED
        yield self._offer

    def _on_roster(self, roster: Roster) -> Iterator[WorkerEffect]:
        if self._words is not None and roster.draw == self._words[0]:
            if self.phase is Phase.IN_GROUP:
                yield from self._words[1]
            return
        chain = self._log.chain
        if chain is None or chain.draw is None or chain.draw.entry != roster.draw:
            # Rosters leave together with the draw's entry, and may be faster than it.
            self._held_roster = roster
            return
        try:
            self._check_roster(roster, chain)
        except RemoteProtocolError as error:
            yield note("refused", "warning", sender=self._seat.client, reason=error.reason, detail=error.detail)
            return
        yield from self._spend(roster, chain)

    def _check_roster(self, roster: Roster, chain: ChainState) -> None:
        draw, group = chain.draw, roster.group
        assert draw is not None
        if roster.version != chain.version or roster.groups != draw.groups:
            raise RemoteProtocolError(RefusalReason.WRONG_PARENT, "the roster contradicts its draw")
        if len(group.members) != 1:
            raise RemoteProtocolError(RefusalReason.POLICY, f"a group of {len(group.members)}: only 1 is supported")
        leaf = group_leaf(group.index, [(member.client, member.offer) for member in group.members])
        merkle.verify_path(draw.root, leaf, group.index, draw.groups, group.path)
        mine = [member for member in group.members if member.client == self._seat.client]
        if self.phase is not Phase.OFFERED or self._offer is None or self._unspent is None:
            raise RemoteProtocolError(RefusalReason.STALE, "no offer of this client is open")
        if len(mine) != 1 or mine[0].offer != digest_of(self._offer.frame):
            raise RemoteProtocolError(RefusalReason.STALE, "the roster names another offer of this client")

    def _spend(self, roster: Roster, chain: ChainState) -> Iterator[WorkerEffect]:
        update, plan = self._unspent, self._log.plan
        assert update is not None
        assert plan is not None
        members = roster.group.members
        transcript = transcript_of(
            ground_of(self._log, self._directory_digest), roster.draw, roster.group.index, chain.version, members
        )
        form = plan.sum_format(len(members), chain.clipping_norm)
        meta = update.meta
        weight = min(1.0, meta.num_examples / plan.weight_records_max)
        try:
            prepared = prepare_words(
                update.values, self._log.coordinates, form, weight=weight, metrics=meta.metrics, source=self._rounding
            )
        except WorkloadError as error:
            self._unspent, self._offer = None, None
            yield DropUpdate()
            yield from self._fail(str(error))
            return
        if meta.num_examples > plan.weight_records_max:
            yield note("weight_capped", "warning", client=self._seat.client)
        yield from self._tell(prepared)
        self._words = (roster.draw, tuple(self._seal_words(roster, transcript, prepared.words)))
        self.phase = Phase.SPENDING
        yield SpendUpdate(update.update_id)

    def _tell(self, prepared: PreparedUpdate) -> Iterator[WorkerEffect]:
        """What was cut on the way out is never silent."""
        client = self._seat.client
        if prepared.clipped:
            yield note("update_clipped", "debug", client=client, norm=prepared.norm)
        if prepared.clamped:
            yield note("metrics_clamped", "warning", client=client, metrics=prepared.clamped)

    def _seal_words(self, roster: Roster, transcript: bytes, words: np.ndarray) -> Iterator[Publish]:
        view = words.data.cast("B")
        parts = -(-view.nbytes // PIECE_BYTES_MAX)
        key = self._names.reply_key(roster.stage, self._seat.site)
        for part, piece in enumerate(cut(view)):
            message = Words(
                draw=roster.draw,
                group=roster.group.index,
                transcript=transcript,
                part=part,
                parts=parts,
                body=bytes(piece),
            )
            yield Publish(self._names.up, key, self._seat.seal(message), persistent=False)

    def _on_spent(self, now: float) -> Iterator[WorkerEffect]:
        self.phase, self._unspent, self._offer = Phase.IN_GROUP, None, None
        self._put_heartbeat_off(now)
        if self._words is not None:
            yield from self._words[1]

    # ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, now: float) -> Iterator[WorkerEffect]:
        self._announce_at = math.inf
        self._put_heartbeat_off(now)
        chain = self._log.chain
        status = Status(
            sequence=self._sequence(),
            counter=self._counter,
            state=_STATUS_OF.get(self.phase, ClientState.IDLE),
            version=chain.version if chain else 0,
            worker=self._seat.worker,
            log_position="following" if chain else "absent",
            reason=self._reason[:500] if self.phase in (Phase.FAILED, Phase.MISMATCH) else "",
        )
        yield Publish(self._names.up, self._names.offer_key(self._seat.site), self._seat.seal(status))

    def _put_heartbeat_off(self, now: float) -> None:
        plan = self._log.plan
        self._heartbeat_at = now + (plan.round.status_interval_s if plan else STATUS_INTERVAL_S)

    def _to_idle(self) -> None:
        self.phase, self._offer = Phase.IDLE, None


def _announcement(phase: Phase, now: float) -> float:
    """When a new phase wants a status of its own: offers and words announce themselves, short phases are not news."""
    if phase in (Phase.OFFERED, Phase.IN_GROUP):
        return math.inf
    return now if phase in (Phase.FAILED, Phase.MISMATCH, Phase.DRAINED) else now + STATUS_DEBOUNCE_S
