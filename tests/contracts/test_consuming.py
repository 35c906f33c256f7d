"""What a consumer may rely on, whichever broker is behind the port."""

from __future__ import annotations

import pytest

from shared.errors import BrokerUnavailable, LocalProtocolError
from shared.identity import ClientId
from shared.transport.port import Connected, ConsumerWaiting, Death, Depth, Outcome, Queue, QueueKind
from shared.wire.topology import (
    client_queue,
    dead_queue,
    groups_queue,
    log_queue,
    offers_queue,
    stage_queue,
    talk_queue,
)
from tests.contracts.bench import Bench, Seat

MODEL_BYTES = 1000


def publish(bench: Bench, seat: Seat, queue: Queue, *bodies: bytes, persistent: bool = True) -> None:
    """Publish downwards and wait until the broker has everything."""
    for body in bodies:
        last = seat.transport.publish(bench.names.down, queue.name, body, persistent=persistent)
    seat.events.wait_settled(last)


def bodies(seat: Seat, queue: Queue) -> list[bytes]:
    return [delivery.body for delivery in seat.events.deliveries(queue)]


def test_prefetch_bounds_what_is_unsettled(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    seat = bench.open()
    publish(bench, seat, queue, *(b"%d" % number for number in range(10)))

    seat.transport.consume(queue, prefetch=3)
    seat.events.wait_deliveries(queue, 3)
    assert seat.events.stays(lambda: len(bodies(seat, queue)) == 3)
    seat.transport.settle(seat.events.deliveries(queue)[1])
    seat.events.wait_deliveries(queue, 4)

    assert bodies(seat, queue) == [b"0", b"1", b"2", b"3"]
    assert seat.events.stays(lambda: len(bodies(seat, queue)) == 4, 0.1)


def test_unsettled_messages_of_a_crashed_client_are_delivered_again_and_settled_ones_are_not(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    doomed, heir = bench.open(), bench.open()
    publish(bench, heir, queue, b"0", b"1", b"2", b"3", b"4", b"5")
    doomed.transport.consume(queue, prefetch=4)
    taken = doomed.events.wait_deliveries(queue, 4)
    for delivery in taken[:2]:
        doomed.transport.settle(delivery)
    doomed.events.wait_deliveries(queue, 6)

    bench.crash(doomed)
    heir.transport.consume(queue, prefetch=10)
    again = heir.events.wait_deliveries(queue, 4)

    assert sorted((delivery.body, delivery.redelivered) for delivery in again) == [
        (b"2", True),
        (b"3", True),
        (b"4", True),
        (b"5", True),
    ]
    assert not any(delivery.redelivered for delivery in taken)


def test_competing_consumers_share_a_queue(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    one, other = bench.open(), bench.open()
    one.transport.consume(queue, prefetch=5)
    other.transport.consume(queue, prefetch=5)
    publish(bench, bench.open(), queue, *(b"%d" % number for number in range(10)))

    for seat in (one, other):
        seat.events.wait_deliveries(queue, 5)

    assert len({*bodies(one, queue), *bodies(other, queue)}) == 10


def test_only_one_consumer_of_a_lease_is_active_and_the_next_takes_over(bench: Bench) -> None:
    queue = client_queue(bench.names, "one")  # type: ignore[arg-type]
    bench.declare(queue)
    active, waiting, publisher = bench.open(), bench.open(), bench.open()
    active.transport.consume(queue, prefetch=2)
    publish(bench, publisher, queue, b"task 1")
    active.events.wait_deliveries(queue, 1)
    waiting.transport.consume(queue, prefetch=2)
    publish(bench, publisher, queue, b"task 2")
    active.events.wait_deliveries(queue, 2)
    active.transport.settle(active.events.deliveries(queue)[0])
    publish(bench, publisher, queue, b"task 3")
    active.events.wait_deliveries(queue, 3)
    assert bodies(waiting, queue) == []

    bench.crash(active)
    waiting.events.wait_deliveries(queue, 2)

    assert bodies(waiting, queue) == [b"task 2", b"task 3"]
    assert all(delivery.redelivered for delivery in waiting.events.deliveries(queue))


def test_a_refused_message_becomes_a_dead_letter(bench: Bench) -> None:
    queue, dead = groups_queue(bench.names), dead_queue(bench.names)
    bench.declare(dead, queue)
    seat = bench.open()
    publish(bench, seat, queue, b"good", b"bad")
    seat.transport.consume(queue, prefetch=10)
    good, bad = seat.events.wait_deliveries(queue, 2)

    seat.transport.settle(good)
    seat.transport.settle(bad, Outcome.DEAD_LETTER)
    seat.transport.consume(dead, prefetch=10)
    seat.events.wait_deliveries(dead, 1)

    assert bodies(seat, dead) == [b"bad"]


def test_a_poisonous_message_is_dead_after_its_delivery_limit(bench: Bench) -> None:
    dead = dead_queue(bench.names)
    queue = Queue(
        name=f"{bench.names.federation}.touchy",
        kind=QueueKind.QUORUM,
        arguments={
            "x-delivery-limit": 2,
            "x-dead-letter-exchange": bench.names.dead_letters,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )
    bench.declare(dead, queue)
    seat = bench.open()
    seat.transport.publish("", queue.name, b"poison")
    seat.transport.consume(queue, prefetch=1)
    seat.transport.consume(dead, prefetch=1)

    for attempt in range(1, 4):
        seat.transport.settle(seat.events.wait_deliveries(queue, attempt)[-1], Outcome.PUT_BACK)
    seat.events.wait_deliveries(dead, 1)

    assert bodies(seat, dead) == [b"poison"]
    assert [delivery.redelivered for delivery in seat.events.deliveries(queue)] == [False, True, True]


def test_a_settlement_from_before_a_reconnect_or_a_second_one_does_nothing(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    seat, observer = bench.open(), bench.open()
    publish(bench, observer, queue, b"0", b"1", b"2")
    seat.transport.consume(queue, prefetch=10)
    stale = seat.events.wait_deliveries(queue, 3)

    bench.cut(seat)
    again = seat.events.wait_deliveries(queue, 6)[3:]
    for delivery in stale:
        seat.transport.settle(delivery)
    for delivery in (again[0], again[0], again[1]):
        seat.transport.settle(delivery)
    # By now the first settlement has left; one more would be an error to the broker.
    assert seat.events.stays(lambda: len(bodies(seat, queue)) == 6, 0.1)
    seat.transport.settle(again[1])
    assert seat.events.stays(lambda: len(bodies(seat, queue)) == 6, 0.1)
    assert not seat.events.of(ConsumerWaiting)
    seat.transport.cancel(queue.name)
    observer.transport.consume(queue, prefetch=10)
    observer.events.wait_deliveries(queue, 1)

    assert bodies(observer, queue) == [again[2].body]
    assert observer.events.stays(lambda: len(bodies(observer, queue)) == 1, 0.1)


def test_cancel_returns_what_is_unsettled_and_the_queue_may_be_consumed_again(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    seat = bench.open()
    publish(bench, seat, queue, b"0", b"1")
    seat.transport.consume(queue, prefetch=10)
    first, _ = seat.events.wait_deliveries(queue, 2)
    with pytest.raises(LocalProtocolError):
        seat.transport.consume(queue, prefetch=10)

    seat.transport.settle(first)
    seat.transport.cancel(queue.name)
    seat.transport.cancel("never consumed")
    seat.transport.consume(queue, prefetch=10)
    seat.events.wait_deliveries(queue, 3)

    assert bodies(seat, queue) == [b"0", b"1", b"1"]


def test_a_subscription_to_a_missing_queue_waits_for_it(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    seat = bench.open()
    seat.transport.consume(queue, prefetch=10)
    assert seat.events.wait_for(ConsumerWaiting).queue == queue.name

    bench.declare(queue)
    publish(bench, bench.open(), queue, b"here")

    assert seat.events.wait_deliveries(queue, 1)[0].body == b"here"


def test_an_exclusive_queue_is_free_when_its_holder_has_crashed(bench: Bench) -> None:
    queue = talk_queue(bench.names, "site", "worker")  # type: ignore[arg-type]
    bench.declare()
    holder, next_holder, publisher = bench.open(), bench.open(), bench.open()
    holder.transport.consume(queue, prefetch=10)
    await_route(bench, publisher, holder, queue, bench.names.down, queue.name)
    next_holder.transport.consume(queue, prefetch=10)
    assert next_holder.events.wait_for(ConsumerWaiting).queue == queue.name

    bench.crash(holder)
    await_route(bench, publisher, next_holder, queue, bench.names.down, queue.name)

    assert bodies(next_holder, queue)


def test_an_exclusive_queue_and_its_binding_come_back_after_a_reconnect(bench: Bench) -> None:
    queue = stage_queue(bench.names, "stage", MODEL_BYTES)  # type: ignore[arg-type]
    key = bench.names.reply_key("stage", "site")  # type: ignore[arg-type]
    bench.declare()
    seat, publisher = bench.open(), bench.open()
    seat.transport.connect()  # Whoever only hears as yet, and cannot speak, is not connected, nor connected again.
    seat.transport.consume(queue, prefetch=1000)
    await_route(bench, publisher, seat, queue, bench.names.up, key)

    bench.cut(seat)
    seat.events.wait(lambda: len(seat.events.of(Connected)) == 2)
    before = len(bodies(seat, queue))
    await_route(bench, publisher, seat, queue, bench.names.up, key)

    assert seat.events.deliveries(queue)[before].routing_key == key


def await_route(bench: Bench, publisher: Seat, consumer: Seat, queue: Queue, exchange: str, key: str) -> None:
    """Repeat a transient message, which is dropped until the queue is there, until one arrives."""
    before = len(bodies(consumer, queue))
    for _ in range(500):
        publisher.transport.publish(exchange, key, b"hello", persistent=False)
        if not consumer.events.stays(lambda: len(bodies(consumer, queue)) == before, 0.02):
            return
    pytest.fail("no message came through")


def test_routing_keys_reach_the_queues_that_are_bound_to_them(bench: Bench) -> None:
    offers, stage = offers_queue(bench.names), stage_queue(bench.names, "s1", MODEL_BYTES)  # type: ignore[arg-type]
    bench.declare(offers)
    seat, publisher = bench.open(), bench.open()
    seat.transport.consume(offers, prefetch=100)
    seat.transport.consume(stage, prefetch=100)
    await_route(bench, publisher, seat, stage, bench.names.up, "reply.s1.site-a")

    for key in ("reply.s2.site-a", "reply.s1", "reply.s1.site-a.more", "offer", "other.site-a"):
        publisher.transport.publish(bench.names.up, key, b"lost", persistent=False)
    publisher.transport.publish(bench.names.up, "offer.site-a", b"offer")
    publisher.transport.publish(bench.names.up, "reply.s1.site-b", b"reply")
    seat.events.wait_deliveries(offers, 1)
    seat.events.wait(lambda: b"reply" in bodies(seat, stage))

    assert bodies(seat, offers) == [b"offer"]
    assert set(bodies(seat, stage)) == {b"hello", b"reply"}


def test_a_delivery_names_the_authenticated_user_and_its_routing_key(bench: Bench) -> None:
    queue = groups_queue(bench.names)
    bench.declare(queue)
    seat = bench.open()
    publish(bench, seat, queue, b"persistent")
    publish(bench, seat, queue, b"transient", persistent=False)

    seat.transport.consume(queue, prefetch=10)
    deliveries = seat.events.wait_deliveries(queue, 2)

    assert [(delivery.user, delivery.routing_key, delivery.offset) for delivery in deliveries] == [
        (seat.user, queue.name, None)
    ] * 2


@pytest.mark.parametrize("where", ["first", "offset", "next"])
def test_a_stream_is_read_from_where_the_reader_asks(bench: Bench, where: str) -> None:
    queue = log_queue(bench.names, MODEL_BYTES)
    bench.declare(queue)
    writer, reader, probe = bench.open(), bench.open(), bench.open()
    publish(bench, writer, queue, *(b"%d" % number for number in range(5)))
    probe.transport.consume(queue, prefetch=100, start="first")
    offsets = [delivery.offset for delivery in probe.events.wait_deliveries(queue, 5)]
    assert offsets[3] is not None

    start = {"first": "first", "offset": offsets[3], "next": "next"}[where]
    reader.transport.consume(queue, prefetch=100, start=start)  # type: ignore[arg-type]
    expected = {"first": [b"0", b"1", b"2", b"3", b"4"], "offset": [b"3", b"4"], "next": []}[where]
    reader.events.wait_deliveries(queue, len(expected))
    assert reader.events.stays(lambda: bodies(reader, queue) == expected)
    # Nobody is told when a reader of what comes next is there; what comes before that is not for it.
    later = [b"later %d" % number for number in range(500)]
    for body in later:
        publish(bench, writer, queue, body)
        if not reader.events.stays(lambda: bodies(reader, queue) == expected, 0.02):
            break

    heard = bodies(reader, queue)[len(expected) :]
    assert heard
    since = later.index(heard[0])
    assert bodies(reader, queue)[: len(expected)] == expected
    assert heard == later[since : since + len(heard)]
    assert since == 0 or where == "next"


@pytest.mark.parametrize("outcome", Outcome)
def test_settling_returns_a_streams_credit_whatever_the_outcome(bench: Bench, outcome: Outcome) -> None:
    queue = log_queue(bench.names, MODEL_BYTES)
    bench.declare(queue)
    seat = bench.open()
    publish(bench, seat, queue, *(b"%d" % number for number in range(40)))
    seat.transport.consume(queue, prefetch=4, start="first")

    for number in range(40):
        seat.transport.settle(seat.events.wait_deliveries(queue, number + 1)[number], outcome)

    assert bodies(seat, queue) == [b"%d" % number for number in range(40)]
    assert len(seat.events.of(Connected)) == 1


def test_a_stream_goes_on_behind_the_last_delivery_after_a_reconnect(bench: Bench) -> None:
    queue = log_queue(bench.names, MODEL_BYTES)
    bench.declare(queue)
    writer, reader = bench.open(), bench.open()
    reader.transport.connect()
    reader.transport.consume(queue, prefetch=7, start="first")
    expected = []
    for cycle in range(4):
        batch = [b"%d.%d" % (cycle, number) for number in range(20)]
        expected += batch
        publish(bench, writer, queue, *batch)
        settled = 20 * cycle
        while settled < 20 * cycle + 10:
            for delivery in reader.events.wait_deliveries(queue, settled + 1)[settled:]:
                reader.transport.settle(delivery)
                settled += 1
        bench.cut(reader)
        reader.events.wait(lambda: len(reader.events.of(Connected)) == cycle + 2)  # noqa: B023
        while settled < 20 * (cycle + 1):
            for delivery in reader.events.wait_deliveries(queue, settled + 1)[settled:]:
                reader.transport.settle(delivery)
                settled += 1

    assert bodies(reader, queue) == expected


@pytest.mark.parametrize("start", ["first", None])
def test_a_start_belongs_to_streams_only(bench: Bench, start: str | None) -> None:
    queue = groups_queue(bench.names) if start else log_queue(bench.names, MODEL_BYTES)

    with pytest.raises(LocalProtocolError):
        bench.open().transport.consume(queue, prefetch=1, start=start)  # type: ignore[arg-type]


def test_a_dead_letter_says_which_queue_gave_it_up_and_why(bench: Bench) -> None:
    queue, dead = groups_queue(bench.names), dead_queue(bench.names)
    fragile = Queue(
        name=queue.name,
        kind=queue.kind,
        arguments={**queue.arguments, "x-delivery-limit": 1},
        bindings=queue.bindings,
    )
    bench.declare(fragile, dead)
    seat = bench.open()
    publish(bench, seat, fragile, b"refused", b"poison")
    seat.transport.consume(fragile, prefetch=2)
    refused, poison = seat.events.wait_deliveries(fragile, 2)

    seat.transport.settle(refused, Outcome.DEAD_LETTER)
    seat.transport.settle(poison, Outcome.PUT_BACK)
    seat.transport.settle(seat.events.wait_deliveries(fragile, 3)[2], Outcome.PUT_BACK)
    seat.transport.consume(dead, prefetch=10)
    letters = seat.events.wait_deliveries(dead, 2)

    assert refused.death is None
    assert {letter.body: letter.death for letter in letters} == {
        b"refused": Death(queue.name, "rejected"),
        b"poison": Death(queue.name, "delivery_limit"),
    }


def test_depths_count_what_waits_and_who_consumes(bench: Bench) -> None:
    groups, offers, log = groups_queue(bench.names), offers_queue(bench.names), log_queue(bench.names, MODEL_BYTES)
    missing, another = client_queue(bench.names, ClientId("a")), client_queue(bench.names, ClientId("b"))
    bench.declare(groups, offers, log)
    seat, other = bench.open(), bench.open()
    publish(bench, seat, groups, b"one", b"two", b"three")
    publish(bench, seat, log, b"entry")
    seat.transport.consume(groups, prefetch=1)
    other.transport.consume(groups, prefetch=1)
    seat.events.wait_deliveries(groups, 1)
    other.events.wait_deliveries(groups, 1)

    found = bench.open().transport.depths([missing, groups, another, offers, log])

    assert found == {
        missing.name: None,
        groups.name: Depth(1, 2),
        another.name: None,
        offers.name: Depth(0, 0),
        log.name: Depth(None, None),
    }


def test_dead_letters_may_be_looked_at_often(bench: Bench) -> None:
    dead = dead_queue(bench.names)
    bench.declare(dead)
    seat = bench.open()
    seat.events.wait_settled(seat.transport.publish(bench.names.dead_letters, "", b"letter"))
    seat.transport.consume(dead, prefetch=1)

    for looks in range(1, 30):
        seat.transport.settle(seat.events.wait_deliveries(dead, looks)[-1], Outcome.PUT_BACK)

    assert seat.events.wait_deliveries(dead, 30)[-1].body == b"letter"


def test_depths_of_a_closed_transport_are_refused(bench: Bench) -> None:
    seat = bench.open()
    seat.transport.connect()
    seat.transport.close()

    with pytest.raises(BrokerUnavailable):
        seat.transport.depths([groups_queue(bench.names)])
