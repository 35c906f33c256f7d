"""What stands in a model log, entry by entry, and what does the chain make of it?

Every message is verified and read as every worker reads it, by `LogReader`; nothing is taken on trust. An entry is one
record: the pieces of its body, which stand before it, are counted into its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from coordinator.scheduler.attempt import VOID_DRAWS_ALARM
from deploy.inspect.draws import DrawnOffers
from shared.errors import RefusalReason, RemoteProtocolError
from shared.membership import Membership
from shared.modellog.reader import LogReader, Marked, Skipped
from shared.transport.port import Delivery
from shared.wire.framing import Opened, Opener, pack_batches, split_batch
from shared.wire.log_messages import ChangeEntry, DrawEntry, Entry, Piece, RunEntry, SnapshotEntry, VoidEntry
from shared.wire.messages import Message

Outcome = Literal["accepted", "skipped", "mark"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One entry, or one message that is none.

    `kind` is empty where nothing verified says what it is. `groups` is how many were drawn, or counted in a change.
    `size` is in bytes of the log. `draw` says whether one could be recomputed from its offers. `alarming`: no honest
    coordinator leaves this there.
    """

    offset: int
    outcome: Outcome
    kind: str = ""
    version: int | None = None
    term: int | None = None
    groups: int | None = None
    digest: str = ""
    size: int = 0
    reason: str = ""
    detail: str = ""
    draw: str = ""
    alarming: bool = False

    def as_json(self) -> dict[str, Any]:
        """The fields that have a value."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "") and value is not False}


@dataclass(slots=True)
class LogSummary:
    """What all records together came to. `void_draws` counts them by the version they left as it was."""

    accepted: int = 0
    size: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    alarming: int = 0
    void_draws: Counter[int] = field(default_factory=Counter)
    draws: Counter[str] = field(default_factory=Counter)

    @property
    def often_void(self) -> list[int]:
        """The versions with so many void draws that it is an alarm: each costs clients an update, or shows sums."""
        return sorted(version for version, count in self.void_draws.items() if count >= VOID_DRAWS_ALARM)

    def add(self, record: LogRecord) -> None:
        """Count one record."""
        self.size += record.size
        self.accepted += record.outcome == "accepted"
        self.alarming += record.alarming
        if record.draw:
            self.draws[record.draw] += 1
        if record.outcome == "skipped":
            self.skipped[record.reason] += 1
        elif record.kind == "void" and record.version is not None:
            self.void_draws[record.version] += 1


class LogInspection:
    """Reads a log once, from its oldest kept entry on; `drawn` is what the journal says of its draws."""

    def __init__(self, opener: Opener, members: Membership, drawn: DrawnOffers | None = None) -> None:
        self.reader = LogReader(opener, members)
        self._drawn = drawn or DrawnOffers(opener)
        self.summary = LogSummary()
        self._opener = opener
        self._pieces_size = 0

    def records(self, deliveries: Iterable[Delivery]) -> Iterator[LogRecord]:
        """The records of the stream's messages, in their order.

        Raises:
            PlanError: the log belongs to a plan that this version cannot read.
        """
        for delivery in deliveries:
            assert delivery.offset is not None
            for record in self._message(delivery.offset, delivery.body):
                self.summary.add(record)
                yield record

    def outlook(self) -> dict[str, Any]:
        """Where the chain stands, and the counts; hashes in full."""
        chain, summary = self.reader.chain, self.summary
        counts = {
            "accepted": summary.accepted,
            "skipped": dict(summary.skipped),
            "alarming": summary.alarming,
            "void_draws": {str(version): count for version, count in summary.void_draws.items()},
            "often_void": summary.often_void,
            "draws": dict(summary.draws),
            "bytes": summary.size,
        }
        if chain is None:
            return {"head": None, **counts}
        return {
            "head": chain.head.hex(),
            "version": chain.version,
            "term": chain.term,
            "attempt": chain.attempt,
            "run": chain.run.value,
            "open_draw": chain.draw.entry.hex() if chain.draw else None,
            "weights_sha256": chain.weights_sha256.hex(),
            "snapshot_offset": self.reader.snapshot_offset,
            "plan_digest": self.reader.plan_digest.hex(),
            "directory_number": chain.directory_number,
            "directory_digest": self.reader.directory_digest.hex(),
            **counts,
        }

    def _message(self, offset: int, body: bytes) -> Iterator[LogRecord]:
        try:
            frames = split_batch(body)
        except RemoteProtocolError as error:
            yield _unread(offset, len(body), error)
            return
        for frame in frames:
            try:
                opened = self._opener.open(frame)
            except RemoteProtocolError as error:
                yield _unread(offset, len(frame), error)
                continue
            record = self._frame(offset, opened)
            if record is not None:
                yield record

    def _frame(self, offset: int, opened: Opened) -> LogRecord | None:
        began = self.reader.chain is not None
        # One frame at a time, so that each event belongs to its frame; the opener's cache has the signature.
        events = [event for body in pack_batches([opened.frame]) for event in self.reader.feed(offset, body)]
        if isinstance(opened.message, Piece):
            self._pieces_size += len(opened.frame)
            return None
        size, self._pieces_size = self._pieces_size + len(opened.frame), 0
        fields = {"offset": offset, "size": size, "digest": opened.digest.hex(), **_describe(opened.message)}
        match events:
            case [Marked()]:
                return LogRecord(outcome="mark", **fields)
            case [Skipped(reason=reason, detail=detail)]:
                alarming = not _is_ordinary(reason, began=began)
                return LogRecord(outcome="skipped", reason=reason.value, detail=detail, alarming=alarming, **fields)
            case _:
                if isinstance(opened.message, VoidEntry) and self.reader.chain is not None:
                    fields["version"] = self.reader.chain.version
                if isinstance(opened.message, DrawEntry):
                    fields["draw"] = self._check(opened.digest, opened.message)
                return LogRecord(outcome="accepted", alarming=fields.get("draw") == "differs", **fields)

    def _check(self, digest: bytes, draw: DrawEntry) -> str:
        chain, plan = self.reader.chain, self.reader.plan
        assert chain is not None
        assert plan is not None
        return self._drawn.check(digest, draw, chain.version_head, plan.group_size)


def _describe(message: Message) -> dict[str, Any]:
    kind = message.kind.name.lower()
    match message:
        case DrawEntry(term=term, version=version, groups=groups):
            return {"kind": kind, "term": term, "version": version, "groups": groups}
        case ChangeEntry(term=term, version=version, groups=counted):
            return {"kind": kind, "term": term, "version": version, "groups": len(counted)}
        case SnapshotEntry(term=term, version=version):
            return {"kind": kind, "term": term, "version": version}
        case RunEntry(term=term, version=version, run=run):
            return {"kind": f"{kind} {run}", "term": term, "version": version}
        case Entry(term=term):
            return {"kind": kind, "term": term}
        case _:
            return {"kind": kind}


def _is_ordinary(reason: RefusalReason, *, began: bool) -> bool:
    """Whether an honest coordinator's entry may be skipped for this.

    Repeats and entries of a replaced coordinator have another parent. The pieces of the first snapshot may have gone
    with the oldest segment of the stream.
    """
    return reason is RefusalReason.WRONG_PARENT or (reason is RefusalReason.WRONG_SIZE and not began)


def _unread(offset: int, size: int, error: RemoteProtocolError) -> LogRecord:
    return LogRecord(
        offset=offset, outcome="skipped", size=size, reason=error.reason.value, detail=error.detail, alarming=True
    )
