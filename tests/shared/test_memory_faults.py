"""Does the in-process broker break only what a real broker and network break, and the same for one seed?"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BrokerUnavailable, LocalProtocolError
from shared.transport.memory import Faults, MemoryBroker, MemoryTransport
from shared.transport.memory_queues import Message, Stream, topic_matches
from shared.transport.port import (
    Confirmed,
    Connected,
    Delivered,
    Delivery,
    Disconnected,
    Outcome,
    Queue,
    QueueKind,
    TransportEvent,
)
from shared.wire.topology import Names, dead_queue, federation_topology, groups_queue, log_queue, talk_queue

NAMES = Names("f")
GROUPS, LOG = groups_queue(NAMES), log_queue(NAMES, 0)
TALK = talk_queue(NAMES, "site", "worker")  # type: ignore[arg-type]
EVERYTHING = {
    "delay": 0.5,
    "delay_max_s": 3.0,
    "lost_confirm": 0.03,
    "duplicate": 0.1,
    "drop_transient": 0.2,
    "connection_loss": 0.05,
    "outage_max_s": 5.0,
}


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Client:
    """A seat with its inbox; settles what it has worked on, in any order."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self.inbox: list[TransportEvent] = []
        self.transport = MemoryTransport(broker, self.inbox.extend, name=name)
        self.seen: list[Delivery] = []
        self.open: list[Delivery] = []

    def work(self, dice: random.Random) -> None:
        """Look at what has arrived and settle some of it."""
        for event in self.inbox:
            if isinstance(event, Delivered):
                self.seen.extend(event.deliveries)
                self.open.extend(event.deliveries)
            elif isinstance(event, Disconnected):
                self.open.clear()
        self.inbox.clear()
        dice.shuffle(self.open)
        while self.open and dice.random() < 0.8:
            self.transport.settle(self.open.pop(), Outcome.ACK if dice.random() < 0.95 else Outcome.PUT_BACK)

    def bodies(self, queue: Queue) -> list[bytes]:
        return [delivery.body for delivery in self.seen if delivery.queue == queue.name]


def declared(broker: MemoryBroker) -> Client:
    """A client that has declared the federation."""
    client = Client(broker, "coordinator")
    client.transport.declare(federation_topology(NAMES, [], 0))
    return client


def run(seed: int, count: int = 60) -> tuple[Client, Client, list[TransportEvent], MemoryBroker]:
    """Two consumers and an impatient publisher under every fault, until all is quiet."""
    clock, dice = Clock(), random.Random(seed)
    broker = MemoryBroker(clock, Faults(seed=seed, **EVERYTHING))  # type: ignore[arg-type]
    publisher, events = Client(broker, "publisher"), list[TransportEvent]()
    workers = [Client(broker, name) for name in ("one", "two")]
    for worker in workers:
        worker.transport.consume(GROUPS, prefetch=4)
        worker.transport.consume(LOG, prefetch=3, start="first")
    for number in range(count):
        if number == 5:
            # Until then there is no exchange and no queue, and everything waits.
            declared(broker)
        publisher.transport.publish(NAMES.down, GROUPS.name, b"%d" % number)
        publisher.transport.publish(NAMES.down, LOG.name, b"%d" % number)
        clock.now += dice.uniform(0, 1)
        broker.advance(clock.now)
        for worker in workers:
            worker.work(dice)
            assert len(worker.open) <= 4 + 3
    broker.inject(None)
    for _ in range(2000):
        for worker in workers:
            worker.work(dice)
        if (due := broker.next_event_at()) is not None:
            clock.now = max(clock.now, due)
            broker.advance(clock.now)
        elif not any(worker.inbox or worker.open for worker in workers):
            break
    events.extend(publisher.inbox)
    return workers[0], workers[1], events, broker


@pytest.mark.parametrize("seed", range(25))
def test_nothing_persistent_is_lost_and_everything_is_settled_under_every_fault(seed: int) -> None:
    count = 60
    one, two, events, broker = run(seed, count)
    expected = {b"%d" % number for number in range(count)}

    assert {*one.bodies(GROUPS), *two.bodies(GROUPS)} == expected
    assert broker.depth(GROUPS.name) == 0
    marks = [event.through for event in events if isinstance(event, Confirmed)]
    assert marks == sorted(set(marks))
    assert marks[-1] == 2 * count


@pytest.mark.parametrize("seed", range(25))
def test_a_stream_shows_every_reader_the_same_entries_once_and_in_order_under_every_fault(seed: int) -> None:
    one, two, _, _ = run(seed)

    for reader in (one, two):
        offsets = [delivery.offset for delivery in reader.seen if delivery.queue == LOG.name]
        assert offsets == list(range(len(offsets)))
        assert list(dict.fromkeys(reader.bodies(LOG))) == [b"%d" % number for number in range(60)]
    assert one.bodies(LOG) == two.bodies(LOG)


