"""How does a part of Comitia use the in-process broker?

`MemoryTransport` keeps the contract of `shared.transport.port` as a seat at a `MemoryBroker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.errors import BrokerUnavailable, LocalProtocolError
from shared.transport.faults import Faults
from shared.transport.memory_broker import BROKER_NAME, MemoryBroker
from shared.transport.memory_seat import Handle, Seat, Subscription
from shared.transport.port import Delivery, Depth, Outcome, Queue, QueueKind, Sink, StreamStart, Topology

__all__ = ["Faults", "MemoryBroker", "MemoryTransport"]

_CLOSED = "the transport is closed"


class MemoryTransport:
    """A seat at a `MemoryBroker`; see `Transport` for every method.

    Without a clock it may be used from any number of threads. With a virtual one a full window does not wait, because
    nobody else would advance the clock.
    """

    def __init__(
        self, broker: MemoryBroker, sink: Sink, *, name: str, user: str | None = None, window_bytes: int = 16 * 2**20
    ) -> None:
        """Take a seat; messages carry `user` (default: `name`) as their authenticated user."""
        self._broker = broker
        with broker.lock:
            self.seat = Seat(sink, user or name, window_bytes, broker.timetable, broker.dice)
            broker.join(self.seat)

    def connect(self) -> str:
        """See `Transport.connect`."""
        with self._broker.lock:
            self._check_open()
            return BROKER_NAME

    def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        with self._broker.lock:
            self._check_open()
            self._broker.declare(topology)

    def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
        """See `Transport.publish`."""
        owned = body if isinstance(body, bytes) else bytes(body)
        with self._broker.lock:
            if not self._broker.virtual:
                self._broker.changed.wait_for(lambda: self.seat.closed or self.seat.outbox.fits(len(owned)))
            self._check_open()
            sequence = self.seat.outbox.add(exchange, routing_key, owned, persistent=persistent)
            self._broker.send(self.seat)
            return sequence

    def consume(self, queue: Queue, *, prefetch: int, start: StreamStart | None = None) -> None:
        """See `Transport.consume`."""
        if (queue.kind is QueueKind.STREAM) != (start is not None):
            raise LocalProtocolError(f"{queue.name}: a stream needs a start, and nothing else has one")
        with self._broker.lock:
            self._check_open()
            if queue.name in self.seat.subscriptions:
                raise LocalProtocolError(f"{queue.name} is consumed already")
            subscription = Subscription(self.seat, queue, prefetch, start, self.seat.new_line())
            self.seat.subscriptions[queue.name] = subscription
            self._broker.attach(subscription)

    def cancel(self, queue: str) -> None:
        """See `Transport.cancel`."""
        with self._broker.lock:
            subscription = self.seat.subscriptions.pop(queue, None)
            if subscription is not None:
                self._broker.detach(subscription)

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        """See `Transport.settle`."""
        handle = delivery.handle
        if not isinstance(handle, Handle) or handle.subscription.seat is not self.seat:
            raise LocalProtocolError("this delivery is of another transport")
        with self._broker.lock:
            if self.seat.connected:
                self.seat.settlements.send(lambda: self._broker.settle(handle, outcome))

    def depths(self, queues: Sequence[Queue]) -> Mapping[str, Depth | None]:
        """See `Transport.depths`."""
        with self._broker.lock:
            self._check_open()
            return {queue.name: self._broker.waiting(queue) for queue in queues}

    def close(self, timeout_s: float = 5.0) -> None:
        """See `Transport.close`. With a virtual clock what is under way arrives at once."""
        with self._broker.lock:
            if not self._broker.virtual:
                self._broker.changed.wait_for(lambda: self.seat.closed or self.seat.outbox.empty, timeout_s)
            self._broker.leave(self.seat, flush=True)

    def _check_open(self) -> None:
        if self.seat.closed:
            raise BrokerUnavailable(_CLOSED)
