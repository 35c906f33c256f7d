"""Does the RabbitMQ adapter keep its promises on a bad network and against a broker that says no?"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.channel import Channel

from deploy.brokers.broker import Broker
from shared.errors import BrokerUnavailable
from shared.transport import publishing
from shared.transport.port import Blocked, Connected, Disconnected, Queue, QueueKind, Refused
from shared.transport.rabbitmq import BrokerSettings, RabbitMqTransport
from tests.contracts.bench import Recorder
from tests.contracts.tcp_proxy import TcpProxy
from tests.integration.federation import wait_until

COUNT = 2000
Opener = Callable[..., tuple[RabbitMqTransport, Recorder]]


@pytest.fixture
def proxy(rabbitmq_url: str) -> Iterator[TcpProxy]:
    """A network between the client and the broker."""
    parts = urlsplit(rabbitmq_url)
    assert parts.hostname
    network = TcpProxy((parts.hostname, parts.port or 5672))
    yield network
    network.close()


@pytest.fixture
def queue(rabbitmq_url: str) -> Iterator[Queue]:
    """A durable queue of this test's own, reached by its name over the nameless exchange."""
    queue = Queue(name=f"faults.{uuid.uuid4()}", kind=QueueKind.QUORUM)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue.name, durable=True, arguments=queue.declared_arguments)
    yield queue
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_delete(queue.name)