def test_the_faults_happen_at_all() -> None:
    outcomes = [run(seed) for seed in range(3)]
    happened = sum((broker.happened for _, _, _, broker in outcomes), Counter[str]())
    faults = {name for name in EVERYTHING if not name.endswith("_s")} - {"drop_transient"}

    assert any(len(one.bodies(LOG)) > 60 for one, _, _, _ in outcomes), "a duplicate"
    assert any(delivery.redelivered for one, _, _, _ in outcomes for delivery in one.seen), "a redelivery"
    assert any(isinstance(event, Disconnected) for _, _, events, _ in outcomes for event in events), "a lost connection"
    assert {fault for fault, count in happened.items() if count} == faults


def test_a_publish_whose_confirm_is_lost_is_there_twice_and_confirmed_once() -> None:
    clock = Clock()
    broker = MemoryBroker(clock, Faults(seed=0, lost_confirm=1.0, outage_max_s=1.0))
    client = declared(broker)
    for number in range(3):
        client.transport.publish(NAMES.down, LOG.name, b"%d" % number)
    assert not any(isinstance(event, Confirmed) for event in client.inbox)

    broker.inject(None)
    clock.now = 2.0
    broker.advance(clock.now)
    assert [body for _, body in broker.entries(LOG.name, 0)] == [b"0", b"0", b"1", b"2"]
    assert broker.entries(LOG.name, 2) == [(2, b"1"), (3, b"2")]
    assert [event.through for event in client.inbox if isinstance(event, Confirmed)][-1] == 3


def test_a_lost_confirm_in_the_middle_of_many_publishes_loses_and_reorders_none() -> None:
    clock = Clock()
    broker = MemoryBroker(clock, Faults(seed=4, lost_confirm=0.3))
    client = declared(broker)
    broker.block("for a while")
    for number in range(20):
        client.transport.publish(NAMES.down, LOG.name, b"%d" % number)
    broker.unblock()
    broker.inject(None)
    broker.advance(1.0)
    bodies = [body for _, body in broker.entries(LOG.name, 0)]
    assert len(bodies) > 20
    assert list(dict.fromkeys(bodies)) == [b"%d" % number for number in range(20)]
    assert [event.through for event in client.inbox if isinstance(event, Confirmed)][-1] == 20


def test_one_queue_may_overtake_another_on_the_way_to_one_client() -> None:
    clock = Clock()
    broker = MemoryBroker(clock, Faults(seed=2, delay=0.5, delay_max_s=5.0))
    client = declared(broker)
    client.transport.consume(GROUPS, prefetch=100)
    client.transport.consume(LOG, prefetch=100, start="first")
    for number in range(20):
        for queue in (GROUPS, LOG):
            client.transport.publish(NAMES.down, queue.name, b"%d" % number)
    while (due := broker.next_event_at()) is not None:
        clock.now = due
        broker.advance(clock.now)

    arrived = [delivery for event in client.inbox if isinstance(event, Delivered) for delivery in event.deliveries]
    numbers = [int(delivery.body) for delivery in arrived]
    for queue in (GROUPS, LOG):
        assert [int(one.body) for one in arrived if one.queue == queue.name] == list(range(20))
    assert numbers != sorted(numbers)


def test_one_seed_gives_one_history() -> None:
    def history(seed: int) -> list[tuple[str, bytes, bool, int | None]]:
        one, two, _, _ = run(seed)
        return [(seen.queue, seen.body, seen.redelivered, seen.offset) for seen in [*one.seen, *two.seen]]

    assert history(7) == history(7)
    assert history(7) != history(8)


def test_dropped_transient_messages_are_confirmed_and_gone() -> None:
    broker = MemoryBroker(faults=Faults(seed=1, drop_transient=0.5))
    client = declared(broker)
    client.transport.consume(TALK, prefetch=1000)

    for _ in range(400):
        client.transport.publish(NAMES.down, TALK.name, b"hello", persistent=False)
    client.work(random.Random(0))

    # 400 fair coins: outside of 150..250 once in 10^6 seeds.
    assert 150 < len(client.bodies(TALK)) < 250


