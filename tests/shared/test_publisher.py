"""What a publisher does with what waits when a channel goes bad; the broker here answers by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pika import exceptions, spec

from shared.transport import publishing
from shared.transport.port import Blocked, Confirmed, Refused, TransportEvent
from shared.transport.publishing import PATIENCE_S, Publisher

MISSING = exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'test.up' in vhost '/'")
TOO_LARGE = exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED - message size is larger than the limit")


class Link:
    """Runs what it is asked to when the test says so, apart from what comes again for ever."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.watch: Callable[[], None] | None = None

    def call(self, work: Callable[[], None]) -> None:
        work()

    def retry_delay_s(self, failures: int) -> float:
        return 0.1

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        if delay_s < 0.5:
            self.waiting.append(work)
        else:
            self.watch = work

    def turn(self) -> None:
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()


class Channel:
    """A channel that keeps what is published on it."""

    def __init__(self) -> None:
        self.is_open = True
        self.sent: list[bytes] = []
        self.closed: Any = None
        self.confirmed: Any = None

    def add_on_close_callback(self, closed: Any) -> None:
        self.closed = closed

    def confirm_delivery(self, confirmed: Any) -> None:
        self.confirmed = confirmed

    def basic_publish(self, exchange: str, routing_key: str, body: bytes, *_: Any, **__: Any) -> None:
        assert self.is_open
        self.sent.append(body)

    def add_on_return_callback(self, _: Any) -> None:
        """Nothing is returned."""

    def close(self) -> None:
        self.is_open = False

    def end(self, error: Exception) -> None:
        self.is_open = False
        self.closed(self, error)


class Bench:
    """A publisher, its channels and its events."""

    def __init__(self) -> None:
        self.events: list[TransportEvent] = []
        self.channels: list[Channel] = []
        self.link = Link()
        self.publisher = Publisher(1000, self.events.extend)
        self.publisher.attach(self.link)  # type: ignore[arg-type]
        connection = SimpleNamespace(
            is_open=True,
            channel=self._open,
            add_on_connection_blocked_callback=lambda _: None,
            add_on_connection_unblocked_callback=lambda _: None,
        )
        self.publisher.opened(connection, SimpleNamespace(user="somebody"))  # type: ignore[arg-type]

    def _open(self, on_open_callback: Callable[[Channel], None]) -> None:
        self.channels.append(Channel())
        on_open_callback(self.channels[-1])


@pytest.mark.parametrize("error", [MISSING, TOO_LARGE])
def test_a_channel_that_rejected_something_and_is_closed_by_the_broker_holds_nothing_up(error: Exception) -> None:
    bench = Bench()
    for body in (b"rejected", b"one", b"two"):
        bench.publisher.publish("test.up", "key", body, persistent=True)
    (first,) = bench.channels
    first.confirmed(SimpleNamespace(method=spec.Basic.Nack(delivery_tag=1)))
    bench.link.turn()
    assert [event.sequence for event in bench.events if isinstance(event, Refused)] == [1]

    first.end(error)
    for _ in range(3):
        bench.link.turn()
        if sent := bench.channels[-1].sent:
            bench.channels[-1].confirmed(SimpleNamespace(method=spec.Basic.Ack(delivery_tag=len(sent), multiple=True)))
    assert [body for channel in bench.channels[1:] for body in channel.sent] == [b"one", b"two"]


def test_what_is_not_confirmed_is_sent_again_although_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(publishing, "time", SimpleNamespace(monotonic=lambda: now))
    bench = Bench()
    first = bench.channels[0]
    # The leader of its stream is lost; other queues go on.
    bench.publisher.publish("", "log", b"lost", persistent=True)
    sent_again = []
    for second in range(1, 4 * int(PATIENCE_S)):
        now = float(second)
        bench.publisher.publish("test.up", "key", b"other", persistent=True)
        channel = bench.channels[-1]
        for tag, body in enumerate(channel.sent, 1):
            if body == b"other":
                channel.confirmed(SimpleNamespace(method=spec.Basic.Ack(delivery_tag=tag)))
        assert bench.link.watch is not None
        bench.link.watch()
        bench.link.turn()
        if bench.channels[-1] is not channel:
            sent_again.append(second)
    assert b"lost" in first.sent
    assert [channel.sent.count(b"lost") for channel in bench.channels] == [1] * len(bench.channels)
    # At first after 15 s, then after twice as long: it does not help at once.
    assert sent_again == [16, 47]
    assert [event.active for event in bench.events if isinstance(event, Blocked)] == [True, True]

    channel = bench.channels[-1]
    channel.confirmed(SimpleNamespace(method=spec.Basic.Ack(delivery_tag=len(channel.sent), multiple=True)))
    bench.link.turn()
    assert [event.active for event in bench.events if isinstance(event, Blocked)][-1] is False
    assert [event.through for event in bench.events if isinstance(event, Confirmed)] == [4 * int(PATIENCE_S)]
