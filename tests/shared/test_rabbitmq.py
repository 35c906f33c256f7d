"""The transport to RabbitMQ where no broker is: what becomes of an owner whose I/O thread has died."""

from __future__ import annotations

import pytest

from shared.errors import BrokerUnavailable
from shared.transport.broker_settings import BrokerSettings
from shared.transport.connection import Link
from shared.transport.port import Queue, QueueKind
from shared.transport.rabbitmq import RabbitMqTransport

NOWHERE = BrokerSettings(urls=("amqp://somebody:secret@127.0.0.1:1/",))


def breaks() -> None:
    raise AssertionError("what a library's loop may raise")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("side", ["publishing", "consuming"])
def test_a_transport_that_has_lost_a_thread_takes_nothing_more(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A socket of a thread that dies while it connects stays open until it is garbage, in whichever test that is.
    monkeypatch.setattr(Link, "_connect", lambda link: None)
    transport = RabbitMqTransport(NOWHERE, lambda _: None, name="test")
    link: Link = getattr(transport, f"_{side}_link")
    link.call(breaks)
    link.join()

    # A process that hears nothing any more must not go on as if the broker were silent.
    for attempt in (
        lambda: transport.publish("up", "key", b"body"),
        lambda: transport.consume(Queue(name="one", kind=QueueKind.QUORUM), prefetch=1),
    ):
        with pytest.raises(BrokerUnavailable, match="the transport is closed"):
            attempt()
    transport.close(0.1)