def test_delayed_messages_wait_for_the_clock_and_keep_their_order() -> None:
    clock = Clock()
    broker = MemoryBroker(clock, Faults(seed=3, delay=1.0, delay_max_s=10.0))
    client = declared(broker)
    client.transport.consume(GROUPS, prefetch=100)
    for number in range(10):
        client.transport.publish(NAMES.down, GROUPS.name, b"%d" % number)
    assert not any(isinstance(event, Delivered) for event in client.inbox)

    previous = 0.0
    while (due := broker.next_event_at()) is not None:
        assert previous <= due <= 20.0
        previous = clock.now = due
        broker.advance(due)
    client.work(random.Random(0))

    assert client.bodies(GROUPS) == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("seed", range(100))
def test_a_confirm_never_precedes_its_message_also_when_an_exchange_was_missing(seed: int) -> None:
    clock = Clock()
    broker = MemoryBroker(clock, Faults(seed=seed, delay=0.8))
    client, later = declared(broker), Names("later")
    marks = []

    def check(events: Sequence[TransportEvent]) -> None:
        for event in events:
            if isinstance(event, Confirmed):
                marks.append(event.through)
                arrived = broker.depth(groups_queue(later).name)
                assert arrived >= (event.through >= 4) + (event.through >= 6)

    publisher = MemoryTransport(broker, check, name="publisher")
    # The fourth and the sixth have nowhere to go at first.
    for names in (NAMES, NAMES, NAMES, later, NAMES, later):
        publisher.publish(names.down, groups_queue(names).name, b"job")
    broker.advance(0.9)
    client.transport.declare(federation_topology(later, [], 0))
    while (due := broker.next_event_at()) is not None:
        broker.advance(due)

    assert marks[-1] == 6


def test_a_delivery_under_way_when_its_subscription_is_cancelled_does_not_arrive() -> None:
    clock = Clock()
    broker = MemoryBroker(clock)
    client = declared(broker)
    client.transport.publish(NAMES.down, GROUPS.name, b"job")
    broker.inject(Faults(seed=0, delay=1.0))
    client.transport.consume(GROUPS, prefetch=10)

    client.transport.cancel(GROUPS.name)
    broker.advance(10.0)

    assert not any(isinstance(event, Delivered) for event in client.inbox)
    assert broker.depth(GROUPS.name) == 1


def test_an_outage_lasts_its_virtual_time_and_what_is_published_meanwhile_arrives_after_it() -> None:
    clock = Clock()
    broker = MemoryBroker(clock)
    client, reader = declared(broker), Client(broker, "reader")
    reader.transport.consume(GROUPS, prefetch=10)

    broker.disconnect(client.transport, outage_s=5.0)
    client.transport.publish(NAMES.down, GROUPS.name, b"later")
    broker.advance(4.9)
    reader.work(random.Random(0))
    assert reader.bodies(GROUPS) == []
    assert broker.next_event_at() == 5.0
    broker.advance(5.0)
    reader.work(random.Random(0))

    assert reader.bodies(GROUPS) == [b"later"]
    assert [type(event) for event in client.inbox] == [Connected, Disconnected, Connected, Confirmed]


def test_a_restart_keeps_what_is_durable_and_loses_what_is_not() -> None:
    broker = MemoryBroker()
    client = declared(broker)
    client.transport.publish(NAMES.down, GROUPS.name, b"job")
    client.transport.publish(NAMES.down, LOG.name, b"entry")
    client.transport.consume(TALK, prefetch=1)
    for body in (b"talk 1", b"talk 2"):
        client.transport.publish(NAMES.down, TALK.name, body, persistent=False)
    assert broker.depth(TALK.name) == 2

    broker.restart()

    assert (broker.depth(GROUPS.name), broker.depth(LOG.name), broker.depth(TALK.name)) == (1, 1, 0)
    client.transport.publish(NAMES.down, TALK.name, b"talk 3", persistent=False)
    client.work(random.Random(0))
    assert client.bodies(TALK) == [b"talk 1", b"talk 3"]


def test_a_crashed_client_is_silent_and_its_transport_is_closed() -> None:
    broker = MemoryBroker()
    client, other = declared(broker), Client(broker, "other")
    client.transport.consume(GROUPS, prefetch=10)
    broker.crash(client.transport)
    client.inbox.clear()

    other.transport.publish(NAMES.down, GROUPS.name, b"job")

    assert client.inbox == []
    assert broker.depth(GROUPS.name) == 1
    with pytest.raises(BrokerUnavailable):
        client.transport.publish(NAMES.down, GROUPS.name, b"from the dead")


