"""How is one connection to a broker kept alive?

A `Link` owns an I/O thread and its loop for life. The loop outlives every connection, so work can be handed to it at
any moment, also while there is none. A lost connection is replaced by one to the next host of the list, with
exponential back-off and jitter once all of them have failed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

import pika
from pika import exceptions
from pika.adapters.select_connection import IOLoop

from shared.transport.broker_settings import HANDSHAKE_TIMEOUT_S, Endpoint

_BACKOFF_FIRST_S = 0.1
_BACKOFF_MAX_S = 5.0


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds to wait after `failures` failures in a row; `jitter` in [0, 1) spreads those who failed together."""
    longest: float = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2 ** min(failures, 16))
    return longest * (0.5 + 0.5 * jitter)


class _Connection(pika.SelectConnection):  # type: ignore[misc]
    """A connection that can be given up without the broker's consent."""

    def abandon(self) -> None:
        """Close the socket; `on_close_callback` follows."""
        self._terminate_stream(exceptions.ConnectionClosedByClient(0, "the broker did not answer to closing"))


class LinkOwner(Protocol):
    """Who uses a link. Everything is called in the link's I/O thread."""

    def on_open(self, connection: pika.SelectConnection, endpoint: Endpoint) -> None:
        """A new connection is open."""

    def on_down(self, reason: str, *, refused: bool) -> None:
        """The connection is lost, or an attempt failed; `refused`: the broker does not accept this user."""

    def on_ended(self) -> None:
        """The I/O thread ends; nothing is called afterwards."""


class Link:
    """One connection at a time, and the I/O thread that owns it."""

    def __init__(self, name: str, hosts: tuple[Endpoint, ...], owner: LinkOwner) -> None:
        self._hosts = hosts
        self._owner = owner
        self._loop = IOLoop()
        self._connection: _Connection | None = None
        self._open = False
        self._jitter = random.Random()
        self._failures = 0
        self._host = 0
        self._stopping = False
        self._grace_s = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` in the I/O thread soon. Any thread; dropped when the link has stopped."""
        self._loop.add_callback_threadsafe(work)

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Run `work` after `delay_s`; 0 means at the end of this turn of the loop. I/O thread only."""
        self._loop.call_later(delay_s, work)

    def retry_delay_s(self, failures: int) -> float:
        """A delay before trying something again that failed `failures` times in a row. I/O thread only."""
        return backoff_s(failures, self._jitter.random())

    def stop(self, grace_s: float) -> None:
        """Begin to close the connection, giving the broker `grace_s` to agree, and to end the thread. Any thread."""
        self.call(lambda: self._begin_stop(grace_s))

    def join(self) -> None:
        """Wait until the thread has ended. Any other thread."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.add_callback_threadsafe(self._connect)
            self._loop.start()
        finally:
            self._owner.on_ended()
            self._loop.close()

    def _connect(self) -> None:
        if self._stopping:
            return
        endpoint = self._hosts[self._host]
        self._connection = _Connection(
            endpoint.parameters,
            on_open_callback=lambda connection: self._opened(connection, endpoint),
            on_open_error_callback=self._down,
            on_close_callback=self._down,
            custom_ioloop=self._loop,
        )

    def _opened(self, connection: pika.SelectConnection, endpoint: Endpoint) -> None:
        self._failures = 0
        self._open = True
        if self._stopping:
            self._close()
            return
        self._owner.on_open(connection, endpoint)

    def _down(self, connection: pika.SelectConnection, error: BaseException) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._open = False
        host = self._hosts[self._host]
        self._owner.on_down(f"{host.label}: {describe(error)}", refused=_is_refusal(error))
        if self._stopping:
            self._loop.stop()
            return
        self._host = (self._host + 1) % len(self._hosts)
        self._loop.call_later(self.retry_delay_s(self._failures // len(self._hosts)), self._connect)
        self._failures += 1

    def _begin_stop(self, grace_s: float) -> None:
        self._stopping = True
        self._grace_s = grace_s
        if self._connection is None:
            self._loop.stop()
        elif self._open:
            self._close()
        else:
            # pika cannot abort a handshake (its own assertion fails), but ends it by a timeout; `_opened` or `_down`
            # follows. Only a name server that does not answer is outside of that timeout.
            self._loop.call_later(HANDSHAKE_TIMEOUT_S + grace_s, self._loop.stop)

    def _close(self) -> None:
        assert self._connection is not None
        self._loop.call_later(self._grace_s, self._abandon)
        if self._connection.is_open:
            self._connection.close()

    def _abandon(self) -> None:
        if self._connection is not None:
            self._connection.abandon()


def broker_name(connection: pika.SelectConnection) -> str:
    """Product and version that the broker gave in the handshake, for example "RabbitMQ 4.0.5"."""
    properties: dict[str, Any] = connection.server_properties or {}
    return f"{properties.get('product', 'unknown broker')} {properties.get('version', '')}".strip()


def describe(error: BaseException) -> str:
    """The cause inside pika's layers of exceptions, in one line without credentials."""
    while True:
        inner = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args[:1]]
        causes = [cause for cause in inner if isinstance(cause, BaseException)]
        if not causes:
            break
        error = causes[-1]
    if isinstance(error, exceptions.ConnectionClosed | exceptions.ChannelClosed):
        return f"{error.reply_code} {error.reply_text}"
    return f"{type(error).__name__}: {error}"


def _is_refusal(error: BaseException) -> bool:
    """Whether the broker has said no; pika goes by the step at which the connection ended, even without a word."""
    guessed = isinstance(error, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError)
    return guessed and exceptions.ConnectionClosedByBroker.__name__ in str(error)
