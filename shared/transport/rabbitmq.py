"""How does Comitia speak to a real RabbitMQ?

`RabbitMqTransport` keeps the contract of `shared.transport.port` with two connections, one for publishing and one for
consuming: a small message does not wait behind a large one of the other direction, and a resource alarm of the broker,
which stops every call on a connection that has published, does not stop acknowledgements. Each has an I/O thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pika

from shared.errors import BrokerUnavailable, LocalProtocolError
from shared.transport.broker_settings import BrokerSettings, Endpoint, endpoints
from shared.transport.connection import Link, broker_name
from shared.transport.consuming import Consumer
from shared.transport.depths import DepthReader
from shared.transport.port import (
    Connected,
    Delivery,
    Depth,
    Disconnected,
    Outcome,
    Queue,
    Sink,
    StreamStart,
    Topology,
)
from shared.transport.publishing import Publisher

_NAME_BYTES_MAX = 255
_CLOSE_GRACE_S = 2.0


class RabbitMqTransport:
    """A client of RabbitMQ. Connecting begins with the object, in the background; see `Transport` for every method."""

    def __init__(self, settings: BrokerSettings, sink: Sink, *, name: str) -> None:
        """Connect to the first broker of the list that answers; `name` is what the broker calls the connections.

        Raises:
            SettingsError: a TLS file cannot be read.
        """
        self._settings = settings
        self._sink = sink
        self._status = _Status(sink, ", ".join(end.label for end in endpoints(settings, name)))
        self._publisher = Publisher(settings.window_bytes, sink)
        self._consumer = Consumer(sink)
        self._depths = DepthReader()
        self._close_lock = threading.Lock()
        self._closed = False
        publishing = _PublishingSide(self._publisher, self._status, self._ended)
        consuming = _ConsumingSide(self._consumer, self._depths, self._status, self._ended)
        self._publishing_link = Link(f"{name}-publishing", endpoints(settings, f"{name} publishing"), publishing)
        self._consuming_link = Link(f"{name}-consuming", endpoints(settings, f"{name} consuming"), consuming)
        self._publisher.attach(self._publishing_link)
        self._consumer.attach(self._consuming_link)
        self._depths.attach(self._consuming_link)
        self._publishing_link.start()
        self._consuming_link.start()

    def connect(self) -> str:
        """See `Transport.connect`."""
        return self._status.wait(self._settings.start_timeout_s)

    def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        self.connect()
        self._publisher.declare(topology, self._settings.start_timeout_s)

    def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
        """See `Transport.publish`. A memoryview is copied, bytes are not."""
        # Checked here, because the I/O thread has nobody to raise to.
        if max(len(exchange.encode()), len(routing_key.encode())) > _NAME_BYTES_MAX:
            raise LocalProtocolError(f"exchange and routing key have at most {_NAME_BYTES_MAX} bytes")
        owned = body if isinstance(body, bytes) else bytes(body)
        return self._publisher.publish(exchange, routing_key, owned, persistent=persistent)

    def consume(self, queue: Queue, *, prefetch: int, start: StreamStart | None = None) -> None:
        """See `Transport.consume`."""
        self._consumer.consume(queue, prefetch, start)

    def cancel(self, queue: str) -> None:
        """See `Transport.cancel`."""
        self._consumer.cancel(queue)

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        """See `Transport.settle`."""
        self._consumer.settle(delivery, outcome)

    def depths(self, queues: Sequence[Queue]) -> Mapping[str, Depth | None]:
        """See `Transport.depths`."""
        self.connect()
        return self._depths.ask(queues, self._settings.start_timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """See `Transport.close`. If the broker does not answer it takes two seconds more, while connecting eight."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            self._publisher.drain(timeout_s)
            self._status.close()
            self._consumer.close()
            for link in (self._publishing_link, self._consuming_link):
                link.stop(_CLOSE_GRACE_S)
            for link in (self._publishing_link, self._consuming_link):
                link.join()

    def _ended(self) -> None:
        """One of the two threads ends, on purpose or not: whoever hears nothing any more must not go on publishing."""
        self._publisher.ended()
        self._consumer.close()


class _Status:
    """Whether both connections are up, for `connect` and for the events about it. Any thread."""

    def __init__(self, sink: Sink, hosts: str) -> None:
        self._sink = sink
        self._hosts = hosts
        self._changed = threading.Condition()
        self._up: set[str] = set()
        self._broker = ""
        self._connects = 0
        self._reason = "no answer"
        self._refused = False
        self._closed = False

    def wait(self, timeout_s: float) -> str:
        """Wait for the first time that both are up; return the broker's name."""
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._connects or self._refused or self._closed, timeout_s)
            if self._connects:
                return self._broker
            if self._closed:
                raise BrokerUnavailable("the transport is closed")
            reason = self._reason
        if self._refused:
            remedy = "check user, password, virtual host and permissions"
            raise BrokerUnavailable(f"the broker at {self._hosts} lets nobody in as this user ({reason}); {remedy}")
        waited_s = time.monotonic() - began
        remedy = "check that RabbitMQ runs there and that the broker URLs are right"
        raise BrokerUnavailable(f"no broker at {self._hosts} within {waited_s:.0f} s (last: {reason}); {remedy}")

    def up(self, side: str, broker: str) -> None:
        """One of the two connections is open."""
        with self._changed:
            self._up.add(side)
            self._broker = broker
            if len(self._up) == 2:
                self._connects += 1
                self._changed.notify_all()
                # Inside the lock: the other thread's next event must not overtake this one.
                self._sink([Connected(broker, self._connects - 1)])

    def down(self, side: str, reason: str, *, refused: bool) -> None:
        """One of the two is lost, or failed to open."""
        with self._changed:
            complete = len(self._up) == 2
            self._up.discard(side)
            self._reason = reason
            self._refused = refused
            self._changed.notify_all()
            if complete and not self._closed:
                self._sink([Disconnected(reason)])

    def close(self) -> None:
        """From now on connections end on purpose."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _PublishingSide:
    """Connects the publishing link with the publisher (a `LinkOwner`)."""

    def __init__(self, publisher: Publisher, status: _Status, ended: Callable[[], None]) -> None:
        self._publisher = publisher
        self._up = partial(status.up, "publishing")
        self._down = partial(status.down, "publishing")
        self.on_ended = ended

    def on_open(self, connection: pika.SelectConnection, endpoint: Endpoint) -> None:
        self._up(broker_name(connection))
        self._publisher.opened(connection, endpoint)

    def on_down(self, reason: str, *, refused: bool) -> None:
        self._publisher.lost()
        self._down(reason, refused=refused)


class _ConsumingSide:
    """Connects the consuming link with the consumer and the depth reader (a `LinkOwner`)."""

    def __init__(self, consumer: Consumer, depths: DepthReader, status: _Status, ended: Callable[[], None]) -> None:
        self._consumer = consumer
        self._depths = depths
        self._up = partial(status.up, "consuming")
        self._down = partial(status.down, "consuming")
        self._ended = ended

    def on_open(self, connection: pika.SelectConnection, _endpoint: Endpoint) -> None:
        self._up(broker_name(connection))
        self._consumer.opened(connection)
        self._depths.opened(connection)

    def on_down(self, reason: str, *, refused: bool) -> None:
        self._consumer.lost()
        self._depths.lost(reason)
        self._down(reason, refused=refused)

    def on_ended(self) -> None:
        self._ended()
        self._depths.ended()
