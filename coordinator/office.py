"""How a coordinator takes office: it reads the log to its end, makes its session the present term, reads the journal.

    state      event                       next       what is done
    ─────────  ──────────────────────────  ─────────  ─────────────────────────────────────────────────────────────
    reading    own mark, empty log         founding   first snapshot (term 1) with the initial weights
    reading    own mark, a chain           claiming   plan compared; term entry
    founding   own snapshot accepted       office     -
    claiming   own term accepted           recalling  a mark into the journal
    recalling  own mark in the journal     office     if the log's number of rounds is not ours and no draw is open, a
                                                      snapshot with ours
    office     own entry accepted          office     that snapshot, if it waits and no draw is open
    recalling  another's term accepted     -          fenced: this session is over
    office     another's term accepted     -          fenced

A mark is no part of the chain: it only shows where a stream ended when we came, which a stream does not tell. Records
go to the journal, and are confirmed, before their entries to the log; and behind our term no other session's entry is
accepted. So the record of every entry that counts stands before our mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from coordinator.log_writer import Fenced, LogWriter
from shared.effects import Effect, Publish, note
from shared.errors import PlanError
from shared.modellog.entries import Sealer
from shared.modellog.reader import Accepted, LogEvent, Marked, weights_digest
from shared.plan import Plan
from shared.wire.log_messages import Mark, SnapshotEntry, TermEntry
from shared.wire.topology import Names


class OfficeState(StrEnum):
    """How far this session has come."""

    READING = "reading"
    FOUNDING = "founding"
    CLAIMING = "claiming"
    RECALLING = "recalling"
    IN_OFFICE = "in_office"


@dataclass(frozen=True, slots=True)
class JournalRead:
    """A mark went by: all that stood in the journal when it was written has been read."""

    session: bytes


class Office:
    """The way of one session from reading the log to writing it."""

    def __init__(self, plan: Plan, writer: LogWriter, initial_weights: np.ndarray, seal: Sealer) -> None:
        """
        Args:
            plan: what this session was started with; a log that exists must hold the same.
            writer: access to the log.
            initial_weights: float32 (d,), for a federation that does not exist yet.
            seal: the coordinator's signature.
        """
        self._plan = plan
        self._names = Names(plan.federation)
        self._writer = writer
        self._initial_weights: np.ndarray | None = initial_weights
        self._seal = seal
        self._session = b""
        self._rounds_owed = False
        self.state = OfficeState.READING

    def start(self, session: bytes) -> Publish:
        """Begin: the mark to publish; `session` is 16 fresh random bytes."""
        self._session = session
        return self._mark(self._names.log)

    def _mark(self, stream: str) -> Publish:
        return Publish(self._names.down, stream, self._seal(Mark(session=self._session)))

    def handle(self, event: LogEvent | JournalRead) -> tuple[Effect, ...]:
        """The one door. The writer has observed the log's events before.

        Raises:
            Fenced: another session took over.
            PlanError: the log belongs to another plan.
        """
        match self.state, event:
            case OfficeState.READING, Marked(session=session) if session == self._session:
                return tuple(self._log_is_read())
            case OfficeState.FOUNDING, Accepted(entry=SnapshotEntry()) if self._writer.ready:
                return tuple(self._enter())
            case OfficeState.CLAIMING, Accepted(entry=TermEntry(session=session)) if session == self._session:
                self.state = OfficeState.RECALLING
                return (self._mark(self._names.journal),)
            case OfficeState.RECALLING, JournalRead(session=session) if session == self._session:
                return tuple(self._enter())
            case OfficeState.RECALLING | OfficeState.IN_OFFICE, Accepted(entry=TermEntry(term=term)):
                raise Fenced(f"another coordinator has taken over this federation (term {term})")
            case OfficeState.IN_OFFICE, Accepted() if self._may_tell_rounds:
                return tuple(self._tell_rounds())
            case _:
                return ()

    def _log_is_read(self) -> Iterator[Effect]:
        chain = self._writer.chain
        if chain is None:
            assert self._initial_weights is not None
            self._check_initial(self._initial_weights)
            self.state = OfficeState.FOUNDING
            yield self._writer.snapshot(self._initial_weights)
        else:
            self.compare_plans()
            self.state = OfficeState.CLAIMING
            yield self._writer.append(TermEntry(parent=chain.head, term=chain.term + 1, session=self._session))
        self._initial_weights = None

    def _check_initial(self, weights: np.ndarray) -> None:
        named = self._plan.initial_weights_sha256
        if named is not None and weights_digest(weights).hex() != named:
            raise PlanError("initial_weights: these are not the weights that the plan names; the file was changed")

    def compare_plans(self) -> None:
        """Look whether the log, if there is one, is one that we could write.

        Raises:
            PlanError: it belongs to another plan, or cannot be continued by this version.
        """
        theirs = self._writer.log.plan
        if theirs is None:
            return
        if theirs.digest() != self._plan.digest():
            ours, log = (plan.model_dump(exclude={"round": {"rounds"}}) for plan in (self._plan, theirs))
            fields = ", ".join(sorted(name for name in ours if ours[name] != log[name]))
            raise PlanError(
                f"the federation {theirs.federation!r} already runs under another plan (different: {fields}); "
                "use its settings, or another federation name"
            )

    def _enter(self) -> Iterator[Effect]:
        chain = self._writer.chain
        assert chain is not None
        self.state = OfficeState.IN_OFFICE
        yield note("in_office", term=chain.term, version=chain.version)
        self._rounds_owed = self._log_rounds != self._plan.round.rounds
        if self._may_tell_rounds:
            yield from self._tell_rounds()

    @property
    def _may_tell_rounds(self) -> bool:
        chain = self._writer.chain
        return self._rounds_owed and self._writer.ready and chain is not None and chain.draw is None

    @property
    def _log_rounds(self) -> int:
        assert self._writer.log.plan is not None
        return self._writer.log.plan.round.rounds

    def _tell_rounds(self) -> Iterator[Effect]:
        """Workers read from the newest snapshot how far the federation goes."""
        self._rounds_owed = False
        yield note("rounds_changed", before=self._log_rounds, rounds=self._plan.round.rounds)
        yield self._writer.snapshot(self._writer.log.weights)
