"""What a publisher may rely on, whichever broker is behind the port."""

from __future__ import annotations

import threading

import pytest

from shared.errors import BrokerUnavailable
from shared.transport.port import Blocked, Confirmed, Connected, Disconnected, Queue, QueueKind, Refused
from shared.wire.topology import groups_queue, offers_queue
from tests.contracts.bench import Bench, Seat


def numbered(count: int) -> list[bytes]:
    return [b"message %d" % number for number in range(count)]


def first_seen(bodies: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(bodies))


def drain(seat: Seat, queue: Queue, count: int) -> list[bytes]:
    """Consume until `count` different bodies have come; return all in their order."""
    seat.transport.consume(queue, prefetch=1000)
    seat.events.wait(lambda: len({delivery.body for delivery in seat.events.deliveries(queue)}) >= count, "all bodies")
    return [delivery.body for delivery in seat.events.deliveries(queue)]


def test_messages_of_one_publisher_arrive_in_order(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    publisher, consumer = bench.open(), bench.open()

    sequences = [publisher.transport.publish(bench.names.down, queue.name, body) for body in numbered(500)]

    assert sequences == list(range(1, 501))
    assert drain(consumer, queue, 500) == numbered(500)


def test_the_watermark_rises_to_the_last_publish(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    publisher = bench.open()

    for number in range(300):
        publisher.transport.publish(bench.names.down, queue.name, bytes(number * 7), persistent=number % 3 > 0)
    publisher.events.wait_settled(300)

    marks = [event.through for event in publisher.events.of(Confirmed)]
    assert marks == sorted(set(marks))
    assert marks[-1] == 300


def test_a_publish_before_the_broker_can_be_reached_is_not_lost(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    publisher = bench.open(reachable=False)

    for body in numbered(20):
        publisher.transport.publish(bench.names.down, queue.name, body)
    assert publisher.events.stays(lambda: not publisher.events.of(Confirmed), 0.1)
    bench.heal(publisher)

    assert drain(bench.open(), queue, 20) == numbered(20)


def test_what_was_not_confirmed_is_sent_again_in_order_after_a_lost_connection(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    publisher = bench.open()
    publisher.transport.connect()

    bench.stall(publisher)
    for body in numbered(50):
        publisher.transport.publish(bench.names.down, queue.name, body)
    bench.cut(publisher)
    publisher.events.wait_settled(50)

    assert first_seen(drain(bench.open(), queue, 50)) == numbered(50)
    publisher.events.wait(lambda: len(publisher.events.of(Connected)) == 2)
    assert publisher.events.of(Connected)[1].reconnects == 1
    assert len(publisher.events.of(Disconnected)) == 1


def test_publishing_waits_while_the_window_is_full(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    publisher = bench.open(window_bytes=64 * 1024)
    publisher.transport.connect()
    done: list[int] = []

    def publish_all() -> None:
        done.extend(publisher.transport.publish(bench.names.down, queue.name, bytes(16 * 1024)) for _ in range(20))

    bench.stall(publisher)
    thread = threading.Thread(target=publish_all)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    bench.heal(publisher)
    thread.join(30)

    assert done == list(range(1, 21))
    publisher.events.wait_settled(20)


def test_a_publisher_that_waits_is_released_by_close(bench: Bench) -> None:
    publisher = bench.open(window_bytes=10)
    publisher.transport.connect()
    failures: list[BrokerUnavailable] = []

    def publish() -> None:
        try:
            publisher.transport.publish("", "nobody", b"0123456789", persistent=False)
        except BrokerUnavailable as error:
            failures.append(error)

    bench.stall(publisher)
    publish()
    assert not failures
    thread = threading.Thread(target=publish)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    closing = threading.Thread(target=publisher.transport.close, args=(0.1,))
    closing.start()
    thread.join(30)
    bench.heal(publisher)
    closing.join(30)

    assert len(failures) == 1


def test_a_full_queue_refuses_and_the_rest_is_delivered(bench: Bench) -> None:
    queue = Queue(
        name=f"{bench.names.federation}.small",
        kind=QueueKind.QUORUM,
        arguments={"x-max-length": 5, "x-overflow": "reject-publish"},
    )
    bench.declare(queue)
    publisher = bench.open()

    bodies = dict(enumerate(numbered(60), start=1))
    for sequence, body in bodies.items():
        publisher.transport.publish("", queue.name, body)
        if sequence % 5 == 0:
            publisher.events.wait_settled(sequence)  # What is under way at once may all be taken.

    refused = publisher.refused()
    taken = {body for sequence, body in bodies.items() if sequence not in refused}
    assert 5 <= len(taken) <= 30
    assert set(drain(bench.open(), queue, len(taken))) == taken


def test_a_message_above_the_limit_is_refused_and_the_others_go_on(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    publisher = bench.open()
    publisher.transport.connect()

    for body in numbered(10):
        publisher.transport.publish(bench.names.down, queue.name, body)
    too_large = publisher.transport.publish(bench.names.down, queue.name, bench.oversized())
    for body in numbered(20)[10:]:
        publisher.transport.publish(bench.names.down, queue.name, body)
    publisher.events.wait_settled(21)

    assert publisher.refused() == {too_large}
    assert publisher.events.of(Refused)[0].routing_key == queue.name
    assert first_seen(drain(bench.open(), queue, 20)) == numbered(20)


def test_a_persistent_message_without_a_queue_is_refused_and_a_transient_one_is_dropped(bench: Bench) -> None:
    bench.declare()
    publisher = bench.open()

    lost = publisher.transport.publish(bench.names.down, "nobody", b"persistent")
    publisher.transport.publish(bench.names.down, "nobody", b"transient", persistent=False)
    publisher.events.wait_settled(2)

    assert publisher.refused() == {lost}


def test_publishing_to_an_exchange_that_is_not_declared_yet_waits_for_it(bench: Bench) -> None:
    queue = offers_queue(bench.names)
    publisher = bench.open()

    for body in numbered(5):
        publisher.transport.publish(bench.names.up, bench.names.offer_key("site"), body)  # type: ignore[arg-type]
    assert publisher.events.wait_for(Blocked).active
    bench.stall(publisher)  # Between the exchange and the queue's binding it would be refused.
    bench.declare(queue)
    bench.heal(publisher)
    publisher.events.wait_settled(5)

    assert not publisher.refused()
    assert first_seen(drain(bench.open(), queue, 5)) == numbered(5)
    publisher.events.wait(lambda: not publisher.events.of(Blocked)[-1].active)


def test_close_waits_for_what_was_published(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    publisher = bench.open()

    for body in numbered(300):
        publisher.transport.publish(bench.names.down, queue.name, memoryview(body))
    publisher.transport.close()
    publisher.transport.close()

    assert drain(bench.open(), queue, 300) == numbered(300)
    with pytest.raises(BrokerUnavailable):
        publisher.transport.publish(bench.names.down, queue.name, b"too late")


def test_a_declaration_may_be_repeated_but_not_changed(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    bench.declare(queue)
    other = Queue(name=queue.name, kind=QueueKind.QUORUM, arguments={"x-max-length": 1})
    seat = bench.open()

    with pytest.raises(BrokerUnavailable, match="arg"):
        bench.declare(other)

    seat.transport.publish(bench.names.down, queue.name, b"still works")
    assert drain(seat, queue, 1) == [b"still works"]
