"""When may this session take office? When the broker delivers to it from `offers`: that is the lease (sans-I/O).

`offers` has a single active consumer, so of all coordinators that wait on it only one is delivered to, and when that
one is gone the broker turns to the next. A federation may be silent, or empty; so each that waits puts its candidacy
into the queue every few seconds. Whoever is active is delivered something soon, be it only that, and knows that it is;
in office, it drops the candidacies of others.

    state        event                       next         what is done
    ───────────  ──────────────────────────  ───────────  ──────────────────────────────────────────────────────
    reading      own mark                    standing_by  `offers` is consumed; candidacy
    standing_by  tick, a candidacy is due    standing_by  candidacy; the first time it is noted
    standing_by  first delivery of `offers`  entering     it is held; the office is taken (`coordinator.office`)
    entering     delivery                    entering     it is held, unsettled
    standing_by  the operator stops the run  over         this process ends as well
    entering     the operator stops the run  over         the same
    entering     in office                   in_office    what was held is handed over
    in_office    delivery                    in_office    it is handed over
    in_office    connection or channel lost  in_doubt     another mark; what is delivered from here on is held
    in_doubt     delivery                    in_doubt     it is held, unsettled
    in_doubt     that mark                   in_office    what was held is handed over
    in_doubt     lost again                  in_doubt     another mark, which counts in place of the one before
    entering     connection or channel lost  entering     the same mark; in office it is in doubt until it is read

The lease fences nobody: a coordinator that was frozen believes that it has it. What counts is decided in the log, by
the term that `Office` claims; whoever is refused there begins anew as a session that reads.

While a connection is lost another may have been in office, and may be gone again when we are delivered to. What comes
then belongs to a draw or a version that our log does not show yet, and would be turned away for good. So it waits until
the log is read to where it stood when we came back: if another was in office, its term is read first, and ends us.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from coordinator.events import Tick, TookOffice
from shared.effects import Note, Publish, note
from shared.modellog.entries import Sealer
from shared.modellog.reader import Accepted, LogEvent, Marked
from shared.transport.port import ConsumerWaiting, Delivered, Disconnected
from shared.wire.log_messages import Mark, RunEntry
from shared.wire.messages import Candidacy, RunState
from shared.wire.topology import Names

CANDIDACY_S = 2.0
"""A stand-by notices at the latest after this time that it is active."""


class LeaseState(StrEnum):
    """How near to the office this session is."""

    READING = "reading"
    STANDING_BY = "standing_by"
    ENTERING = "entering"
    IN_OFFICE = "in_office"
    IN_DOUBT = "in_doubt"
    OVER = "over"


LeaseEvent = LogEvent | Delivered | Disconnected | ConsumerWaiting | TookOffice | Tick


@dataclass(frozen=True, slots=True)
class StandBy:
    """An effect: the log is read; refuse a plan that is not the log's, and consume `offers`."""


@dataclass(frozen=True, slots=True)
class TakeOffice:
    """An effect: make this session the log's present term."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """An effect: deliveries of `offers` or `sums` that this session answers for."""

    delivered: Delivered


@dataclass(frozen=True, slots=True)
class StopWaiting:
    """An effect: the operator has stopped the run, for those who wait too."""


LeaseEffect = Publish | Note | StandBy | TakeOffice | HandOver | StopWaiting


class Lease:
    """One session's way to the office."""

    def __init__(self, names: Names, session: bytes, seal: Sealer) -> None:
        """
        Args:
            names: of the federation.
            session: 16 fresh random bytes.
            seal: the coordinator's signature.
        """
        self._names = names
        self._session = session
        self._seal = seal
        self._held: list[Delivered] = []
        self._losses = 0
        self._doubt: bytes | None = None
        self._due = 0.0
        self._said = False
        self.state = LeaseState.READING

    def start(self) -> Publish:
        """Begin: a mark, which shows where the log ended when we came."""
        return self._mark(self._session)

    def handle(self, event: LeaseEvent, now: float) -> tuple[LeaseEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match self.state, event:
            case LeaseState.READING, Marked(session=session) if session == self._session:
                self.state = LeaseState.STANDING_BY
                return (StandBy(), self._candidacy(now))
            case LeaseState.STANDING_BY, Tick() if now >= self._due:
                return (*self._say(), self._candidacy(now))
            case LeaseState.STANDING_BY, Delivered():
                self.state = LeaseState.ENTERING
                self._held.append(event)
                return (TakeOffice(),)
            case ((LeaseState.ENTERING | LeaseState.IN_DOUBT), Delivered()):
                self._held.append(event)
                return ()
            case ((LeaseState.STANDING_BY | LeaseState.ENTERING), Accepted(entry=RunEntry(run=RunState.STOPPING))):
                self.state = LeaseState.OVER
                return (StopWaiting(),)
            case LeaseState.ENTERING, TookOffice():
                self.state = LeaseState.IN_DOUBT
                return self._hand_over()
            case (
                (LeaseState.ENTERING | LeaseState.IN_OFFICE | LeaseState.IN_DOUBT),
                Disconnected() | ConsumerWaiting(),
            ):
                self._losses += 1
                self._doubt = hashlib.sha256(self._session + self._losses.to_bytes(8, "big")).digest()[:16]
                self.state = LeaseState.ENTERING if self.state is LeaseState.ENTERING else LeaseState.IN_DOUBT
                return (self._mark(self._doubt),)
            case ((LeaseState.ENTERING | LeaseState.IN_DOUBT), Marked(session=session)) if session == self._doubt:
                self._doubt = None
                return self._hand_over()
            case LeaseState.IN_OFFICE, Delivered():
                return (HandOver(event),)
            case _:
                return ()

    def _hand_over(self) -> tuple[HandOver, ...]:
        if self._doubt is not None or self.state is not LeaseState.IN_DOUBT:
            return ()
        self.state = LeaseState.IN_OFFICE
        held, self._held = self._held, []
        return tuple(HandOver(delivered) for delivered in held)

    def _mark(self, session: bytes) -> Publish:
        return Publish(self._names.down, self._names.log, self._seal(Mark(session=session)))

    def _candidacy(self, now: float) -> Publish:
        self._due = now + CANDIDACY_S
        frame = self._seal(Candidacy(session=self._session))
        # Not persistent: what a connection loses is not sent again when nobody waits any more.
        return Publish(self._names.up, self._names.operator_key, frame, persistent=False)

    def _say(self) -> Iterator[Note]:
        if not self._said:
            self._said = True
            yield note("standing_by")
