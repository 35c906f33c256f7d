"""One summing stage: takes group jobs, runs the sums of their groups, hands the results over (sans-I/O).

    event                      what is done
    ─────────────────────────  ───────────────────────────────────────────────────────────────────────────────────────
    DrawMade                   (in the coordinator's own process: of a draw that it makes, or goes on with) its jobs are
                               taken at once, those of others dropped
    JobArrived, draw open      once: its groups are queued; one that is delivered again is only settled with it
    JobArrived, draw unknown   held until its version has passed: the log may be behind, by draws and by versions
    JobArrived, draw closed    settled and dropped
    a queued group             opened, as long as all open groups together fit `OPEN_BYTES_MAX`; given up if it is none
    a member's reply           to the group whose transcript it names
    a group ended              the result is told; a job whose groups have all ended is settled
    draw closed                all forgotten; the jobs are settled

Members must not spend an update on a draw that is closed, or about to be: only groups of the draw that is open,
or that this process has just made, are summed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coordinator.events import (
    CoordinatorEffect,
    DrawMade,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupReplyArrived,
    JobArrived,
    Tell,
    Tick,
)
from coordinator.summing.group import GroupSetting, GroupSum
from shared.effects import Publish, Receipt, Settle, note
from shared.errors import RefusalReason, RemoteProtocolError
from shared.modellog.entries import Sealer
from shared.modellog.reader import Accepted, LogReader
from shared.plan import Plan
from shared.rounds import ground_of, transcript_of
from shared.transport.port import Outcome
from shared.wire.framing import Opener
from shared.wire.group_messages import Group, GroupJob, GroupMessage
from shared.wire.log_messages import ChangeEntry, DrawEntry, VoidEntry
from shared.wire.messages import Offer
from shared.wire.topology import Names

OPEN_BYTES_MAX = 192 << 20
"""Words of all open groups together; one group is always allowed."""

HELD_JOBS_MAX = 4096
"""Jobs whose draw the log has not shown yet."""


@dataclass(eq=False, slots=True)
class _Job:
    """A job that was taken, with those of its groups that have not ended. Jobs of one delivery share its receipt."""

    receipt: Receipt
    left: set[int]


class SummingStage:
    """The stage's part in the groups of one draw at a time."""

    def __init__(self, stage_id: str, plan: Plan, log: LogReader, opener: Opener, seal: Sealer) -> None:
        """
        Args:
            stage_id: names the queue that members answer to.
            plan: the federation's plan.
            log: this process's reader (read only here).
            opener: opens the offers of a group.
            seal: the coordinator's signature.
        """
        self._stage_id = stage_id
        self._plan = plan
        self._names = Names(plan.federation)
        self._log = log
        self._opener = opener
        self._seal = seal
        self._draw = b""
        self._made_here = False
        self._voided: set[bytes] = set()
        self._jobs: dict[_Job, None] = {}
        self._jobs_of: dict[int, list[_Job]] = {}
        self._ended: set[int] = set()
        self._held: deque[JobArrived] = deque()
        self._known: set[int] = set()
        self._queued: deque[tuple[GroupJob, Group]] = deque()
        self._open: dict[bytes, GroupSum] = {}
        self._sizes: dict[bytes, int] = {}
        self._open_bytes = 0
        self._nothing_due_until = -math.inf
        self._closed: set[bytes] = set()

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match event:
            case DrawMade(entry=draw):
                return tuple(self._begin(draw, now, made_here=True))
            case EntryAccepted(accepted) if isinstance(accepted.entry, DrawEntry):
                return tuple(self._begin(accepted.digest, now))
            case EntryAccepted(Accepted(entry=ChangeEntry())):
                self._voided.clear()
                return tuple(self._end())
            case EntryAccepted(Accepted(entry=VoidEntry(draw=draw))):
                self._voided.add(draw)
                return tuple(self._end())
            case JobArrived():
                return tuple(self._on_job(event, now))
            case GroupReplyArrived():
                return tuple(self._on_reply(event, now))
            case Tick():
                return tuple(self._on_tick(now))
            case _:
                return ()

    def forget(self) -> tuple[CoordinatorEffect, ...]:
        """This process was away for too long: its jobs go back, since another stage may have taken them by now."""
        draw, held = self._draw, self._held
        effects = tuple(self._end(Outcome.PUT_BACK))
        self._held = deque()
        # The draw is as open as the log says: a job of it that comes back is begun anew, not dropped.
        self._draw = draw
        return (*effects, *(Settle(event.receipt, Outcome.PUT_BACK) for event in held))

    # ── draws and jobs ───────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, draw: bytes, now: float, made_here: bool = False) -> Iterator[CoordinatorEffect]:
        if draw == self._draw:
            return
        yield from self._end()
        self._draw, self._made_here = draw, made_here
        held, self._held = self._held, deque()
        for event in held:
            yield from self._on_job(event, now)

    def _end(self, outcome: Outcome = Outcome.ACK) -> Iterator[CoordinatorEffect]:
        for job in self._jobs:
            yield Settle(job.receipt, outcome)
        self._jobs.clear()
        self._jobs_of.clear()
        self._known.clear()
        self._ended.clear()
        self._queued.clear()
        self._open.clear()
        self._sizes.clear()
        self._open_bytes = 0
        self._closed.clear()
        self._draw, self._made_here = b"", False

    def _on_job(self, event: JobArrived, now: float) -> Iterator[CoordinatorEffect]:
        job = event.job
        if job.draw == self._draw:
            yield from self._take_job(event.receipt, {group.index for group in job.members})
            self._queued.extend((job, group) for group in job.members if group.index not in self._known)
            self._known.update(group.index for group in job.members)
            yield from self._open_groups(now)
        elif self._may_come(job):
            self._held.append(event)
        else:
            yield Settle(event.receipt)
            yield note("job_dropped", "debug", version=job.version, reason="its draw is not open")

    def _may_come(self, job: GroupJob) -> bool:
        """Whether the log may still show the job's draw: jobs do not wait for their readers' logs."""
        chain = self._log.chain
        ahead = chain is None or job.version > chain.version
        if chain is not None and job.version == chain.version:
            # Another draw of this version may be open here that is void already; who makes the draws knows better.
            ahead = job.draw not in self._voided and not self._made_here
        return ahead and len(self._held) < HELD_JOBS_MAX

    def _open_groups(self, now: float) -> Iterator[CoordinatorEffect]:
        assert self._log.chain is not None
        while self._queued:
            job, group = self._queued[0]
            form = self._plan.sum_format(len(group.members), self._log.chain.clipping_norm)
            size = len(group.members) * (form.length * form.word_type.itemsize + self._plan.positions_bytes)
            if self._open and self._open_bytes + size > OPEN_BYTES_MAX:
                return
            self._queued.popleft()
            try:
                setting = self._setting(job, group)
            except RemoteProtocolError as error:
                yield note("refused", "error", sender="coordinator", reason=error.reason, what="group job")
                yield Tell(_not_a_group(job, group, error))
                yield from self._end_group(group.index)
                continue
            opened = GroupSum(setting)
            self._open[setting.transcript], self._sizes[setting.transcript] = opened, size
            self._open_bytes += size
            yield from opened.start(now)
            self._watch(opened)

    def _setting(self, job: GroupJob, group: Group) -> GroupSetting:
        assert self._log.chain is not None
        plan, members = self._plan, len(group.members)
        ground = ground_of(self._log, job.draw)
        return GroupSetting(
            draw=job.draw,
            version=job.version,
            groups=job.groups,
            group=group,
            stage=self._stage_id,
            form=plan.sum_format(members, self._log.chain.clipping_norm),
            transcript=transcript_of(ground, job.draw, job.version, group),
            threshold=plan.threshold(members),
            floor=plan.summed_floor(members) if plan.group_size > 1 else 1,
            # One of them at least does not side with the liars, of whom there may be one where nobody counts on any.
            believed=max(plan.max_colluders, 1) + 1,
            masking_keys=tuple(self._masking_keys(group)),
            step_s=plan.round.group_step_s,
            address=self._address(group),
            positions_bytes=plan.positions_bytes,
        )

    def _masking_keys(self, group: Group) -> Iterator[bytes]:
        for member in group.members if self._plan.group_size > 1 else ():
            offer = self._opener.open(member.offer).message
            if not isinstance(offer, Offer) or offer.keys is None:
                raise RemoteProtocolError(RefusalReason.MALFORMED, f"no offer with keys of {member.client}")
            yield offer.keys.masking

    def _address(self, group: Group) -> Callable[[int, GroupMessage], Publish]:
        names = self._names
        keys = [names.talk(member.site, member.worker) for member in group.members]

        def publish(place: int, message: GroupMessage) -> Publish:
            return Publish(names.down, keys[place], self._seal(message), persistent=False)

        return publish

    # ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_reply(self, event: GroupReplyArrived, now: float) -> Iterator[CoordinatorEffect]:
        transcript = event.message.transcript
        opened = self._open.get(transcript)
        if opened is None and transcript in self._closed:
            # A sum is opened as soon as enough have agreed and revealed; the others' answers come all the same.
            yield note("after_sum", "debug", client=event.client, what=type(event.message).__name__.lower())
            return
        if opened is None:
            what = f"{type(event.message).__name__.lower()} for a group that is not open"
            yield note("refused", "warning", sender=event.client, reason=RefusalReason.LATE, what=what)
            return
        yield from opened.handle(event, now)
        self._watch(opened)
        yield from self._close_if_ended(transcript, opened, now)

    def _watch(self, opened: GroupSum) -> None:
        """All groups are looked at when the first of them may be due, not at every tick."""
        self._nothing_due_until = min(self._nothing_due_until, opened.due)

    def _on_tick(self, now: float) -> Iterator[CoordinatorEffect]:
        if now < self._nothing_due_until:
            return
        for transcript, opened in list(self._open.items()):
            yield from opened.tick(now)
            yield from self._close_if_ended(transcript, opened, now)
        self._nothing_due_until = min((opened.due for opened in self._open.values()), default=math.inf)

    def _close_if_ended(self, transcript: bytes, opened: GroupSum, now: float) -> Iterator[CoordinatorEffect]:
        if opened.ended:
            del self._open[transcript]
            self._open_bytes -= self._sizes.pop(transcript)
            self._closed.add(transcript)
            yield from self._end_group(opened.index)
            yield from self._open_groups(now)

    def _take_job(self, receipt: Receipt, groups: set[int]) -> Iterator[CoordinatorEffect]:
        left = groups - self._ended
        if not left:
            yield Settle(receipt)
            return
        job = _Job(receipt, left)
        self._jobs[job] = None
        for group in left:
            self._jobs_of.setdefault(group, []).append(job)

    def _end_group(self, group: int) -> Iterator[CoordinatorEffect]:
        """Results leave before this: they are published, and confirmed, before a job is settled."""
        self._ended.add(group)
        for job in self._jobs_of.pop(group, ()):
            job.left.discard(group)
            if not job.left:
                del self._jobs[job]
                yield Settle(job.receipt)


def _not_a_group(job: GroupJob, group: Group, error: RemoteProtocolError) -> GroupGivenUp:
    return GroupGivenUp(
        draw=job.draw, group=group.index, reason=f"not a group: {error.detail}"[:500], silent=(), blamed=()
    )
