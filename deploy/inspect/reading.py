"""How is a queue or stream read to its present end, through the port?

Nobody tells a consumer where the end is: it has been reached when nothing came for `QUIET_S`. Only a subscription that
begins may take a busy broker longer, so the first message is waited for up to `FIRST_S`, unless the queue is empty.
A quick federation's streams never rest for so long. Their end is also the first message that was written after the
reader came, which a second desk's subscription shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.errors import BrokerUnavailable
from shared.inbox import Inbox
from shared.transport.port import (
    Confirmed,
    ConsumerWaiting,
    Delivered,
    Delivery,
    Disconnected,
    Queue,
    Refused,
    StreamStart,
    Transport,
    TransportEvent,
)

QUIET_S = 1.0
FIRST_S = 5.0
CONFIRM_S = 10.0


@dataclass(frozen=True, slots=True)
class Desk:
    """A transport and the inbox that is its sink."""

    transport: Transport
    inbox: Inbox[TransportEvent] = field(repr=False)

    def read(
        self, queue: Queue, *, prefetch: int, start: StreamStart | None = None, quiet_s: float = QUIET_S
    ) -> Iterator[Delivery]:
        """Subscribe, and yield deliveries until none has come for `quiet_s`. Settling them is up to the caller.

        Raises:
            BrokerUnavailable: there is no such queue, or the connection is lost.
        """
        depth = self.transport.depths([queue])[queue.name]
        if depth is None:
            raise BrokerUnavailable(f"there is no queue {queue.name}; the coordinator declares it when it starts")
        wait_s = quiet_s if depth.messages == 0 else max(FIRST_S, quiet_s)
        # What an earlier reading left behind has gone back to its queue.
        self.inbox.take(0)
        self.transport.consume(queue, prefetch=prefetch, start=start)
        while events := self.inbox.take(wait_s):
            for event in events:
                match event:
                    case Delivered(queue=queue.name, deliveries=deliveries):
                        wait_s = quiet_s
                        yield from deliveries
                    case ConsumerWaiting(queue=name, reason=reason):
                        raise BrokerUnavailable(f"queue {name} cannot be read: {reason}")
                    case Disconnected(reason=reason):
                        raise BrokerUnavailable(f"the connection was lost while reading {queue.name}: {reason}")
                    case _:
                        continue

    def read_stream(self, stream: Queue, later: Desk, *, prefetch: int, quiet_s: float = QUIET_S) -> Iterator[Delivery]:
        """Read a stream from its oldest kept entry to its present end, settle what is yielded, leave the stream.

        Args:
            stream: which.
            later: another desk at the same broker, with a transport of its own.
            prefetch: bounds unsettled deliveries.
            quiet_s: how long nothing has to come for the stream to have ended (seconds).

        Raises:
            BrokerUnavailable: there is no such stream, or the connection is lost.
        """
        later.transport.consume(stream, prefetch=1, start="next")
        end: int | None = None
        for delivery in self.read(stream, prefetch=prefetch, start="first", quiet_s=quiet_s):
            self.transport.settle(delivery)
            yield delivery
            end = later.first_offset(stream) if end is None else end
            if end is not None and delivery.offset is not None and delivery.offset >= end:
                break
        for desk in (self, later):
            desk.transport.cancel(stream.name)

    def first_offset(self, stream: Queue) -> int | None:
        """Where the first message stands that came from this stream since the last call, if any has."""
        arrived = (event for event in self.inbox.take(0) if isinstance(event, Delivered) and event.queue == stream.name)
        return next((delivery.offset for event in arrived for delivery in event.deliveries), None)

    def publish(self, exchange: str, routing_key: str, body: bytes) -> None:
        """Publish one message and wait until the broker has taken it over.

        Raises:
            BrokerUnavailable: it was refused, or not confirmed within `CONFIRM_S`.
        """
        sequence = self.transport.publish(exchange, routing_key, body)
        deadline = time.monotonic() + CONFIRM_S
        refusal: str | None = None
        while (left := deadline - time.monotonic()) > 0:
            for event in self.inbox.take(left):
                match event:
                    case Refused(sequence=refused, reason=reason) if refused == sequence:
                        refusal = reason
                    case Confirmed(through=through) if through >= sequence:
                        if refusal is not None:
                            raise BrokerUnavailable(f"{routing_key} does not take the message: {refusal}")
                        return
                    case _:
                        continue
        raise BrokerUnavailable(f"{routing_key} did not take the message within {CONFIRM_S:.0f} s")
