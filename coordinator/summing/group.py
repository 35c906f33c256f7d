"""One summing stage: opens the groups of its jobs, collects their members' words, hands over sums (sans-I/O).

With groups of one the secure steps are empty: a roster of one goes out, the words come back in clear, and are the sum.

    state of a group   event              next       what is done
    ────────────────   ────────────────   ────────   ─────────────────────────────────────────────
    -                  its job            queued     once: a job that is delivered again is only settled with it
    queued             room for it        open       roster to every member
    open               words (a piece)    open       kept; refused if it is not this group's
    open               words (the last)   ended      sum handed to the aggregator
    open               2 s of silence     open       roster again to the silent members
    open               group_step_s       ended      given up, its silent members are named
    any                draw closed        -          forgotten; the jobs are settled

Only groups of the draw that this session has made last are summed: the sums go to its own aggregator, and members
must not spend an update on a draw that is closed, or about to be, as one of a session before is.

A group's vectors take memory only while it is open, and only so many are open that they fit `OPEN_BYTES_MAX`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from coordinator.events import (
    CoordinatorEffect,
    DrawMade,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupSummed,
    JobArrived,
    Tell,
    Tick,
    WordsArrived,
)
from coordinator.summing.secure_sum import add_words
from shared.codec.quantize import SumFormat, Words
from shared.effects import Publish, Receipt, Settle, note
from shared.errors import RefusalReason
from shared.modellog.entries import Sealer
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.rounds import ground_of, transcript_of
from shared.wire import messages
from shared.wire.messages import PIECE_BYTES_MAX, ChangeEntry, Group, Roster, VoidEntry
from shared.wire.topology import Names

REPEAT_S = 2.0
"""A member that has not answered is sent the last message again after this time."""

OPEN_BYTES_MAX = 192 << 20
"""Words of all open groups together; one group is always allowed."""


@dataclass(slots=True)
class Collecting:
    """One member's words as they come in."""

    buffer: bytearray
    missing: set[int]


@dataclass(slots=True)
class OpenGroup:
    """A group whose members have been asked."""

    group: Group
    form: SumFormat
    transcript: bytes
    deadline: float
    repeat_at: float
    positions_bytes: int = 0
    collecting: dict[str, Collecting] = field(default_factory=dict)
    arrived: list[str] = field(default_factory=list)

    @property
    def silent(self) -> tuple[str, ...]:
        """Members whose words have not all arrived."""
        return tuple(m.client for m in self.group.members if m.client not in self.arrived)


