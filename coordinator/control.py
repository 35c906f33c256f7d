"""How does the operator's word become the run's? Fresh commands become entries of the model log (sans-I/O).

A command is a message signed with the coordinator's key, so whoever carries it may delay or repeat it: it counts if it
was issued after the last one that the log holds, and not long before or after the clock that the shell reads. What it
asks for has happened when its entry is accepted; that every machine, every reader and the command itself learn from
the log, and a coordinator that starts later finds it there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from coordinator.events import ControlArrived, CoordinatorEffect, Event
from coordinator.log_writer import LogWriter
from shared.effects import Settle, note
from shared.errors import RefusalReason
from shared.identity import OPERATOR
from shared.modellog.chain import GENESIS
from shared.wire.log_messages import RunEntry

AGE_MAX_US = 60_000_000
"""How far a command's time of issue may be from the coordinator's clock, either way (microseconds)."""


class RunControl:
    """Writes the operator's commands to the log, in the order of their issue, whenever the log can take an entry."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._waiting: deque[ControlArrived] = deque()
        self._newest_us = 0

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        refusal = tuple(self._on_control(event)) if isinstance(event, ControlArrived) else ()
        return (*refusal, *self._maybe_write())

    def _on_control(self, event: ControlArrived) -> Iterator[CoordinatorEffect]:
        reason = self._refusal(event)
        if reason is None:
            self._waiting.append(event)
            self._newest_us = event.control.issued_us
            return
        yield Settle(event.receipt)
        age_s = (event.received_us - event.control.issued_us) / 1e6
        detail = f"{event.control.run}, issued {age_s:.1f} s ago by our clock"
        yield note("refused", "warning", sender=OPERATOR, reason=reason, what="control", detail=detail)

    def _refusal(self, event: ControlArrived) -> RefusalReason | None:
        issued_us = event.control.issued_us
        if abs(event.received_us - issued_us) > AGE_MAX_US:
            return RefusalReason.STALE
        assert self._writer.chain is not None
        # The log would refuse an entry for a repeat of one that waits, or that is written and not read back yet.
        last_us = max(self._newest_us, self._writer.chain.controlled_us)
        return RefusalReason.REPLAYED if issued_us <= last_us else None

    def _maybe_write(self) -> Iterator[CoordinatorEffect]:
        chain = self._writer.chain
        if not self._waiting or chain is None or not self._writer.ready:
            return
        event = self._waiting.popleft()
        control = event.control
        entry = RunEntry(parent=GENESIS, term=0, run=control.run, issued_us=control.issued_us, version=chain.version)
        yield self._writer.append(entry)
        # Behind the entry: lost with us before it is written, the command comes again.
        yield Settle(event.receipt)