def through(rabbitmq_url: str, port: int, password: str | None = None) -> str:
    """The broker's URL by way of a local port."""
    parts = urlsplit(rabbitmq_url)
    user = parts.username or "guest"
    return parts._replace(netloc=f"{user}:{password or parts.password or 'guest'}@127.0.0.1:{port}").geturl()


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens transports and closes them at the end."""
    transports = []

    def open_one(*urls: str, heartbeat_s: int = 8, start_timeout_s: float = 30) -> tuple[RabbitMqTransport, Recorder]:
        recorder = Recorder()
        settings = BrokerSettings(urls=urls, heartbeat_s=heartbeat_s, start_timeout_s=start_timeout_s)
        transports.append(RabbitMqTransport(settings, recorder, name="faults"))
        return transports[-1], recorder

    yield open_one
    for transport in transports:
        transport.close(0)


def disturb(proxy: TcpProxy, stop: threading.Event) -> None:
    """Cut the network now and then, half of the times silently first."""
    dice = random.Random(1)
    while not stop.wait(dice.uniform(0.01, 0.15)):
        if dice.random() < 0.5:
            proxy.stall()
            stop.wait(0.1)
        proxy.reset()
        proxy.flow()


def test_no_message_is_lost_and_the_order_holds_when_the_network_is_cut_again_and_again(
    rabbitmq_url: str, proxy: TcpProxy, queue: Queue, opened: Opener
) -> None:
    publisher, published = opened(through(rabbitmq_url, proxy.port))
    consumer, consumed = opened(rabbitmq_url)
    bodies = [b"%d" % number for number in range(COUNT)]
    stop = threading.Event()
    vandal = threading.Thread(target=disturb, args=(proxy, stop))
    publisher.connect()

    vandal.start()
    for number, body in enumerate(bodies):
        publisher.publish("", queue.name, body)
        if number % 20 == 0:
            time.sleep(0.01)
    # A busy machine may be slower to connect than we are to publish.
    published.wait(lambda: len(published.of(Disconnected)) >= 2, "two lost connections")
    stop.set()
    vandal.join()
    published.wait_settled(COUNT)
    # Nothing is settled, and each cut may have brought many a message twice.
    consumer.consume(queue, prefetch=65_535)
    consumed.wait(lambda: len({delivery.body for delivery in consumed.deliveries(queue)}) == COUNT, "all messages")

    assert list(dict.fromkeys(delivery.body for delivery in consumed.deliveries(queue))) == bodies
    assert not published.of(Refused)


def test_every_message_is_consumed_when_the_network_is_cut_again_and_again(
    rabbitmq_url: str, proxy: TcpProxy, queue: Queue, opened: Opener
) -> None:
    publisher, published = opened(rabbitmq_url)
    consumer, consumed = opened(through(rabbitmq_url, proxy.port))
    for number in range(COUNT):
        publisher.publish("", queue.name, b"%d" % number)
    published.wait_settled(COUNT)
    stop = threading.Event()
    vandal = threading.Thread(target=disturb, args=(proxy, stop))

    consumer.connect()
    vandal.start()
    consumer.consume(queue, prefetch=50)
    settled = 0
    while len({delivery.body for delivery in consumed.deliveries(queue)}) < COUNT:
        for delivery in consumed.wait_deliveries(queue, settled + 1)[settled:]:
            consumer.settle(delivery)
            settled += 1
            if settled == COUNT // 10:
                proxy.reset()  # A consumer that is faster than the vandal is cut off once in any case.
        if settled > COUNT // 2:
            stop.set()
    vandal.join()
    for delivery in consumed.deliveries(queue)[settled:]:
        consumer.settle(delivery)
    consumer.close()

    assert len(consumed.of(Disconnected)) >= 1
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        deadline = time.monotonic() + 30
        while (left := channel.queue_declare(queue.name, passive=True).method.message_count) > 0:
            # Only what was under way when the last cut came may be left, and it is redelivered.
            method, _, body = channel.basic_get(queue.name, auto_ack=True)
            assert method is None or (method.redelivered and int(body) < COUNT), left
            assert time.monotonic() < deadline


def test_a_channel_that_rejected_something_is_left_and_nothing_is_lost_or_sent_twice_by_that(
    restartable_broker: Broker, queue: Queue, opened: Opener
) -> None:
    # RabbitMQ 3.10 rejects for ever on a channel that found a queue without a leader, so no such channel is trusted.
    def confirming_channels() -> set[str]:
        lines = restartable_broker.ctl("list_channels", "pid", "confirm").splitlines()
        return {line.split()[0] for line in lines if line.endswith("true")}

    full = Queue(
        name=f"{queue.name}.full", kind=QueueKind.QUORUM, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    with pika.BlockingConnection(pika.URLParameters(restartable_broker.url)) as connection:
        connection.channel().queue_declare(full.name, durable=True, arguments=full.declared_arguments)
        publisher, published = opened(restartable_broker.url)
        publisher.publish("", queue.name, b"-1")
        published.wait_settled(1)
        first = confirming_channels()
        bodies = [b"%d" % number for number in range(COUNT)]

        for number, body in enumerate(bodies):
            publisher.publish("", queue.name, body)
            if number % 10 == 0:
                publisher.publish("", full.name, body)
        published.wait_settled(1 + COUNT + COUNT // 10)
        # What is left of the queue's credit is used up one by one.
        for number in range(COUNT // 10):
            published.wait_settled(publisher.publish("", full.name, b"%d" % number))
        connection.channel().queue_delete(full.name)

        assert len(published.of(Refused)) > COUNT // 20
        assert len(first) == 1
        wait_until(lambda: len(now := confirming_channels()) == 1 and now != first, "another channel, and one only")
    consumer, consumed = opened(restartable_broker.url)
    consumer.consume(queue, prefetch=2 * COUNT)
    assert [delivery.body for delivery in consumed.wait_deliveries(queue, 1 + COUNT)] == [b"-1", *bodies]


def test_what_is_never_confirmed_is_sent_again_on_another_channel(
    rabbitmq_url: str, queue: Queue, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = publishing.Publisher._on_confirm
    silent: list[Channel] = []

    def deaf_on_the_first_channel(publisher: publishing.Publisher, channel: Channel, frame: Any) -> None:
        silent[:] = silent or [channel]
        if channel is not silent[0]:
            heard(publisher, channel, frame)

    monkeypatch.setattr(publishing.Publisher, "_on_confirm", deaf_on_the_first_channel)
    monkeypatch.setattr(publishing, "PATIENCE_S", 1.0)
    publisher, published = opened(rabbitmq_url)
    bodies = [b"%d" % number for number in range(5)]
    for body in bodies:
        publisher.publish("", queue.name, body)
    published.wait_settled(5)

    assert [(event.active, "confirmed" in event.reason) for event in published.of(Blocked)] == [
        (True, True),
        (False, True),
    ]
    consumer, consumed = opened(rabbitmq_url)
    consumer.consume(queue, prefetch=100)
    assert [delivery.body for delivery in consumed.wait_deliveries(queue, 10)] == bodies * 2


@pytest.mark.slow
def test_a_silent_network_is_noticed_by_missing_heartbeats(
    rabbitmq_url: str, proxy: TcpProxy, queue: Queue, opened: Opener
) -> None:
    transport, events = opened(through(rabbitmq_url, proxy.port), heartbeat_s=1)
    transport.connect()

    proxy.stall()
    transport.publish("", queue.name, b"into the dark")
    events.wait_for(Disconnected)
    proxy.reset()
    proxy.flow()
    events.wait_settled(1)

    events.wait(lambda: events.of(Connected)[-1].reconnects > 0)


def test_the_next_host_of_the_list_takes_over(rabbitmq_url: str, proxy: TcpProxy, queue: Queue, opened: Opener) -> None:
    transport, events = opened(through(rabbitmq_url, proxy.port), rabbitmq_url)
    transport.connect()

    proxy.refuse()
    proxy.reset()
    events.wait_for(Disconnected)
    transport.publish("", queue.name, b"elsewhere")

    events.wait_settled(1)


def test_an_unreachable_broker_is_named_with_what_to_do(opened: Opener) -> None:
    with socket.socket() as nobody:  # bound, so that nobody else is given the port, and not listening
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        transport, _ = opened(f"amqp://user:s3cr3t-word@127.0.0.1:{port}/", start_timeout_s=0.5)

        with pytest.raises(BrokerUnavailable, match=rf"127\.0\.0\.1:{port}.*check that RabbitMQ runs") as caught:
            transport.connect()

    assert "s3cr3t-word" not in str(caught.value)


def test_a_broker_that_goes_away_in_the_middle_of_a_login_has_refused_nobody(opened: Opener) -> None:
    # As one does that is being restarted.
    greeting = pika.frame.Method(0, pika.spec.Connection.Start(server_properties={})).marshal()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        leaving = threading.Event()

        def greet_and_go() -> None:
            while not leaving.is_set():
                client, _ = listening.accept()
                # The client may go first.
                with client, contextlib.suppress(ConnectionError):
                    client.sendall(greeting)
                    client.recv(8)

        broker = threading.Thread(target=greet_and_go)
        broker.start()
        port = listening.getsockname()[1]
        transport, _ = opened(f"amqp://127.0.0.1:{port}", start_timeout_s=2)
        said = r"within 2 s .*ProbableAuthenticationError.*check that RabbitMQ runs"
        try:
            with pytest.raises(BrokerUnavailable, match=said):
                transport.connect()
        finally:
            transport.close(0)
            leaving.set()
            socket.create_connection(("127.0.0.1", port)).close()
            broker.join()


def test_a_refused_password_fails_at_once_and_is_shown_nowhere(
    rabbitmq_url: str, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    port = urlsplit(rabbitmq_url).port or 5672
    transport, events = opened(through(rabbitmq_url, port, "s3cr3t-word"), start_timeout_s=30)

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="check user, password") as caught:
        transport.connect()
    transport.close()

    assert time.monotonic() - began < 25
    assert "s3cr3t-word" not in str(caught.value)
    assert "s3cr3t-word" not in caplog.text
    assert not events.of(Connected)


def test_a_publish_that_is_not_permitted_is_refused_and_the_others_go_on(
    rabbitmq_url: str, queue: Queue, opened: Opener
) -> None:
    # Nobody may publish to an internal exchange: the broker answers as to a user without the right to write.
    forbidden = f"forbidden.{uuid.uuid4()}"
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().exchange_declare(forbidden, "fanout", internal=True)
        transport, events = opened(rabbitmq_url)

        refused = set()
        for number in range(50):
            if number % 10 == 5:
                refused.add(transport.publish(forbidden, "", b"no"))
            else:
                transport.publish("", queue.name, b"%d" % number)
        events.wait_settled(50)
        connection.channel().exchange_delete(forbidden)
    transport.consume(queue, prefetch=1000)
    allowed = [b"%d" % number for number in range(50) if number % 10 != 5]
    events.wait(lambda: len({delivery.body for delivery in events.deliveries(queue)}) == len(allowed))

    assert {event.sequence for event in events.of(Refused)} == refused
    assert list(dict.fromkeys(delivery.body for delivery in events.deliveries(queue))) == allowed


@pytest.mark.parametrize("state", ["connecting", "stalled", "refused"])
def test_close_ends_also_when_the_broker_does_not_answer(
    rabbitmq_url: str, proxy: TcpProxy, queue: Queue, opened: Opener, state: str
) -> None:
    transport, _ = opened(through(rabbitmq_url, proxy.port))
    if state == "refused":
        proxy.refuse()
    if state != "connecting":
        transport.connect() if state == "stalled" else proxy.reset()
        proxy.stall()
    transport.publish("", queue.name, b"unconfirmed")

    transport.close(0.2)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("faults-")]
    with pytest.raises(BrokerUnavailable):
        transport.publish("", queue.name, b"too late")
