"""How do publishes reach RabbitMQ, each at least once and in order?

`Publisher` is the publishing half of the transport. Callers add to the outbox under one lock and wake the I/O thread
once for however many publishes; the I/O thread sends all that waits and never awaits a confirm. Durable exchanges and
queues are declared here too, before anything is published on a new connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
from pika import exceptions, spec
from pika.channel import Channel

from shared.errors import BrokerUnavailable
from shared.transport.broker_settings import Endpoint
from shared.transport.connection import Link, describe
from shared.transport.outbox import Outbox, Pending
from shared.transport.port import Blocked, Confirmed, Refused, Sink, Topology, TransportEvent

_NOT_FOUND = 404
# RabbitMQ's words, behind a 404, for a queue that is there but not up yet, as a stream is behind a restart.
_NOT_UP_YET = "is down or inaccessible"
_TRANSIENT, _PERSISTENT = 1, 2
# Why publishing stands still: the broker's resource alarm, an exchange or queue that is not there (yet), or no confirm.
_ALARM, _MISSING, _SILENCE = "alarm", "missing", "silence"
PATIENCE_S, _PATIENCE_MAX_S = 15.0, 480.0
"""So long the oldest of what was sent is not confirmed before all that is not is sent again on another channel: a
broker that loses the leader of a stream may lose a publish with it, keep the connection, and confirm all others. The
time doubles while that does not help."""
_WATCH_S = 0.5
_CLOSED = "the transport is closed"


@dataclass(slots=True, eq=False)
class _Declaration:
    """One topology on its way to the broker; `done` once it has been there, `failure` if it was refused at first.

    `waits_for` says what the broker has not got up yet.
    """

    topology: Topology
    done: bool = False
    failure: str | None = None
    waits_for: str = ""


class Publisher:
    """Outbox, confirms and declarations on the publishing connection."""

    def __init__(self, window_bytes: int, sink: Sink) -> None:
        self._sink = sink
        self._link: Link | None = None
        # Guards the outbox and the flags below it; callers wait on it for room, confirms and declarations.
        self._changed = threading.Condition()
        self._outbox = Outbox(window_bytes)
        self._waking = False
        self._closed = False
        self._declarations: list[_Declaration] = []
        # Touched by the I/O thread only.
        self._connection: pika.SelectConnection | None = None
        self._user = ""
        self._channel: Channel | None = None
        self._opening = False
        self._distrusted = False
        self._undeclared: list[_Declaration] = []
        self._declaring = False
        self._events: list[TransportEvent] = []
        self._announcing = False
        self._announced = 0
        self._watching = False
        self._moved_at = 0.0
        self._patience_s = PATIENCE_S
        self._standstill: dict[str, str] = {}
        self._failures = 0

    def attach(self, link: Link) -> None:
        """Use `link`, once, before it starts."""
        self._link = link

    # -- any thread ------------------------------------------------------------------------------------------------

    def publish(self, exchange: str, routing_key: str, body: bytes, *, persistent: bool) -> int:
        """See `Transport.publish`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._outbox.fits(len(body)))
            if self._closed:
                raise BrokerUnavailable(_CLOSED)
            sequence = self._outbox.add(exchange, routing_key, body, persistent=persistent)
            wake, self._waking = not self._waking, True
        if wake:
            self._call(self._flush)
        return sequence

    def declare(self, topology: Topology, timeout_s: float) -> None:
        """See `Transport.declare`; waits up to `timeout_s`."""
        declaration = _Declaration(topology)
        with self._changed:
            self._declarations.append(declaration)
        self._call(partial(self._begin_declaring, declaration))
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or declaration.done or declaration.failure is not None, timeout_s
            )
            if declaration.done:
                return
            self._declarations = [other for other in self._declarations if other is not declaration]
            reason = declaration.failure or declaration.waits_for or f"no answer within {timeout_s:.0f} s"
        raise BrokerUnavailable(f"the broker did not accept the declaration of queues and exchanges: {reason}")

    def drain(self, timeout_s: float) -> None:
        """Take no more publishes, and wait up to `timeout_s` until all are settled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            deadline = time.monotonic() + timeout_s
            while not self._outbox.empty and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _call(self, work: Callable[[], None]) -> None:
        assert self._link is not None
        self._link.call(work)

    # -- the link's I/O thread -------------------------------------------------------------------------------------

    def opened(self, connection: pika.SelectConnection, endpoint: Endpoint) -> None:
        """A connection is there: declare, then publish."""
        self._connection = connection
        self._user = endpoint.user
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(lambda *_: self._go_on(_ALARM))
        if not self._watching:
            self._watching = True
            self._watch()
        with self._changed:
            self._undeclared = list(self._declarations)
        self._declare_next()

    def lost(self) -> None:
        """The connection is gone: everything unsettled waits for the next one."""
        self._connection = self._channel = None
        self._opening = self._declaring = self._distrusted = False
        with self._changed:
            self._outbox.channel_lost()
        self._announce()
        for cause in list(self._standstill):
            self._go_on(cause)

    def ended(self) -> None:
        """The I/O thread ends: release everybody who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _begin_declaring(self, declaration: _Declaration) -> None:
        if self._connection is not None and not declaration.done and declaration not in self._undeclared:
            self._undeclared.append(declaration)
            self._declare_next()

    def _declare_next(self) -> None:
        connection = self._connection
        if connection is None or not connection.is_open or self._declaring:
            return
        if not self._undeclared:
            self._open_channel()
            return
        self._declaring = True
        declaration = self._undeclared[0]
        connection.channel(on_open_callback=lambda channel: self._declare(channel, declaration))

    def _declare(self, channel: Channel, declaration: _Declaration) -> None:
        # A channel of its own: a refused declaration closes it, and must not take publishes along.
        channel.add_on_close_callback(lambda _channel, error: self._declared(declaration, error))
        declare_topology(channel, declaration.topology)
        # Sent behind all answers: pika holds back what follows a synchronous call.
        channel.close()

    def _declared(self, declaration: _Declaration, error: BaseException) -> None:
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        self._declaring = False
        if isinstance(error, exceptions.ChannelClosedByBroker) and (declaration.done or _will_pass(error)):
            declaration.waits_for = describe(error)
            self._stand_still(_MISSING, describe(error))
            self._retry(self._declare_next)
            return
        self._go_on(_MISSING)
        with self._changed:
            if isinstance(error, exceptions.ChannelClosedByBroker):
                declaration.failure = describe(error)
            else:
                declaration.done = True
            self._changed.notify_all()
        self._undeclared.remove(declaration)
        self._declare_next()

    def _open_channel(self) -> None:
        connection = self._connection
        if connection is None or not connection.is_open or self._opening or self._channel is not None:
            return
        self._opening = True
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Channel) -> None:
        self._opening = False
        self._channel = channel
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._on_return)
        # Needs no answer: the broker reads it before the publishes that follow.
        channel.confirm_delivery(partial(self._on_confirm, channel))
        self._flush()

    def _channel_closed(self, channel: Channel, error: BaseException) -> None:
        if channel is not self._channel or self._connection is None or not self._connection.is_open:
            return
        self._channel, self._distrusted = None, False
        if isinstance(error, exceptions.ChannelClosed) and error.reply_code == _NOT_FOUND:
            # Who declares the exchange may only be starting: nothing is lost by waiting.
            with self._changed:
                self._outbox.channel_lost()
            self._stand_still(_MISSING, describe(error))
            self._retry(self._open_channel)
            return
        with self._changed:
            culprit = self._outbox.channel_refused()
        if culprit is not None:
            self._refuse(culprit, describe(error))
        self._open_channel()

    def _flush(self) -> None:
        channel = self._channel
        ready = channel is not None and channel.is_open and not self._distrusted
        with self._changed:
            self._waking = False
            if self._outbox.nothing_in_flight:
                self._moved_at = time.monotonic()
            batch = self._outbox.take() if ready else []
        for pending in batch:
            assert channel is not None
            channel.basic_publish(
                pending.exchange,
                pending.routing_key,
                pending.body,
                self._properties(pending),
                # A persistent message without a queue is a loss that somebody has to hear of.
                mandatory=pending.persistent,
            )

    def _properties(self, pending: Pending) -> spec.BasicProperties:
        if pending.persistent:
            identity = str(pending.sequence)
            return spec.BasicProperties(delivery_mode=_PERSISTENT, user_id=self._user, message_id=identity)
        return spec.BasicProperties(delivery_mode=_TRANSIENT, user_id=self._user)

    def _on_confirm(self, channel: Channel, frame: Any) -> None:
        if channel is not self._channel:
            return  # its tags mean nothing any more
        method = frame.method
        with self._changed:
            before = self._outbox.through
            settled = self._outbox.settle(method.delivery_tag, multiple=method.multiple)
            goes_on = self._outbox.through > before
        if isinstance(method, spec.Basic.Nack):
            self._distrusted = True
            for pending in settled:
                self._refuse(pending, "the broker rejected it: its queue is full, or has no leader")
        self._failures = 0
        self._go_on(_MISSING)
        if goes_on:
            self._moved_at, self._patience_s = time.monotonic(), PATIENCE_S
            self._go_on(_SILENCE)
        self._announce_soon()

    def _on_return(self, channel: Channel, method: Any, properties: spec.BasicProperties, _body: bytes) -> None:
        if channel is not self._channel:
            return
        # The confirm of the same message follows, and moves the watermark behind this event.
        self._events.append(Refused(int(properties.message_id), method.routing_key, "no queue is bound for it"))
        self._announce_soon()

    def _refuse(self, pending: Pending, reason: str) -> None:
        self._events.append(Refused(pending.sequence, pending.routing_key, reason))
        self._announce_soon()

    def _announce_soon(self) -> None:
        if not self._announcing:
            self._announcing = True
            assert self._link is not None
            self._link.later(0, self._announce)

    def _announce(self) -> None:
        """Tell about everything since the last turn of the loop at once, and let those go on who wait for room."""
        self._announcing = False
        with self._changed:
            through = self._outbox.through
            self._changed.notify_all()
        events, self._events = self._events, []
        if through > self._announced:
            self._announced = through
            events.append(Confirmed(through))
        if events:
            self._sink(events)
        if self._distrusted and self._outbox_settled():
            self._leave_channel()
        # On probation the next one leaves when the one before is settled.
        self._flush()

    def _outbox_settled(self) -> bool:
        with self._changed:
            return self._outbox.nothing_in_flight

    def _leave_channel(self) -> None:
        """Go on with another channel; what is not settled is sent again on it.

        RabbitMQ 3.10 looks up a quorum queue's leader once per channel. If that node was lost and no other was elected
        yet, it rejects whatever comes on this channel until the lost node is back.
        """
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        with self._changed:
            self._outbox.channel_lost()
        self._distrusted, self._channel = False, None
        channel.close()
        self._open_channel()

    def _watch(self) -> None:
        """Look for a channel on which something is not confirmed any more."""
        still_s = time.monotonic() - self._moved_at
        if _ALARM in self._standstill:
            self._moved_at = time.monotonic()
        elif self._channel is not None and still_s > self._patience_s and not self._outbox_settled():
            self._stand_still(_SILENCE, f"something was not confirmed for {self._patience_s:.0f} s; it is sent again")
            self._patience_s = min(2 * self._patience_s, _PATIENCE_MAX_S)
            self._leave_channel()
        assert self._link is not None
        self._link.later(_WATCH_S, self._watch)

    def _retry(self, work: Callable[[], None]) -> None:
        assert self._link is not None
        self._link.later(self._link.retry_delay_s(self._failures), work)
        self._failures += 1

    def _on_blocked(self, _connection: pika.SelectConnection, frame: Any) -> None:
        self._stand_still(_ALARM, str(frame.method.reason))

    def _stand_still(self, cause: str, reason: str) -> None:
        if self._standstill.get(cause) != reason:
            self._standstill[cause] = reason
            self._sink([Blocked(True, reason)])

    def _go_on(self, cause: str) -> None:
        reason = self._standstill.pop(cause, None)
        if reason is not None:
            self._sink([Blocked(False, reason)])


def _will_pass(error: exceptions.ChannelClosedByBroker) -> bool:
    return error.reply_code == _NOT_FOUND and _NOT_UP_YET in error.reply_text


def declare_topology(channel: Channel, topology: Topology) -> None:
    """Queue every declaration of `topology` on `channel`; pika sends each behind the answer to the one before."""

    def answered(_frame: Any) -> None:
        """Having a callback is what makes a declaration wait for its answer."""

    for exchange in topology.exchanges:
        channel.exchange_declare(exchange.name, exchange.kind.value, durable=True, callback=answered)
    for queue in topology.queues:
        channel.queue_declare(queue.name, durable=True, arguments=queue.declared_arguments, callback=answered)
        for binding in queue.bindings:
            channel.queue_bind(binding.queue, binding.exchange, binding.routing_key, callback=answered)
