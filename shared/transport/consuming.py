"""How do messages of RabbitMQ's queues reach the sink, and how are they settled?

`Consumer` is the consuming half of the transport. Every subscription has a channel of its own, so that what the broker
refuses to one (a queue that is not declared yet, a lock held by a lost connection, an acknowledgement that came too
late) leaves the others alone. All deliveries of one turn of the I/O loop go to the sink as one list; all settlements
handed over meanwhile leave in one turn, with neighboring acknowledgements merged.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pika
from pika import spec
from pika.channel import Channel

from shared.errors import BrokerUnavailable, LocalProtocolError
from shared.transport.connection import Link, describe
from shared.transport.port import (
    ConsumerWaiting,
    Death,
    Delivered,
    Delivery,
    Outcome,
    Queue,
    QueueKind,
    Sink,
    StreamStart,
    TransportEvent,
)

_OFFSET = "x-stream-offset"
_DEATH_QUEUE, _DEATH_REASON = "x-first-death-queue", "x-first-death-reason"


@dataclass(frozen=True, slots=True)
class _Handle:
    """Where a delivery came from; `generation` tells a channel from the ones that replaced it."""

    subscription: Subscription
    generation: int
    tag: int


class Subscription:
    """One consumer: its channel, which of its deliveries are unsettled, and where a stream goes on. I/O thread only."""

    def __init__(self, consumer: Consumer, queue: Queue, prefetch: int, start: StreamStart | None) -> None:
        self.queue = queue
        self._consumer = consumer
        self._prefetch = prefetch
        self._start = start
        self._stream = queue.kind is QueueKind.STREAM
        self._generation = 0
        self._failures = 0
        self._channel: Channel | None = None
        # Delivery tags in their order; True once the owner has acknowledged, until the acknowledgement leaves.
        self._unsettled: OrderedDict[int, bool] = OrderedDict()

    def open(self, connection: pika.SelectConnection) -> None:
        """Subscribe on a new channel of `connection`."""
        self._forget_channel()
        generation = self._generation
        connection.channel(on_open_callback=lambda channel: self._opened(channel, generation))

    def close(self) -> None:
        """End the subscription; the broker takes unsettled deliveries back."""
        channel = self._channel
        self._forget_channel()
        if channel is not None and channel.is_open:
            channel.close()

    def settle(self, handle: _Handle, outcome: Outcome) -> None:
        """End one delivery, unless it is of an earlier channel or was settled before."""
        channel = self._channel
        if handle.generation != self._generation or handle.tag not in self._unsettled:
            return
        # A stream knows only credit; a negative acknowledgement makes RabbitMQ 3.10 close the whole connection.
        if outcome is Outcome.ACK or self._stream:
            self._unsettled[handle.tag] = True
            return
        del self._unsettled[handle.tag]
        if channel is not None and channel.is_open:
            channel.basic_reject(handle.tag, requeue=outcome is Outcome.PUT_BACK)

    def send_acknowledgements(self) -> None:
        """Send what `settle` collected: one frame for the oldest up to the first gap, one for each of the rest."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        joined = 0
        for tag, acknowledged in list(self._unsettled.items()):
            if not acknowledged:
                break
            del self._unsettled[tag]
            joined = tag
        if joined:
            channel.basic_ack(joined, multiple=True)
        for tag in [tag for tag, acknowledged in self._unsettled.items() if acknowledged]:
            del self._unsettled[tag]
            channel.basic_ack(tag)

    def _forget_channel(self) -> None:
        self._channel = None
        self._generation += 1
        self._unsettled.clear()

    def _opened(self, channel: Channel, generation: int) -> None:
        if generation != self._generation:
            channel.close()
            return
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        channel.add_on_cancel_callback(lambda _frame: self._fail(channel, "the broker ended the subscription"))
        if self.queue.exclusive:
            _declare_exclusive(channel, self.queue)
        channel.basic_qos(prefetch_count=self._prefetch, callback=_answered)
        channel.basic_consume(
            self.queue.name,
            self._arrived,
            arguments={_OFFSET: self._start} if self._stream else None,
            callback=self._subscribed,
        )

    def _subscribed(self, _frame: Any) -> None:
        self._failures = 0

    def _arrived(self, channel: Channel, method: Any, properties: spec.BasicProperties, body: bytes) -> None:
        if channel is not self._channel:
            return
        tag = method.delivery_tag
        self._unsettled[tag] = False
        offset = None
        if self._stream:
            offset = int((properties.headers or {})[_OFFSET])
            # Where a new channel goes on.
            self._start = offset + 1
        delivery = Delivery(
            queue=self.queue.name,
            body=body,
            routing_key=method.routing_key,
            redelivered=method.redelivered,
            handle=_Handle(self, self._generation, tag),
            user=properties.user_id,
            offset=offset,
            death=_death(properties.headers or {}),
        )
        self._consumer.collect(delivery)

    def _closed(self, channel: Channel, error: BaseException) -> None:
        # Of a lost connection nothing is left to retry on; `Consumer.opened` subscribes anew.
        if channel.connection.is_open:
            self._fail(channel, describe(error))

    def _fail(self, channel: Channel, reason: str) -> None:
        if channel is not self._channel:
            return
        self.close()
        self._failures += 1
        self._consumer.retry(self, self._generation, self._failures, reason)

    def retry(self, connection: pika.SelectConnection, generation: int) -> None:
        """Subscribe again, unless that has happened meanwhile."""
        if generation == self._generation:
            self.open(connection)