class SummingStage:
    """The stage's part in the groups of one draw at a time."""

    def __init__(self, stage_id: str, plan: Plan, log: LogReader, seal: Sealer) -> None:
        self._stage_id = stage_id
        self._plan = plan
        self._names = Names(plan.federation)
        self._log = log
        self._seal = seal
        self._draw: DrawMade | None = None
        self._receipts: list[Receipt] = []
        self._known: set[int] = set()
        self._queued: deque[Group] = deque()
        self._open: dict[int, OpenGroup] = {}

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match event:
            case DrawMade():
                self._draw = event
                return ()
            case JobArrived():
                return tuple(self._on_job(event, now))
            case WordsArrived():
                return tuple(self._on_words(event, now))
            case EntryAccepted(accepted) if isinstance(accepted.entry, ChangeEntry | VoidEntry):
                return tuple(self._on_closed(accepted.entry.draw))
            case Tick():
                return tuple(self._on_tick(now))
            case _:
                return ()

    def _on_job(self, event: JobArrived, now: float) -> Iterator[CoordinatorEffect]:
        job = event.job
        if self._draw is None or job.draw != self._draw.entry:
            yield Settle(event.receipt)
            yield note("job_dropped", "debug", version=job.version, reason="its draw is not open")
            return
        self._receipts.append(event.receipt)
        self._queued.extend(group for group in job.members if group.index not in self._known)
        self._known.update(group.index for group in job.members)
        yield from self._open_groups(self._draw, now)

    def _open_groups(self, draw: DrawMade, now: float) -> Iterator[CoordinatorEffect]:
        if not self._queued:
            return
        assert self._log.chain is not None
        plan, chain = self._plan, self._log.chain
        ground = ground_of(self._log)
        while self._queued:
            members = self._queued[0].members
            form = plan.sum_format(len(members), chain.clipping_norm)
            size = len(members) * (form.length * form.word_type.itemsize + plan.positions_bytes)
            if self._open and (len(self._open) + 1) * size > OPEN_BYTES_MAX:
                return
            group = self._queued.popleft()
            transcript = transcript_of(ground, draw.entry, group.index, draw.version, members)
            step_s = plan.round.group_step_s
            opened = OpenGroup(group, form, transcript, now + step_s, now + REPEAT_S, plan.positions_bytes)
            self._open[group.index] = opened
            yield from self._ask(draw, opened)

    def _ask(self, draw: DrawMade, opened: OpenGroup) -> Iterator[CoordinatorEffect]:
        silent = opened.silent
        for member in opened.group.members:
            if member.client in silent:
                roster = Roster(
                    client=member.client,
                    draw=draw.entry,
                    version=draw.version,
                    group=opened.group,
                    groups=draw.groups,
                    stage=self._stage_id,
                )
                key = self._names.talk(member.site, member.worker)
                yield Publish(self._names.down, key, self._seal(roster), persistent=False)

    def _on_words(self, event: WordsArrived, now: float) -> Iterator[CoordinatorEffect]:
        draw, index = self._draw, event.words.group
        opened = self._open.get(index) if draw is not None and event.words.draw == draw.entry else None
        if draw is None or opened is None:
            yield _refused(event.client, RefusalReason.LATE, f"words for group {index}, which is not open")
            return
        refusal = _collect(opened, event.client, event.words)
        if refusal is RefusalReason.DUPLICATE:
            yield note("repeated", "debug", client=event.client, what="words")
            return
        if refusal is not None:
            yield _refused(event.client, refusal, f"words for group {index}")
            return
        # A member that is still sending is not silent.
        opened.repeat_at = now + REPEAT_S
        opened.deadline = max(opened.deadline, now + REPEAT_S)
        if not opened.silent:
            del self._open[index]
            yield Tell(GroupSummed(draw.entry, index, tuple(opened.arrived), *_sum(opened)))
            yield from self._open_groups(draw, now)

    def _on_tick(self, now: float) -> Iterator[CoordinatorEffect]:
        draw = self._draw
        if draw is None:
            return
        for index, opened in list(self._open.items()):
            if now >= opened.deadline:
                del self._open[index]
                reason = f"{len(opened.silent)} of {len(opened.group.members)} members silent"
                yield Tell(GroupGivenUp(draw.entry, index, reason, opened.silent))
            elif now >= opened.repeat_at:
                opened.repeat_at = now + REPEAT_S
                yield from self._ask(draw, opened)
        yield from self._open_groups(draw, now)

    def _on_closed(self, draw: bytes) -> Iterator[CoordinatorEffect]:
        if self._draw is None or draw != self._draw.entry:
            return
        for receipt in self._receipts:
            yield Settle(receipt)
        self._receipts = []
        self._known.clear()
        self._queued.clear()
        self._open.clear()
        self._draw = None


def _collect(opened: OpenGroup, client: str, words: messages.Words) -> RefusalReason | None:
    """Take one piece in; returns why not."""
    if client not in {member.client for member in opened.group.members}:
        return RefusalReason.NOT_ALLOWED
    if words.transcript != opened.transcript:
        return RefusalReason.WRONG_PARENT
    size = opened.form.length * opened.form.word_type.itemsize + opened.positions_bytes
    parts = -(-size // PIECE_BYTES_MAX)
    start = words.part * PIECE_BYTES_MAX
    if words.parts != parts or words.part >= parts or len(words.body) != min(PIECE_BYTES_MAX, size - start):
        return RefusalReason.WRONG_SIZE
    coming = opened.collecting.get(client)
    if coming is None:
        coming = opened.collecting[client] = Collecting(bytearray(size), set(range(parts)))
    if words.part not in coming.missing:
        return RefusalReason.DUPLICATE
    coming.missing.discard(words.part)
    coming.buffer[start : start + len(words.body)] = words.body
    if not coming.missing:
        opened.arrived.append(client)
    return None


def _sum(opened: OpenGroup) -> tuple[Words, bytes]:
    """The members' words added mod 2**b, and the positions behind them: only a group of one has any."""
    buffers, length = [coming.buffer for coming in opened.collecting.values()], opened.form.length
    vectors = [np.frombuffer(buffer, dtype=opened.form.word_type, count=length) for buffer in buffers]
    total = vectors[0]
    for vector in vectors[1:]:
        add_words(total, vector)
    return total, bytes(memoryview(buffers[0])[total.nbytes :])


def _refused(client: str, reason: RefusalReason, what: str) -> CoordinatorEffect:
    return note("refused", "warning", sender=client, reason=reason, what=what)
