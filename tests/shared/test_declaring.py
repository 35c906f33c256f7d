"""What a publisher makes of the broker's answers to its declarations; the broker here answers by a script."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pika import exceptions

from shared.errors import BrokerUnavailable
from shared.transport.port import Blocked, Exchange, ExchangeKind, Topology, TransportEvent
from shared.transport.publishing import Publisher

DONE = exceptions.ChannelClosedByClient(200, "Normal shutdown")
STARTING = exceptions.ChannelClosedByBroker(
    404, "NOT_FOUND - home node 'rabbit@hub' of durable queue 'test.log' in vhost '/' is down or inaccessible"
)
OTHER = exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED - inequivalent arg 'x-max-length'")
MISSING = exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'test.up' in vhost '/'")
TOPOLOGY = Topology(exchanges=(Exchange(name="test.up", kind=ExchangeKind.TOPIC),), queues=())
RETRY_S = 0.1


class Link:
    """Runs everything at once, up to a number of retries; whatever else is for later never comes."""

    def __init__(self, retries: int) -> None:
        self.retries = retries

    def call(self, work: Callable[[], None]) -> None:
        work()

    def retry_delay_s(self, failures: int) -> float:
        return RETRY_S

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        if delay_s != RETRY_S:
            return
        self.retries -= 1
        if self.retries >= 0:
            work()


class Channel:
    """A channel that ends with one answer of the script, if it is used for declaring."""

    def __init__(self, answers: list[Exception]) -> None:
        self._answers = answers
        self._on_close: Any = None

    def add_on_close_callback(self, on_close: Any) -> None:
        self._on_close = on_close

    def close(self) -> None:
        self._on_close(self, self._answers.pop(0))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def declare(answers: list[Exception], retries: int = 10, timeout_s: float = 5.0) -> list[TransportEvent]:
    events: list[TransportEvent] = []
    publisher = Publisher(1000, events.extend)
    publisher.attach(Link(retries))  # type: ignore[arg-type]
    connection = SimpleNamespace(
        is_open=True,
        channel=lambda on_open_callback: on_open_callback(Channel(answers)),
        add_on_connection_blocked_callback=lambda _: None,
        add_on_connection_unblocked_callback=lambda _: None,
    )
    publisher.opened(connection, SimpleNamespace(user="somebody"))  # type: ignore[arg-type]
    publisher.declare(TOPOLOGY, timeout_s)
    return events


def test_a_stream_that_the_broker_is_still_starting_is_waited_for() -> None:
    answers = [STARTING, STARTING, DONE]
    events = declare(answers)

    assert not answers
    assert [event.active for event in events if isinstance(event, Blocked)] == [True, False]


def test_who_waits_in_vain_is_told_for_what() -> None:
    with pytest.raises(BrokerUnavailable, match="is down or inaccessible"):
        declare([STARTING] * 3, retries=2, timeout_s=0.1)


@pytest.mark.parametrize("refusal", [OTHER, MISSING])
def test_a_refusal_for_good_is_told_at_once(refusal: exceptions.ChannelClosedByBroker) -> None:
    answers = [refusal, DONE]
    with pytest.raises(BrokerUnavailable, match=refusal.reply_text.split()[0]):
        declare(answers)
    assert answers == [DONE]
