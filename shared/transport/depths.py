"""How full are RabbitMQ's queues? Passive declarations, which change nothing, one after the other.

They use the consuming connection: a resource alarm of the broker stops every call on a connection that has published.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pika
from pika import exceptions
from pika.channel import Channel

from shared.errors import BrokerUnavailable
from shared.transport.connection import Link, describe
from shared.transport.port import Depth, Queue, QueueKind

_NOT_FOUND = 404


@dataclass(slots=True, eq=False)
class _Question:
    """The queues that one caller asks about, and what has been answered. `failure` ends it early."""

    left: deque[Queue]
    found: dict[str, Depth | None] = field(default_factory=dict)
    failure: str | None = None


class DepthReader:
    """Answers `Transport.depths`."""

    def __init__(self) -> None:
        self._link: Link | None = None
        # Guards the questions; callers wait on it.
        self._changed = threading.Condition()
        self._asked: list[_Question] = []
        self._ended = False
        # Touched by the I/O thread only.
        self._connection: pika.SelectConnection | None = None

    def attach(self, link: Link) -> None:
        """Use `link`, once, before it starts."""
        self._link = link

    def ask(self, queues: Iterable[Queue], timeout_s: float) -> Mapping[str, Depth | None]:
        """See `Transport.depths`. Any thread but the link's."""
        assert self._link is not None
        question = _Question(deque(queues))
        with self._changed:
            if self._ended:
                raise BrokerUnavailable("the transport is closed")
            self._asked.append(question)
        self._link.call(lambda: self._begin(question))
        with self._changed:
            answered = self._changed.wait_for(lambda: question.failure or not question.left, timeout_s)
            self._asked.remove(question)
            failure = question.failure if answered else f"no answer within {timeout_s:.0f} s"
        if failure:
            raise BrokerUnavailable(f"the broker did not say how full its queues are: {failure}")
        return question.found

    # -- the link's I/O thread -------------------------------------------------------------------------------------

    def opened(self, connection: pika.SelectConnection) -> None:
        """A connection is there."""
        self._connection = connection

    def lost(self, reason: str) -> None:
        """The connection is gone, with whatever was asked on it."""
        self._connection = None
        with self._changed:
            asked = list(self._asked)
        self._fail(asked, reason)

    def ended(self) -> None:
        """The I/O thread ends: nothing is answered any more."""
        with self._changed:
            self._ended = True
            asked = list(self._asked)
        self._fail(asked, "the transport is closed")

    def _begin(self, question: _Question) -> None:
        if self._connection is None or not self._connection.is_open:
            self._fail([question], "not connected")
        elif question.left:
            self._connection.channel(on_open_callback=lambda channel: self._opened(channel, question))

    def _opened(self, channel: Channel, question: _Question) -> None:
        channel.add_on_close_callback(lambda _channel, error: self._closed(error, question))
        self._next(channel, question)

    def _next(self, channel: Channel, question: _Question) -> None:
        if not question.left:
            channel.close()
            return
        queue = question.left[0]
        channel.queue_declare(
            queue.name, passive=True, callback=lambda frame: self._answered(channel, question, frame.method)
        )

    def _answered(self, channel: Channel, question: _Question, method: Any) -> None:
        stream = question.left[0].kind is QueueKind.STREAM
        # RabbitMQ 3.10 answers 0 for every stream.
        self._settle(question, Depth(None, None) if stream else Depth(method.message_count, method.consumer_count))
        self._next(channel, question)

    def _closed(self, error: BaseException, question: _Question) -> None:
        if not question.left or question.failure is not None:
            return
        if isinstance(error, exceptions.ChannelClosedByBroker) and error.reply_code == _NOT_FOUND:
            self._settle(question, None)
            self._begin(question)
        else:
            self._fail([question], describe(error))

    def _settle(self, question: _Question, depth: Depth | None) -> None:
        with self._changed:
            question.found[question.left.popleft().name] = depth
            self._changed.notify_all()

    def _fail(self, questions: Sequence[_Question], reason: str) -> None:
        with self._changed:
            for question in questions:
                question.failure = reason
            self._changed.notify_all()