def test_dead_letters_stay_with_their_queue_until_another_takes_them() -> None:
    broker = MemoryBroker()
    client = Client(broker, "client")
    full = federation_topology(NAMES, [], 0)
    without_dead = tuple(queue for queue in full.queues if queue.name != NAMES.dead)
    client.transport.declare(type(full)(exchanges=full.exchanges, queues=without_dead))
    client.transport.consume(GROUPS, prefetch=10)
    for body in (b"bad", b"good"):
        client.transport.publish(NAMES.down, GROUPS.name, body)
    bad, good = [one for event in client.inbox if isinstance(event, Delivered) for one in event.deliveries]

    client.transport.settle(bad, Outcome.DEAD_LETTER)
    assert broker.depth(GROUPS.name) == 2
    client.transport.declare(type(full)(exchanges=(), queues=(dead_queue(NAMES),)))
    client.transport.settle(good)

    assert (broker.depth(GROUPS.name), broker.depth(NAMES.dead)) == (0, 1)


def test_what_was_published_is_counted_by_exchange_and_key() -> None:
    broker = MemoryBroker()
    client = declared(broker)
    for body in (b"12345", b"678"):
        client.transport.publish(NAMES.down, GROUPS.name, body)

    assert broker.published_bytes == {(NAMES.down, GROUPS.name): 8}
    assert broker.published_messages == {(NAMES.down, GROUPS.name): 2}


@pytest.mark.parametrize("wrong", [{"delay": 1.1}, {"duplicate": -0.1}, {"outage_max_s": -1.0}])
def test_faults_have_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(LocalProtocolError):
        Faults(seed=0, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("slow", [{"delay": 0.1}, {"connection_loss": 0.1}, {"lost_confirm": 0.1}])
def test_faults_that_take_time_need_a_clock(slow: dict[str, float]) -> None:
    with pytest.raises(LocalProtocolError):
        MemoryBroker(faults=Faults(seed=0, **slow))  # type: ignore[arg-type]


def test_many_threads_may_publish_and_settle_at_once() -> None:
    broker = MemoryBroker()
    declared(broker)
    clients = [Client(broker, f"client-{number}") for number in range(4)]

    def act(client: Client, number: int) -> None:
        client.transport.consume(GROUPS, prefetch=3)
        for step in range(200):
            client.transport.publish(NAMES.down, GROUPS.name, b"%d.%d" % (number, step))
            settle_everything(client)

    threads = [threading.Thread(target=act, args=(client, number)) for number, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    while any(settle_everything(client) for client in clients):
        pass

    # An exception in a thread fails the test by pytest's warning.
    assert broker.depth(GROUPS.name) == 0


def settle_everything(client: Client) -> bool:
    """Settle what has arrived since the last time; whether there was anything."""
    arrived = []
    while client.inbox:
        event = client.inbox.pop(0)
        if isinstance(event, Delivered):
            arrived.append(event)
    for event in arrived:
        for delivery in event.deliveries:
            client.transport.settle(delivery)
    return bool(arrived)


WORD = st.sampled_from(["a", "b", "ab"])


@given(st.lists(WORD | st.sampled_from(["*", "#"]), max_size=5), st.lists(WORD, max_size=5))
def test_topic_patterns_agree_with_a_regular_expression(pattern: Sequence[str], words: Sequence[str]) -> None:
    # Each word with a dot behind it: `#` is any number of those, also none.
    meaning = {"*": r"[^.]+\.", "#": r"(?:[^.]+\.)*"}
    expression = "".join(meaning.get(word, word + r"\.") for word in pattern)
    key = "".join(word + "." for word in words)
    if not pattern or not words:
        return

    assert topic_matches(".".join(pattern), ".".join(words)) == (re.fullmatch(expression, key) is not None)


@given(st.lists(st.integers(1, 30), max_size=80))
def test_retention_removes_whole_old_segments_only(sizes: list[int]) -> None:
    limit, segment = 100, 20
    arguments = {"x-max-length-bytes": limit, "x-stream-max-segment-size-bytes": segment}
    stream = Stream(Queue(name="s", kind=QueueKind.STREAM, arguments=arguments))

    for size in sizes:
        stream.put(Message("", "s", bytes(size), True, "user"))
    kept = list(stream.read(0, 1000))

    assert [offset for offset, _ in kept] == list(range(stream.end - len(kept), len(sizes)))
    assert [len(message.body) for _, message in kept] == sizes[len(sizes) - len(kept) :]
    size = sum(len(message.body) for _, message in kept)
    # A segment ends with the entry that fills it, and the newest is never removed.
    assert size <= limit + segment + 30
    assert size >= min(sum(sizes), limit - segment - 30)
    assert stream.begin("first") == stream.end - len(kept)
    assert stream.begin(0) == stream.begin("first")
    assert stream.begin(10**6) == stream.begin("next") == len(sizes)
