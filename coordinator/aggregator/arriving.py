"""Sums that other processes have made: their pieces come together here, and go to the aggregator (sans-I/O).

    event                     what is done
    ────────────────────────  ─────────────────────────────────────────────────────────────────────────────────────
    DrawMade                  its sums are taken from now on
    SumArrived of that draw   a piece is kept; the last one makes a `GroupSummed`, and none is kept any more; a piece
                              that comes again is dropped. A `GivenUp` is handed on at once
    SumArrived of another     settled and dropped
    draw closed               all forgotten; what arrived is settled

A stage that was replaced may still be at work, so the pieces of two stages may come mixed: each is collected by itself,
for at most `STAGES_PER_GROUP` of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from coordinator.events import (
    CoordinatorEffect,
    DrawMade,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupSummed,
    SumArrived,
    Tell,
)
from shared.effects import Receipt, Settle, note
from shared.errors import RefusalReason, RemoteProtocolError
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.wire.group_messages import GivenUp, Sum
from shared.wire.log_messages import ChangeEntry, VoidEntry
from shared.wire.pieces import PieceCollector, check_piece

STAGES_PER_GROUP = 4
"""One stage, those that took the group over from it, and no more."""


class SumCollector:
    """The sums of one draw at a time, as they come in from other processes."""

    def __init__(self, plan: Plan, log: LogReader) -> None:
        self._plan = plan
        self._log = log
        self._draw: DrawMade | None = None
        self._receipts: list[Receipt] = []
        self._collecting: dict[int, dict[str, PieceCollector | None]] = {}

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match event:
            case DrawMade():
                self._draw = event
            case SumArrived():
                return tuple(self._on_sum(event))
            case EntryAccepted(accepted) if isinstance(accepted.entry, ChangeEntry | VoidEntry):
                return tuple(self._end())
            case _:
                pass
        return ()

    def _on_sum(self, event: SumArrived) -> Iterator[CoordinatorEffect]:
        message, draw = event.message, self._draw
        if draw is None or message.draw != draw.entry or message.group >= draw.groups:
            yield Settle(event.receipt)
            yield note("sum_dropped", "debug", group=message.group, reason="its draw is not open")
            return
        # Settled when the entry that names it has been read back: until then the broker is its memory.
        self._receipts.append(event.receipt)
        if isinstance(message, GivenUp):
            yield Tell(GroupGivenUp(message.draw, message.group, message.reason, message.unheard, message.blamed))
            return
        try:
            complete = self._collect(message)
        except RemoteProtocolError as error:
            if error.reason is RefusalReason.DUPLICATE:
                # What was not confirmed before a connection broke is published again.
                yield note("sum_dropped", "debug", group=message.group, reason=error.detail)
                return
            yield note("refused", "warning", sender=message.stage, reason=error.reason, detail=error.detail, what="sum")
            return
        if complete is not None:
            words, positions = complete
            yield Tell(
                GroupSummed(
                    draw=message.draw,
                    group=message.group,
                    arrived=message.arrived,
                    dropped=message.dropped,
                    unheard=message.unheard,
                    blamed=message.blamed,
                    words=words,
                    positions=positions,
                )
            )

    def _collect(self, message: Sum) -> tuple[np.ndarray, bytes] | None:
        """Take a piece in; returns the words, and the positions behind them, when it was the last one."""
        assert self._log.chain is not None
        members = len(message.arrived) + len(message.dropped)
        if not message.arrived or not self._plan.group_size <= members <= self._plan.members_max:
            raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"a sum of a group of {members}")
        form = self._plan.sum_format(members, self._log.chain.clipping_norm)
        size = form.length * form.word_type.itemsize + self._plan.positions_bytes
        # Before anything is kept: memory is taken for a vector that can be one.
        check_piece(size, message.part, message.parts, len(message.body))
        stages = self._collecting.setdefault(message.group, {})
        if message.stage not in stages:
            if len(stages) == STAGES_PER_GROUP:
                raise RemoteProtocolError(RefusalReason.OVERFLOW, f"a sum of group {message.group} by one more stage")
            stages[message.stage] = PieceCollector(size)
        pieces = stages[message.stage]
        if pieces is None:
            raise RemoteProtocolError(RefusalReason.DUPLICATE, f"a piece of a sum by {message.stage} again")
        pieces.put(message.part, message.parts, message.body)
        if not pieces.complete:
            return None
        # The aggregator may add it up and let it go: what is complete is kept nowhere else.
        stages[message.stage] = None
        words: np.ndarray = np.frombuffer(pieces.buffer, dtype=form.word_type, count=form.length)
        return words, bytes(pieces.buffer[words.nbytes :])

    def _end(self) -> Iterator[CoordinatorEffect]:
        for receipt in self._receipts:
            yield Settle(receipt)
        self._receipts, self._draw = [], None
        self._collecting.clear()