class Consumer:
    """All subscriptions on the consuming connection."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._link: Link | None = None
        self._lock = threading.Lock()
        self._commands: deque[Callable[[], None]] = deque()
        self._waking = False
        self._names: set[str] = set()
        self._closed = False
        # Touched by the I/O thread only.
        self._connection: pika.SelectConnection | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._collected: dict[str, list[Delivery]] = {}
        self._acknowledging: dict[Subscription, None] = {}

    def attach(self, link: Link) -> None:
        """Use `link`, once, before it starts."""
        self._link = link

    # -- any thread ------------------------------------------------------------------------------------------------

    def consume(self, queue: Queue, prefetch: int, start: StreamStart | None) -> None:
        """See `Transport.consume`."""
        if (queue.kind is QueueKind.STREAM) != (start is not None):
            raise LocalProtocolError(f"{queue.name}: a stream needs a start, and nothing else has one")
        with self._lock:
            if self._closed:
                raise BrokerUnavailable("the transport is closed")
            if queue.name in self._names:
                raise LocalProtocolError(f"{queue.name} is consumed already")
            self._names.add(queue.name)
        subscription = Subscription(self, queue, prefetch, start)
        self._hand_over(lambda: self._consume(subscription))

    def cancel(self, queue: str) -> None:
        """See `Transport.cancel`."""
        with self._lock:
            self._names.discard(queue)
        self._hand_over(lambda: self._cancel(queue))

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """See `Transport.settle`."""
        handle = delivery.handle
        if not isinstance(handle, _Handle):
            raise LocalProtocolError("this delivery is of another transport")
        self._hand_over(lambda: self._settle(handle, outcome))

    def close(self) -> None:
        """Accept no more subscriptions."""
        with self._lock:
            self._closed = True

    def _hand_over(self, command: Callable[[], None]) -> None:
        """Queue a command; however many are queued before the I/O thread looks, it is woken once."""
        with self._lock:
            self._commands.append(command)
            wake, self._waking = not self._waking, True
        if wake:
            assert self._link is not None
            self._link.call(self._run_commands)

    # -- the link's I/O thread -------------------------------------------------------------------------------------

    def opened(self, connection: pika.SelectConnection) -> None:
        """A connection is there: subscribe to everything."""
        self._connection = connection
        for subscription in self._subscriptions.values():
            subscription.open(connection)

    def lost(self) -> None:
        """The connection is gone; what has arrived is still handed over."""
        self._connection = None
        for subscription in self._subscriptions.values():
            subscription.close()
        self._deliver()

    def collect(self, delivery: Delivery) -> None:
        """Keep one delivery until the end of this turn of the loop."""
        if not self._collected:
            assert self._link is not None
            self._link.later(0, self._deliver)
        self._collected.setdefault(delivery.queue, []).append(delivery)

    def retry(self, subscription: Subscription, generation: int, failures: int, reason: str) -> None:
        """Report a refused subscription, and try again later."""

        def again() -> None:
            name = subscription.queue.name
            if self._connection is not None and self._subscriptions.get(name) is subscription:
                subscription.retry(self._connection, generation)

        assert self._link is not None
        self._link.later(self._link.retry_delay_s(failures - 1), again)
        self._sink([ConsumerWaiting(subscription.queue.name, reason)])

    def _run_commands(self) -> None:
        with self._lock:
            commands, self._commands = self._commands, deque()
            self._waking = False
        for command in commands:
            command()
        for subscription in self._acknowledging:
            subscription.send_acknowledgements()
        self._acknowledging.clear()

    def _consume(self, subscription: Subscription) -> None:
        self._subscriptions[subscription.queue.name] = subscription
        if self._connection is not None:
            subscription.open(self._connection)

    def _cancel(self, queue: str) -> None:
        subscription = self._subscriptions.pop(queue, None)
        if subscription is not None:
            subscription.send_acknowledgements()
            subscription.close()
            self._collected.pop(queue, None)

    def _settle(self, handle: _Handle, outcome: Outcome) -> None:
        handle.subscription.settle(handle, outcome)
        self._acknowledging[handle.subscription] = None

    def _deliver(self) -> None:
        collected, self._collected = self._collected, {}
        events: list[TransportEvent] = [Delivered(queue, tuple(deliveries)) for queue, deliveries in collected.items()]
        if events:
            self._sink(events)


def _death(headers: Mapping[str, Any]) -> Death | None:
    return Death(str(headers[_DEATH_QUEUE]), str(headers[_DEATH_REASON])) if _DEATH_QUEUE in headers else None


def _declare_exclusive(channel: Channel, queue: Queue) -> None:
    channel.queue_declare(
        queue.name, exclusive=True, auto_delete=True, arguments=queue.declared_arguments, callback=_answered
    )
    for binding in queue.bindings:
        channel.queue_bind(binding.queue, binding.exchange, binding.routing_key, callback=_answered)


def _answered(_frame: Any) -> None:
    """Having a callback is what makes pika hold back the next call until this one is answered."""
