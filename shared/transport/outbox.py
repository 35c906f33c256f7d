"""Which publishes has the broker not yet taken over, and what must be sent (again) next?

Sans-I/O and without locks: the adapters own both. Publishes are numbered from 1 and leave in that order. Sent ones
wait under their channel's delivery tag (1, 2, 3, … from the opening of the channel) until the broker confirms them;
when the channel is gone they return to the front of the line, so that the order holds across any number of reconnects.

A broker closes the whole channel over one message that it will not have (too large, not permitted) and does not say
which. The outbox finds it by *probation*: what was in flight is sent again one by one, each behind the confirm of the
one before, and a message that closes the channel while it is alone in flight is the one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pending:
    """One publish that is not settled yet."""

    sequence: int
    exchange: str
    routing_key: str
    body: bytes
    persistent: bool


class Outbox:
    """Unsettled publishes of one transport, bounded by `window_bytes`."""

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._waiting: deque[Pending] = deque()
        self._in_flight: OrderedDict[int, Pending] = OrderedDict()
        self._last_sequence = 0
        self._last_tag = 0
        self._probation = 0
        self._bytes = 0

    @property
    def empty(self) -> bool:
        """Whether every publish so far is settled."""
        return not self._waiting and not self._in_flight

    @property
    def nothing_in_flight(self) -> bool:
        """Whether every publish that was sent is settled."""
        return not self._in_flight

    @property
    def through(self) -> int:
        """The watermark: every publish with a sequence number up to this one is settled. Never falls."""
        for line in (self._in_flight.values(), self._waiting):
            for pending in line:
                return pending.sequence - 1
        return self._last_sequence

    def fits(self, size: int) -> bool:
        """Whether a body of `size` bytes may be added now. One larger than the window goes alone."""
        return self.empty or self._bytes + size <= self._window_bytes

    def add(self, exchange: str, routing_key: str, body: bytes, *, persistent: bool) -> int:
        """Put one publish at the end of the line and return its sequence number."""
        self._last_sequence += 1
        self._waiting.append(Pending(self._last_sequence, exchange, routing_key, body, persistent))
        self._bytes += len(body)
        return self._last_sequence

    def take(self) -> list[Pending]:
        """Everything that may be sent now, in order. It counts as in flight, under the channel's next tags."""
        count = len(self._waiting)
        if self._probation:
            count = min(count, 1 - len(self._in_flight))
        taken = [self._waiting.popleft() for _ in range(count)]
        for pending in taken:
            self._last_tag += 1
            self._in_flight[self._last_tag] = pending
        return taken

    def settle(self, tag: int, *, multiple: bool) -> list[Pending]:
        """The broker confirmed or refused `tag` (with `multiple`, every tag up to it); return what that settles."""
        if multiple:
            settled = []
            while self._in_flight and next(iter(self._in_flight)) <= tag:
                settled.append(self._in_flight.popitem(last=False)[1])
        else:
            pending = self._in_flight.pop(tag, None)
            settled = [] if pending is None else [pending]
        for pending in settled:
            self._bytes -= len(pending.body)
        self._probation = max(0, self._probation - len(settled))
        return settled

    def channel_lost(self) -> None:
        """The channel or its connection is gone: what was in flight is sent again, tags begin at 1."""
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()
        self._last_tag = 0

    def channel_refused(self) -> Pending | None:
        """The broker closed the channel over a message; return it, settled, if it is known which one it was."""
        if len(self._in_flight) == 1:
            culprit = self.settle(next(iter(self._in_flight)), multiple=False)[0]
        else:
            culprit = None
            self._probation = max(self._probation, len(self._in_flight))
        self.channel_lost()
        return culprit
