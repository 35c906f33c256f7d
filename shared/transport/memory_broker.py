"""How does a broker inside this process behave, and how do tests make it misbehave?

`MemoryBroker` stands in for RabbitMQ in simulations, in tests and as an embedded broker of one process. It is eager and
has no thread: a publish is routed, and consumers' sinks are called, before `publish` returns. One lock guards
everything; sinks are called under it and must only store. With a clock, `Faults` may delay things in virtual time;
`advance` then makes them happen.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shared.errors import LocalProtocolError
from shared.transport.faults import Dice, Faults, Timetable
from shared.transport.memory_dispatch import Dispatch
from shared.transport.memory_queues import Message
from shared.transport.memory_seat import Handle, Seat, Subscription
from shared.transport.outbox import Pending
from shared.transport.port import Blocked, Connected, ConsumerWaiting, Depth, Disconnected, Outcome, Queue, Topology

if TYPE_CHECKING:
    from shared.transport.memory import MemoryTransport

BROKER_NAME = "in-process broker"


class MemoryBroker:
    """Exchanges, queues and seats of one process."""

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        faults: Faults | None = None,
        *,
        message_bytes_max: int = 16 * 2**20,
    ) -> None:
        """`clock` gives virtual seconds; without one nothing can be delayed.

        Raises:
            LocalProtocolError: faults that take time without a clock.
        """
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.virtual = clock is not None
        self.timetable = Timetable(clock or (lambda: 0.0))
        self._message_bytes_max = message_bytes_max
        self._dispatch = Dispatch()
        self._seats: list[Seat] = []
        self._alarm: str | None = None
        self._published_bytes: Counter[tuple[str, str]] = Counter()
        self._published_messages: Counter[tuple[str, str]] = Counter()
        self.happened: Counter[str] = Counter()
        self.inject(faults)

    # -- for tests and simulations ---------------------------------------------------------------------------------

    def inject(self, faults: Faults | None) -> None:
        """Let these faults happen from now on; None ends all of them."""
        if faults is not None and faults.takes_time and not self.virtual:
            raise LocalProtocolError("faults that take time need a clock")
        with self.lock:
            self._dice = Dice(faults, self.happened)

    def next_event_at(self) -> float | None:
        """Virtual time of the next thing that is delayed, or None."""
        with self.lock:
            return self.timetable.next_at()

    def advance(self, now: float) -> None:
        """Let everything happen that is due by `now`."""
        with self.lock:
            self.timetable.advance(now)
            self.changed.notify_all()

    def crash(self, transport: MemoryTransport) -> None:
        """The client dies without a word (kill -9): its deliveries return, its exclusive queues vanish."""
        with self.lock:
            self.leave(transport.seat, flush=False)

    def disconnect(self, transport: MemoryTransport, outage_s: float = 0.0) -> None:
        """The client's connections break, and are restored after `outage_s` of virtual time."""
        with self.lock:
            if outage_s and not self.virtual:
                raise LocalProtocolError("an outage needs a clock")
            self._disconnect(transport.seat, "the connection was cut", outage_s)

    def restart(self) -> None:
        """The broker restarts: exclusive queues and transient messages are lost, everything durable is kept."""
        with self.lock:
            seats = [seat for seat in self._seats if seat.connected]
            for seat in seats:
                self._lose(seat, "the broker restarts")
            self._dispatch.restart()
            for seat in seats:
                self._connect(seat)

    def block(self, reason: str) -> None:
        """Raise a resource alarm: nothing published is taken until `unblock`."""
        with self.lock:
            self._alarm = reason
            for seat in self._seats:
                seat.emit(Blocked(True, reason))

    def unblock(self) -> None:
        """Lift the alarm."""
        with self.lock:
            reason, self._alarm = self._alarm, None
            for seat in list(self._seats):
                if reason is not None:
                    seat.emit(Blocked(False, reason))
                self.send(seat)

    def depth(self, queue: str) -> int:
        """Messages of a queue that wait or are unsettled; kept entries of a stream; 0 if there is no such queue."""
        with self.lock:
            return self._dispatch.depth(queue)

    def entries(self, stream: str, first: int) -> list[tuple[int, bytes]]:
        """Offsets and bodies of a stream's kept entries from offset `first` on, whatever connections do."""
        with self.lock:
            return self._dispatch.entries(stream, first)

    @property
    def published_bytes(self) -> Counter[tuple[str, str]]:
        """Body bytes taken so far by (exchange, routing key), duplicates included."""
        with self.lock:
            return Counter(self._published_bytes)

    @property
    def published_messages(self) -> Counter[tuple[str, str]]:
        """Messages taken so far by (exchange, routing key), duplicates included."""
        with self.lock:
            return Counter(self._published_messages)

    # -- for seats, which hold the lock ----------------------------------------------------------------------------

    def dice(self) -> Dice:
        """The faults that are in force."""
        return self._dice

    def join(self, seat: Seat) -> None:
        """Connect a new client."""
        self._seats.append(seat)
        self._connect(seat)

    def leave(self, seat: Seat, *, flush: bool) -> None:
        """Disconnect a client for good; with `flush` what it has sent still arrives."""
        if seat.closed:
            return
        if flush and seat.connected:
            seat.publishes.flush()
            seat.settlements.flush()
            seat.confirms.flush()
        seat.closed = True
        self._seats.remove(seat)
        self._detach_all(seat)
        self.changed.notify_all()

    def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        self._dispatch.declare(topology)
        for seat in list(self._seats):
            if seat.missing_exchange is not None and self._dispatch.has_exchange(seat.missing_exchange):
                seat.emit(Blocked(False, f"no exchange {seat.missing_exchange}"))
                seat.rewind()
                self.send(seat)
        self._attach_waiting()

    def send(self, seat: Seat) -> None:
        """Send what waits in a client's outbox, if it can be sent now."""
        if not seat.connected or self._alarm is not None or seat.missing_exchange is not None:
            return
        taken, channel = seat.outbox.take(), seat.channel
        for pending in taken:
            if seat.channel != channel:
                # Lost with the first of them: the outbox has the others again, and has sent them if it could.
                return
            seat.last_tag += 1
            seat.publishes.send(partial(self._arrive, seat, (seat.channel, seat.last_tag), pending))
        if taken:
            self._maybe_disconnect(seat)

    def attach(self, subscription: Subscription) -> None:
        """Begin to deliver, or say why not; tried again when a queue is declared or freed."""
        if not subscription.attached and subscription.seat.connected:
            obstacle = self._dispatch.attach(subscription)
            if obstacle is not None:
                subscription.seat.emit(ConsumerWaiting(subscription.queue.name, obstacle))

    def detach(self, subscription: Subscription) -> None:
        """End deliveries; unsettled ones return to the queue."""
        self._dispatch.detach(subscription)
        if subscription.queue.exclusive:
            self._attach_waiting()

    def settle(self, handle: Handle, outcome: Outcome) -> None:
        """End one delivery, unless it is stale or settled already."""
        if self._dispatch.settle(handle, outcome):
            self._maybe_disconnect(handle.subscription.seat)

    def waiting(self, queue: Queue) -> Depth | None:
        """See `Transport.depths`."""
        return self._dispatch.waiting(queue)

    # -- connections -----------------------------------------------------------------------------------------------

    def _connect(self, seat: Seat) -> None:
        if seat.closed or seat.connected:
            return
        seat.connected = True
        seat.emit(Connected(BROKER_NAME, seat.connects))
        seat.connects += 1
        if self._alarm is not None:
            seat.emit(Blocked(True, self._alarm))
        for subscription in list(seat.subscriptions.values()):
            self.attach(subscription)
        self.send(seat)
        self.changed.notify_all()

    def _disconnect(self, seat: Seat, reason: str, outage_s: float) -> None:
        if seat.closed or not seat.connected:
            return
        self._lose(seat, reason)
        if outage_s:
            self.timetable.at(self.timetable.now() + outage_s, partial(self._connect, seat))
        else:
            self._connect(seat)

    def _maybe_disconnect(self, seat: Seat) -> None:
        if self._dice.disconnects():
            self._disconnect(seat, "the connection was lost", self._dice.outage_s())

    def _lose(self, seat: Seat, reason: str) -> None:
        self._detach_all(seat)
        seat.emit(Disconnected(reason))

    def _detach_all(self, seat: Seat) -> None:
        seat.cut()
        for subscription in list(seat.subscriptions.values()):
            self.detach(subscription)

    # -- messages --------------------------------------------------------------------------------------------------

    def _arrive(self, seat: Seat, channel_tag: tuple[int, int], pending: Pending) -> None:
        """One publish has come to the broker, on its channel under its tag."""
        if channel_tag[0] != seat.channel or seat.missing_exchange is not None:
            return
        if not self._dispatch.has_exchange(pending.exchange):
            # As with RabbitMQ the channel closes; what follows on it is lost and sent again with this one.
            seat.missing_exchange = pending.exchange
            seat.emit(Blocked(True, f"no exchange {pending.exchange}"))
            return
        refusal = self._accept(seat, pending)
        if refusal is None and self._dice.duplicates():
            self._accept(seat, pending)
        if self._dice.loses_confirm():
            self._disconnect(seat, "the connection was lost before a confirm", self._dice.outage_s())
            return
        seat.confirms.send(partial(self._confirm, seat, channel_tag, refusal))

    def _confirm(self, seat: Seat, channel_tag: tuple[int, int], refusal: str | None) -> None:
        channel, tag = channel_tag
        if seat.connected and channel == seat.channel:
            seat.confirm(tag, refusal)
            self.changed.notify_all()

    def _accept(self, seat: Seat, pending: Pending) -> str | None:
        """Route one publish; return why it is refused."""
        if len(pending.body) > self._message_bytes_max:
            return f"message size {len(pending.body)} is larger than the broker's limit of {self._message_bytes_max}"
        key = (pending.exchange, pending.routing_key)
        self._published_messages[key] += 1
        self._published_bytes[key] += len(pending.body)
        if not pending.persistent and self._dice.drops():
            return None
        return self._dispatch.accept(Message(*key, pending.body, pending.persistent, seat.user))

    def _attach_waiting(self) -> None:
        for seat in list(self._seats):
            for subscription in list(seat.subscriptions.values()):
                self.attach(subscription)
