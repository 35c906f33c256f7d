"""What does the in-process broker know about one of its clients?

A seat is the client's outbox, its subscriptions and the lines between it and the broker. It decides nothing:
`shared.transport.memory_broker` does, under its one lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.transport.faults import Dice, Line, Timetable
from shared.transport.memory_queues import Message
from shared.transport.outbox import Outbox
from shared.transport.port import Confirmed, Queue, Refused, Sink, StreamStart, TransportEvent


@dataclass(slots=True, eq=False)
class Subscription:
    """One consumer, with its queue's way to it.

    `generation` rises whenever it is attached anew, so that stale deliveries are known as such.
    """

    seat: Seat
    queue: Queue
    prefetch: int
    start: StreamStart | None
    line: Line
    attached: bool = False
    generation: int = 0
    last_tag: int = 0
    cursor: int = 0
    unsettled: OrderedDict[int, Message] = field(default_factory=OrderedDict)

    @property
    def room(self) -> int:
        """How many more deliveries may be unsettled."""
        return self.prefetch - len(self.unsettled)

    def add(self, message: Message) -> int:
        """Count a delivery as unsettled and return its tag."""
        self.last_tag += 1
        self.unsettled[self.last_tag] = message
        return self.last_tag


@dataclass(frozen=True, slots=True)
class Handle:
    """Where a delivery came from."""

    subscription: Subscription
    generation: int
    tag: int


class Seat:
    """One client of the in-process broker."""

    def __init__(
        self, sink: Sink, user: str, window_bytes: int, timetable: Timetable, dice: Callable[[], Dice]
    ) -> None:
        self.sink = sink
        self.user = user
        self.outbox = Outbox(window_bytes)
        self.subscriptions: dict[str, Subscription] = {}
        self.connected = False
        self.connects = 0
        self.closed = False
        self.channel = 0
        self.last_tag = 0
        self.missing_exchange: str | None = None
        self.sent = self.overtakings = 0
        self._newest_arrived = 0
        self._timetable, self._dice = timetable, dice
        self.publishes, self.confirms, self.settlements = (self.new_line() for _ in range(3))
        self._announced = 0

    def new_line(self) -> Line:
        """One more direction in which things are under way."""
        return Line(self._timetable, self._dice)

    def arrived(self, number: int) -> None:
        """The `number`-th thing that was sent here has come; it may have been overtaken by one of another queue."""
        self.overtakings += number < self._newest_arrived
        self._newest_arrived = max(self._newest_arrived, number)

    def emit(self, event: TransportEvent) -> None:
        """Hand one event to the sink, unless the client is gone."""
        if not self.closed:
            self.sink([event])

    def cut(self) -> None:
        """The connections break: some of what is under way to the broker arrives, nothing of what comes from it."""
        self.connected = False
        self.publishes.cut(some_arrive=True)
        self.settlements.cut(some_arrive=True)
        self.confirms.cut(some_arrive=False)
        for subscription in self.subscriptions.values():
            subscription.line.cut(some_arrive=False)
        self.rewind()

    def rewind(self) -> None:
        """What is not confirmed will be sent again, on a new channel."""
        self.outbox.channel_lost()
        self.channel += 1
        self.last_tag = 0
        self.missing_exchange = None

    def confirm(self, tag: int, refusal: str | None) -> None:
        """The broker's answer to one publish has arrived."""
        for pending in self.outbox.settle(tag, multiple=False):
            if refusal is not None:
                self.emit(Refused(pending.sequence, pending.routing_key, refusal))
        if self.outbox.through > self._announced:
            self._announced = self.outbox.through
            self.emit(Confirmed(self._announced))
