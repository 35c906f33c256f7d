"""The port to a broker: what Comitia asks of RabbitMQ, in one small interface.

Two adapters keep this contract, and one contract suite (`tests/contracts`) holds both to it:
`shared.transport.rabbitmq` speaks to a real broker, `shared.transport.memory` is a broker in this process.

The adapter never calls a handler. What happens (deliveries, confirms, lost connections) is handed to a *sink*
as a list of events; the sink only stores them, and the owner's work thread picks them up. So no
exception of a handler can reach an I/O thread, and no training can starve a heartbeat.

What an adapter promises:

* `publish` is at least once for persistent messages. A publish that was not confirmed when a connection broke, or for
  too long, is sent again, in the original order; consumers must be idempotent. A transient message may be lost.
* `Confirmed.through` is a watermark: every publish up to and including it has been taken over by the broker,
  or was reported as `Refused`.
* Consumers, exclusive queues and their bindings are restored after a reconnect. Streams go on behind the last
  offset that was delivered; a stream never delivers one offset twice to the same `consume`.
* `settle` of a delivery from before a reconnect does nothing: the broker delivers it again.
* Every buffer is bounded: `publish` waits while more than `window_bytes` are unconfirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol


class QueueKind(StrEnum):
    """The three kinds of RabbitMQ queue that the topology uses."""

    QUORUM = "quorum"
    CLASSIC = "classic"
    STREAM = "stream"


class ExchangeKind(StrEnum):
    """The kind of exchange for messages, and that for dead letters."""

    TOPIC = "topic"
    FANOUT = "fanout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: ExchangeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Messages of `exchange` whose routing key matches `routing_key` reach `queue`."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue and everything needed to declare it.

    `exclusive` queues (classic, auto-deleted) belong to the connection that consumes them: the adapter declares them
    and their `bindings` when it subscribes, and again after a reconnect. All others are durable and declared by
    `Transport.declare`.
    """

    name: str
    kind: QueueKind
    exclusive: bool = False
    single_active_consumer: bool = False
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()

    @property
    def declared_arguments(self) -> dict[str, str | int]:
        """All arguments of the broker's declaration: two declarations agree only if every one of them does."""
        active = {"x-single-active-consumer": True} if self.single_active_consumer else {}
        return {"x-queue-type": self.kind.value, **active, **self.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Durable exchanges and queues (with their bindings) that one federation needs."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]


StreamStart = int | Literal["first", "next"]
"""Where a stream consumer begins: an offset (inclusive), the oldest kept entry, or only what comes from now on."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why a message is a dead letter: the first queue that gave it up, and the broker's word for the reason.

    The reason is "rejected" (a consumer's `DEAD_LETTER`) or "delivery_limit" (put back too often); a broker whose
    queues were declared by somebody else may know more.
    """

    queue: str
    reason: str


@dataclass(frozen=True, slots=True)
class Depth:
    """How full a queue is: messages that wait for a consumer (unsettled ones do not), and its consumers.

    Of several consumers where one is active at a time, a broker may count that one only. Both are None for a stream,
    whose entries and readers not every broker counts.
    """

    messages: int | None
    consumers: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message that a consumer received and has to settle.

    `handle` is opaque to everybody but the adapter. `user` is the broker's authenticated `user-id` or None if the
    publisher left it out. `offset` is set on streams only, `death` on dead letters only.
    """

    queue: str
    body: bytes
    routing_key: str
    redelivered: bool
    handle: object
    user: str | None = None
    offset: int | None = None
    death: Death | None = None


class Outcome(StrEnum):
    """How a delivery ends. On a stream every outcome only returns credit."""

    ACK = "ack"
    PUT_BACK = "put_back"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class Delivered:
    """Messages of one queue, in their order."""

    queue: str
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Every publish with a sequence number <= `through` is settled (confirmed or refused)."""

    through: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker refused one publish for good.

    Its queue is full (reject-publish), the message is above the broker's limit, the user may not publish there,
    or a persistent message has no queue to go to.
    """

    sequence: int
    routing_key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """Publishing and consuming work. `reconnects` counts how often this happened after the first time."""

    broker: str
    reconnects: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection was lost; the adapter is reconnecting with bounded back-off."""

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Publishing stands still (`active`) or goes on: the broker's alarm, an exchange not declared yet, no confirm."""

    active: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ConsumerWaiting:
    """A subscription was refused for now (queue not declared yet, channel closed by the broker); it is retried."""

    queue: str
    reason: str


TransportEvent = Delivered | Confirmed | Refused | Connected | Disconnected | Blocked | ConsumerWaiting
Sink = Callable[[Sequence[TransportEvent]], None]


class Transport(Protocol):
    """A client's two connections to a broker (publishing and consuming), or one seat at the in-process broker.

    All methods may be called from any thread except the adapter's own.
    """

    def connect(self) -> str:
        """Wait until publishing and consuming work; return the broker's product and version ("RabbitMQ 4.0.5").

        Connecting begins with the transport itself, so everything else may be called before. Returns at once when
        the transport has been connected before.

        Raises:
            BrokerUnavailable: no broker within the start-up time, or it refuses the user; the message names host,
                port and remedy, never credentials.
        """

    def declare(self, topology: Topology) -> None:
        """Declare exchanges, durable queues and bindings, now and after every reconnect. Idempotent.

        Raises:
            BrokerUnavailable: the broker cannot be reached within the start-up time, or refuses the declaration
                (a queue of that name with other arguments, no permission); the message says which.
        """

    def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
        """Hand over one message and return its sequence number (1, 2, 3, …). Confirms arrive as `Confirmed`.

        Waits while more than `window_bytes` are unconfirmed, for example while the broker is blocked or away.

        Raises:
            BrokerUnavailable: the transport is closed, or was closed while waiting.
        """

    def consume(self, queue: Queue, *, prefetch: int, start: StreamStart | None = None) -> None:
        """Subscribe. `prefetch` bounds unsettled deliveries; `start` is required for streams and only there.

        Raises:
            LocalProtocolError: a second subscription to the same queue, or a `start` where none belongs.
            BrokerUnavailable: the transport is closed.
        """

    def cancel(self, queue: str) -> None:
        """End a subscription; its unsettled deliveries return to the queue. Unknown names are ignored."""

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        """End one delivery."""

    def depths(self, queues: Sequence[Queue]) -> Mapping[str, Depth | None]:
        """How full durable queues are, by name; None for one that is not declared. Changes nothing.

        Raises:
            BrokerUnavailable: no answer within the start-up time, or the connection broke while asking.
        """

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait up to `timeout_s` for outstanding confirms, then close. Unsettled deliveries return. Idempotent."""
