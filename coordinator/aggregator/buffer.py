"""The aggregator: buffers the group sums of a draw, and turns them into the next version or a void (sans-I/O).

    state      event                                         next       what is done
    ─────────  ────────────────────────────────────────────  ─────────  ─────────────────────────────────────────
    idle       DrawMade                                      buffering  a buffer for its groups
    buffering  GroupSummed                                   buffering  gates; kept, or rejected and counted
    buffering  GroupGivenUp                                  buffering  counted
    buffering  all groups ended, or deadline and quorum;     appended   server step, change entry
               own draw entry accepted
    buffering  all groups ended or deadline, no quorum       appended   void entry
    appended   GroupSummed                                   appended   dropped: the step was taken without it
    appended   own entry accepted                            idle       buffers dropped; a snapshot, if one is due
    any        RateLowered                                   -          the next step's learning rate
    idle       TookOffice                                    idle       what the journal keeps is taken over

A sum beats a giving up, whichever came first: a stage that was replaced may give up what its successor sums. A second
sum of a group is dropped; one that differs raises an alarm, since no two can be opened.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from coordinator.aggregator.gates import pass_gates
from coordinator.aggregator.mixing import nnm_trimmed_mean
from coordinator.aggregator.robust import coordinate_median, trimmed_mean
from coordinator.aggregator.server_step import ServerOptimizer, adapt_clipping_norm
from coordinator.aggregator.steering import scheduled_rate
from coordinator.aggregator.weighted_mean import MeanAccumulator
from coordinator.events import (
    CoordinatorEffect,
    DrawMade,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupSummed,
    RateLowered,
    StepTaken,
    Tell,
    Tick,
    TookOffice,
)
from coordinator.log_writer import LogWriter
from shared.codec.flatten import FloatVector
from shared.codec.positions import decode_positions
from shared.codec.quantize import SlotSums, SumFormat, open_mean, open_slots, spread
from shared.codec.validation import is_validation_slot, read_spreads
from shared.effects import note
from shared.errors import RemoteProtocolError, StateError
from shared.modellog.chain import GENESIS, ChainState
from shared.modellog.listed import encode_listed
from shared.modellog.reader import weights_digest
from shared.plan import Plan
from shared.wire.log_messages import ChangeEntry, SnapshotEntry, VoidEntry


@dataclass(slots=True)
class DrawBuffer:
    """What has come in for one draw. `means` stays empty under the rule `mean`, whose sums are added as they come.

    `closing`: the entry that closes the draw is on its way.
    """

    draw: DrawMade
    deadline: float
    clipping_norm: float
    means: dict[int, FloatVector] = field(default_factory=dict)
    slots: dict[int, SlotSums] = field(default_factory=dict)
    clients: int = 0
    rejected: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    digests: dict[int, bytes] = field(default_factory=dict)
    closing: bool = False

    def ended(self, group: int) -> bool:
        """Whether this group has already had its say."""
        return self.summed(group) or group in self.given_up

    def summed(self, group: int) -> bool:
        """Whether a sum of this group has come, good or bad."""
        return group in self.digests

    @property
    def complete(self) -> bool:
        """Whether every group of the draw has ended."""
        return len(self.slots) + len(self.rejected) + len(self.given_up) == self.draw.groups


class Aggregator:
    """Makes one step, or none, of every draw."""

    def __init__(self, plan: Plan, writer: LogWriter) -> None:
        """
        Args:
            plan: the federation's plan.
            writer: the coordinator's access to the log.

        Raises:
            PlanError: the server optimizer does not exist or refuses its options.
        """
        self._plan = plan
        self._writer = writer
        self._log = writer.log
        choice = plan.aggregation.server_optimizer
        self._optimizer = ServerOptimizer(choice.name, choice.options, plan.dimension)
        self.moves_all = self._optimizer.touches_all
        """Whether a step moves all coordinates, and leaves a state behind that the next one needs."""
        self._buffer: DrawBuffer | None = None
        self._accumulator: MeanAccumulator | None = None
        self._changed_bytes = 0
        self._plateau_factor = 1.0

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match event:
            case TookOffice():
                self._recall(event)
                return ()
            case DrawMade():
                self._buffer = self._open(event, now)
                return ()
            case GroupSummed():
                effects = self._on_sum(event)
            case GroupGivenUp():
                effects = self._on_given_up(event)
            case EntryAccepted():
                effects = self._on_entry(event)
            case RateLowered(factor):
                self._plateau_factor = factor
                return ()
            case Tick():
                effects = iter(())
            case _:
                return ()
        return (*effects, *self._maybe_step(now))

    @property
    def changed_bytes(self) -> int:
        """What change entries have taken since the last snapshot."""
        return self._changed_bytes

    def optimizer_state(self) -> bytes:
        """What the next step needs besides the weights."""
        return self._optimizer.state_bytes()

    def _recall(self, event: TookOffice) -> None:
        assert self._log.chain is not None
        if event.kept is not None:
            self._changed_bytes = event.kept.changed_bytes
            self._plateau_factor = event.kept.run.steering.rate_factor
        if not self.moves_all or self._log.chain.version == 0:
            return
        if event.optimizer is None:
            raise StateError(
                f"the journal has no state of the server optimizer for version {self._log.chain.version}, and without "
                "it the next step would be another; begin a new federation with this model (comitia export, "
                "--initial-weights)"
            )
        self._optimizer.load_state(event.optimizer)

    def _open(self, draw: DrawMade, now: float) -> DrawBuffer:
        assert self._log.chain is not None
        plan = self._plan
        clipping_norm = self._log.chain.clipping_norm
        if plan.aggregation.rule == "mean":
            # Under `top_k` every client has positions of its own: its words are spread over all.
            spread_out = plan.codec.selection == "top_k"
            count = plan.dimension if spread_out else plan.coordinate_count
            # Noise carries values beyond the clipping norm; groups of any size have the same room for it at least.
            value_max = plan.sum_format(plan.group_size, clipping_norm).value_max
            if self._accumulator is None:
                self._accumulator = MeanAccumulator(count, len(draw.clients), value_max)
            self._accumulator.start(len(draw.clients), value_max)
        return DrawBuffer(draw, now + plan.round.sums_deadline_s, clipping_norm)

    def _on_sum(self, event: GroupSummed) -> Iterator[CoordinatorEffect]:
        buffer = self._buffer
        if buffer is None or event.draw != buffer.draw.entry:
            yield note("sum_dropped", "debug", group=event.group)
            return
        hashed = hashlib.sha256(event.words.data.cast("B"))
        hashed.update(event.positions)
        digest = hashed.digest()
        if buffer.summed(event.group):
            yield note("sum_dropped", "debug", group=event.group)
            if digest != buffer.digests[event.group]:
                yield note("sums_differ", "error", group=event.group, version=buffer.draw.version)
            return
        if buffer.closing:
            # A stage gave the group up, and its successor sums it: too late, the step was taken without it.
            yield note("sum_dropped", "debug", group=event.group)
            return
        buffer.digests[event.group] = digest
        buffer.given_up.discard(event.group)
        words, form = event.words, self._plan.sum_format(len(event.arrived) + len(event.dropped), buffer.clipping_norm)
        try:
            slots = self._open_slots(event, form)
            if self._plan.codec.selection == "top_k":
                positions = decode_positions(event.positions, self._plan.dimension, form.count)
                words, form = spread(words, form, positions, self._plan.dimension)
        except RemoteProtocolError as error:
            buffer.rejected.add(event.group)
            yield note("group_rejected", "warning", group=event.group, clients=event.arrived, reason=error.detail)
            return
        buffer.slots[event.group] = slots
        buffer.clients += len(event.arrived)
        if self._accumulator is not None:
            self._accumulator.add(words, form, slots.weight)
        else:
            buffer.means[event.group] = open_mean(words, form, slots.weight)

    def _on_given_up(self, event: GroupGivenUp) -> Iterator[CoordinatorEffect]:
        buffer = self._buffer
        if buffer is not None and event.draw == buffer.draw.entry and not buffer.ended(event.group):
            buffer.given_up.add(event.group)
            yield note("group_given_up", "warning", group=event.group, reason=event.reason, clients=list(event.silent))

    def _on_entry(self, event: EntryAccepted) -> Iterator[CoordinatorEffect]:
        match event.accepted.entry:
            case SnapshotEntry():
                self._changed_bytes = 0
            case ChangeEntry() | VoidEntry() as entry if self._buffer and entry.draw == self._buffer.draw.entry:
                self._buffer = None
                if isinstance(entry, ChangeEntry):
                    yield from self._maybe_snapshot(entry)
            case _:
                return

    def _maybe_step(self, now: float) -> Iterator[CoordinatorEffect]:
        buffer, chain = self._buffer, self._log.chain
        if buffer is None or chain is None or not self._writer.ready:
            return
        # The sums may be faster than our own read-back of the draw: the change must name it as its parent.
        if chain.draw is None or chain.draw.entry != buffer.draw.entry:
            return
        if not buffer.complete and now < buffer.deadline:
            return
        buffer.closing = True
        groups, needed = buffer.draw.groups, self._plan.quorum_of(buffer.draw.groups)
        sums, left = len(buffer.slots) + len(buffer.rejected), 2 * self._trim(buffer) + 1
        if sums < needed:
            yield from self._void(chain, f"{sums} of {groups} group sums, {needed} needed")
        elif len(buffer.slots) < left:
            yield from self._void(chain, f"{len(buffer.slots)} of {sums} group sums passed the gates, {left} needed")
        else:
            yield from self._step(buffer, chain)

    def _step(self, buffer: DrawBuffer, chain: ChainState) -> Iterator[CoordinatorEffect]:
        plan, aggregate = self._plan, self._aggregate(buffer)
        rate = self._plateau_factor * scheduled_rate(plan.steering, chain.version, plan.round.rounds)
        weights = self._optimizer.step(self._log.weights, self._log.coordinates, aggregate, plan.rescale, rate)
        where, body = self._change_body(weights)
        entry = ChangeEntry(
            parent=GENESIS,
            term=0,
            version=chain.version + 1,
            draw=buffer.draw.entry,
            groups=tuple(sorted(buffer.slots)),
            weights_sha256=weights_digest(weights),
            clipping_norm=self._next_clipping_norm(buffer, chain.clipping_norm),
            coordinates=where,
        )
        self._changed_bytes += body.nbytes
        metrics = _mean_metrics(buffer)
        yield self._writer.append(entry, body, weights)
        yield Tell(
            StepTaken(
                version=entry.version,
                clients_counted=buffer.clients,
                groups=buffer.draw.groups,
                groups_rejected=len(buffer.rejected),
                groups_given_up=len(buffer.given_up),
                clipping_norm=entry.clipping_norm,
                train_metrics={name: mean for name, mean in metrics.items() if not is_validation_slot(name)},
                validation=read_spreads(metrics),
            )
        )

    def _change_body(self, weights: FloatVector) -> tuple[Literal["round", "listed", "all"], npt.NDArray[Any]]:
        """What an entry has to hold for its readers to come to these weights: as little as can be."""
        if not self._optimizer.touches_all:
            if self._log.coordinates is not None:
                return "round", np.ascontiguousarray(weights[self._log.coordinates], dtype="<f4")
            listed = encode_listed(self._log.weights, weights) if self._plan.codec.selection == "top_k" else None
            if listed is not None:
                return "listed", np.frombuffer(listed, dtype=np.uint8)
        return "all", np.ascontiguousarray(weights, dtype="<f4")

    def _aggregate(self, buffer: DrawBuffer) -> FloatVector:
        if self._accumulator is not None:
            return self._accumulator.take()
        # One group, one vote, in the order of the groups.
        means = [buffer.means[group] for group in sorted(buffer.means)]
        match self._plan.aggregation.rule:
            case "nnm-trimmed-mean":
                return nnm_trimmed_mean(means, self._trim(buffer))
            case "trimmed-mean":
                return trimmed_mean(means, self._trim(buffer))
            case _:
                return coordinate_median(means)

    def _trim(self, buffer: DrawBuffer) -> int:
        """b: what the gates have rejected need not be trimmed any more."""
        return max(0, self._plan.aggregation.trim - len(buffer.rejected))

    def _open_slots(self, event: GroupSummed, form: SumFormat) -> SlotSums:
        if self._plan.aggregation.gates:
            noise = self._plan.record_noise
            deviation = 0.0 if noise is None else noise.deviation
            return pass_gates(event.words, form, len(event.arrived), self._plan.lightest_records_max, deviation)
        return open_slots(event.words, form, len(event.arrived))

    def _next_clipping_norm(self, buffer: DrawBuffer, clipping_norm: float) -> float:
        if not self._plan.codec.adaptive_clipping:
            return clipping_norm
        shares = [slots.unclipped_share for slots in buffer.slots.values()]
        return adapt_clipping_norm(clipping_norm, shares, self._trim(buffer))

    def _void(self, chain: ChainState, reason: str) -> Iterator[CoordinatorEffect]:
        assert chain.draw is not None
        yield self._writer.append(VoidEntry(parent=GENESIS, term=0, draw=chain.draw.entry, reason=reason))

    def _maybe_snapshot(self, change: ChangeEntry) -> Iterator[CoordinatorEffect]:
        due = change.version % self._plan.round.snapshot_every == 0
        # What tells of more rounds is a snapshot as well, and may be on its way.
        if self._writer.ready and (due or self._changed_bytes > self._log.weights.nbytes):
            yield self._writer.snapshot(self._log.weights)


def _mean_metrics(buffer: DrawBuffer) -> dict[str, float]:
    """Weighted means over the groups of what the clients measured, whatever the order they came in."""
    total = math.fsum(slots.weight for slots in buffer.slots.values())
    names = {name for slots in buffer.slots.values() for name in slots.metrics}
    return {
        name: math.fsum(slots.weight * slots.metrics[name] for slots in buffer.slots.values()) / total
        for name in sorted(names)
    }
