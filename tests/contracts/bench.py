"""The two brokers that the contract suite runs over, behind one set of controls."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import pika

from shared.transport.memory import MemoryBroker, MemoryTransport
from shared.transport.port import Confirmed, Delivered, Delivery, Queue, Refused, Topology, Transport, TransportEvent
from shared.transport.rabbitmq import BrokerSettings, RabbitMqTransport
from shared.wire.topology import Names, federation_exchanges
from tests.contracts.tcp_proxy import TcpProxy

WAIT_S = 30.0
T = TypeVar("T", bound=TransportEvent)


class Recorder:
    """A sink that keeps everything and lets a test wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[TransportEvent] = []

    def __call__(self, events: Sequence[TransportEvent]) -> None:
        with self._changed:
            self._events.extend(events)
            self._changed.notify_all()

    def of(self, kind: type[T]) -> list[T]:
        """All events of one kind so far."""
        with self._changed:
            return [event for event in self._events if isinstance(event, kind)]

    def deliveries(self, queue: Queue) -> list[Delivery]:
        """All deliveries of one queue so far."""
        batches = [event for event in self.of(Delivered) if event.queue == queue.name]
        return [delivery for batch in batches for delivery in batch.deliveries]

    def wait(self, condition: Callable[[], bool], what: str = "") -> None:
        """Wait until something is true that events make true."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), f"waited in vain: {what}; last: {self._events[-5:]}"

    def wait_deliveries(self, queue: Queue, count: int) -> list[Delivery]:
        """Wait for at least `count` deliveries of one queue; return all."""
        self.wait(lambda: len(self.deliveries(queue)) >= count, f"{count} deliveries of {queue.name}")
        return self.deliveries(queue)

    def wait_settled(self, sequence: int) -> None:
        """Wait until the watermark has reached `sequence`."""
        self.wait(lambda: any(event.through >= sequence for event in self.of(Confirmed)), f"confirm of {sequence}")

    def wait_for(self, kind: type[T]) -> T:
        """Wait for the first event of one kind."""
        self.wait(lambda: bool(self.of(kind)), kind.__name__)
        return self.of(kind)[0]

    def stays(self, condition: Callable[[], bool], seconds: float = 0.2) -> bool:
        """Whether a condition still holds after a moment in which a mistake would have shown."""
        with self._changed:
            return not self._changed.wait_for(lambda: not condition(), seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """One client under test."""

    transport: Transport
    events: Recorder
    user: str
    proxy: TcpProxy | None = None

    def settle_all(self, queue: Queue) -> None:
        """Acknowledge everything that has come from one queue."""
        for delivery in self.events.deliveries(queue):
            self.transport.settle(delivery)

    def refused(self) -> set[int]:
        """Sequence numbers of refused publishes."""
        return {event.sequence for event in self.events.of(Refused)}


class Bench(Protocol):
    """A broker, its clients, and what can be done to them."""

    names: Names

    def open(self, *, window_bytes: int = 16 * 2**20, reachable: bool = True) -> Seat:
        """A new client, whose broker is out of reach until `heal` unless `reachable`."""

    def declare(self, *queues: Queue, exchanges: bool = True) -> None:
        """Declare the federation's exchanges and some queues."""

    def oversized(self) -> bytes:
        """A body above the broker's limit."""

    def stall(self, seat: Seat) -> None:
        """Let nothing that the client publishes get through, until `heal` or `cut`."""

    def heal(self, seat: Seat) -> None:
        """End `stall` or unreachability."""

    def cut(self, seat: Seat) -> None:
        """Break the client's connections; it may reconnect at once."""

    def crash(self, seat: Seat) -> None:
        """Kill the client."""


class MemoryBench:
    """The in-process broker."""

    def __init__(self) -> None:
        self.names = Names(str(uuid.uuid4()))
        self.broker = MemoryBroker(message_bytes_max=2**20)
        self._numbers = itertools.count()
        self._transports: dict[Recorder, MemoryTransport] = {}

    def open(self, *, window_bytes: int = 16 * 2**20, reachable: bool = True) -> Seat:
        if not reachable:
            self.broker.block("out of reach")
        recorder, name = Recorder(), f"client-{next(self._numbers)}"
        transport = MemoryTransport(self.broker, recorder, name=name, user="somebody", window_bytes=window_bytes)
        self._transports[recorder] = transport
        return Seat(transport, recorder, "somebody")

    def declare(self, *queues: Queue, exchanges: bool = True) -> None:
        self.open().transport.declare(topology_of(self.names, queues, exchanges))

    def oversized(self) -> bytes:
        return bytes(2**20 + 1)

    def stall(self, seat: Seat) -> None:
        self.broker.block("stalled")

    def heal(self, seat: Seat) -> None:
        self.broker.unblock()

    def cut(self, seat: Seat) -> None:
        self.broker.disconnect(self._transports[seat.events])
        self.broker.unblock()

    def crash(self, seat: Seat) -> None:
        self.broker.crash(self._transports[seat.events])

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close(0)


class RabbitMqBench:
    """A real broker, each client behind a proxy of its own."""

    def __init__(self, url: str) -> None:
        self.names = Names(str(uuid.uuid4()))
        self._url = url
        self._parts = urlsplit(url)
        self._seats: list[Seat] = []
        self._declared: list[Topology] = []

    def open(self, *, window_bytes: int = 16 * 2**20, reachable: bool = True) -> Seat:
        assert self._parts.hostname
        proxy = TcpProxy((self._parts.hostname, self._parts.port or 5672))
        if not reachable:
            proxy.refuse()
        recorder = Recorder()
        user, password = self._parts.username or "guest", self._parts.password or "guest"
        url = self._parts._replace(netloc=f"{user}:{password}@127.0.0.1:{proxy.port}").geturl()
        settings = BrokerSettings(urls=(url,), window_bytes=window_bytes)
        transport = RabbitMqTransport(settings, recorder, name=f"test {self.names.federation[:8]}")
        seat = Seat(transport, recorder, user, proxy)
        self._seats.append(seat)
        return seat

    def declare(self, *queues: Queue, exchanges: bool = True) -> None:
        topology = topology_of(self.names, queues, exchanges)
        self._declared.append(topology)
        self.open().transport.declare(topology)

    def oversized(self) -> bytes:
        # 3.x takes 128 MiB, 4.x takes 16 MiB.
        major = int(self._seats[0].transport.connect().split()[1].partition(".")[0])
        return bytes((128 if major < 4 else 16) * 2**20 + 1)

    def stall(self, seat: Seat) -> None:
        self._proxy(seat).stall()

    def heal(self, seat: Seat) -> None:
        self._proxy(seat).admit()
        self._proxy(seat).flow()

    def cut(self, seat: Seat) -> None:
        self._proxy(seat).reset()
        self._proxy(seat).flow()

    def crash(self, seat: Seat) -> None:
        self._proxy(seat).refuse()
        self._proxy(seat).reset()

    def close(self) -> None:
        for seat in self._seats:
            seat.transport.close(0)
            self._proxy(seat).close()
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        for topology in self._declared:
            for queue in topology.queues:
                channel.queue_delete(queue.name)
            for exchange in topology.exchanges:
                channel.exchange_delete(exchange.name)
        connection.close()

    def _proxy(self, seat: Seat) -> TcpProxy:
        assert seat.proxy is not None
        return seat.proxy


def topology_of(names: Names, queues: Sequence[Queue], exchanges: bool) -> Topology:
    """The federation's exchanges and the given queues."""
    return Topology(exchanges=federation_exchanges(names) if exchanges else (), queues=tuple(queues))
