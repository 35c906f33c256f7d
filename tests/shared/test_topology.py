"""Are all names, bounds and permissions of a federation what the broker needs, and no more?"""

from __future__ import annotations

import re
import uuid

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.identity import ClientId, SiteId, StageId, WorkerId
from shared.transport.memory import MemoryBroker, MemoryTransport
from shared.transport.port import Queue, QueueKind, Topology
from shared.wire import topology
from shared.wire.topology import Names, definitions, federation_topology, site_permissions
from tests.contracts.bench import Recorder

NAMES = Names("11111111-2222-3333-4444-555555555555")
SITE, OTHER = SiteId("site-a"), SiteId("site-a2")
CLIENTS = [ClientId("c1"), ClientId("c-2")]
MODEL_BYTES = 40_000_000
NAME = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,10}[a-z0-9])?", fullmatch=True)


def every_queue(model_bytes: int = MODEL_BYTES) -> list[Queue]:
    exclusive = [
        topology.talk_queue(NAMES, SITE, WorkerId("w1")),
        topology.stage_queue(NAMES, StageId("s1"), model_bytes),
    ]
    return [*federation_topology(NAMES, CLIENTS, model_bytes).queues, *exclusive]


@pytest.mark.parametrize("queue", every_queue(), ids=lambda queue: queue.name.partition(".")[2])
def test_every_queue_is_bounded_and_bound(queue: Queue) -> None:
    arguments = queue.declared_arguments

    assert int(arguments["x-max-length-bytes"]) > 0
    assert queue.kind is QueueKind.STREAM or int(arguments["x-max-length"]) > 0
    assert queue.bindings
    assert all(binding.queue == queue.name for binding in queue.bindings)
    assert queue.exclusive == (queue.kind is QueueKind.CLASSIC)


def test_work_queues_refuse_when_full_and_lose_no_dead_letter() -> None:
    work = [queue for queue in every_queue() if queue.kind is QueueKind.QUORUM and queue.name != NAMES.dead]

    assert {queue.name for queue in work if queue.single_active_consumer} == {
        NAMES.offers,
        NAMES.sums,
        *(NAMES.client(client) for client in CLIENTS),
    }
    assert NAMES.groups in {queue.name for queue in work}
    for queue in work:
        arguments = queue.declared_arguments
        assert arguments["x-delivery-limit"] == 100
        # A paused run keeps offers unsettled; RabbitMQ's own limit is half an hour.
        assert int(arguments["x-consumer-timeout"]) >= 7 * 24 * 3600 * 1000
        assert arguments["x-dead-letter-exchange"] == NAMES.dead_letters
        # The broker ignores at-least-once without reject-publish.
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"


@given(st.integers(0, 10**11))
def test_retention_keeps_two_snapshots_and_twenty_changes(model_bytes: int) -> None:
    arguments = topology.log_queue(NAMES, model_bytes).arguments
    total, segment = int(arguments["x-max-length-bytes"]), int(arguments["x-stream-max-segment-size-bytes"])

    assert total - segment >= 22 * model_bytes
    assert total >= 256 * 2**20
    assert 4 * 2**20 <= segment <= 500_000_000


def may(pattern: str, name: str) -> bool:
    """As the broker asks: anywhere in the name, so that only anchors protect."""
    return re.search(pattern, name) is not None


def test_a_site_may_do_what_its_workers_do() -> None:
    allowed = site_permissions(NAMES, SITE, CLIENTS)
    talk = NAMES.talk(SITE, WorkerId("w1"))

    assert may(allowed.configure, talk)
    assert all(may(allowed.write, name) for name in (talk, NAMES.up))
    assert all(may(allowed.read, name) for name in (talk, NAMES.down, NAMES.log, *map(NAMES.client, CLIENTS)))
    assert may(allowed.bind_down, talk)
    assert may(allowed.publish_up, NAMES.offer_key(SITE))
    assert may(allowed.publish_up, NAMES.reply_key(StageId("s1"), SITE))


@given(NAME.filter(lambda name: name != SITE), NAME.filter(lambda name: name not in CLIENTS), NAME)
def test_a_site_may_do_nothing_in_the_name_of_others(site: str, client: str, word: str) -> None:
    allowed = site_permissions(NAMES, SITE, CLIENTS)
    everywhere = (allowed.configure, allowed.write, allowed.read, allowed.bind_down)
    others = SiteId(site)
    foreign = [
        NAMES.talk(others, WorkerId(word)),
        NAMES.client(ClientId(client)),
        NAMES.offers,
        NAMES.groups,
        NAMES.sums,
        NAMES.dead,
        NAMES.journal,
        NAMES.stage(StageId(word)),
        NAMES.dead_letters,
        "",
        "amq.default",
        f"x{NAMES.up}",
        f"x{NAMES.talk(SITE, WorkerId(word))}",
        f"{NAMES.talk(SITE, WorkerId(word))}.more",
        f"x{NAMES.log}",
        f"{NAMES.log}2",
        f"{NAMES.client(CLIENTS[0])}.more",
        NAMES.log.replace(".", "-"),
    ]

    assert not any(may(pattern, name) for pattern in everywhere for name in foreign)
    assert not may(allowed.write, NAMES.down)
    assert not may(allowed.write, NAMES.log)
    assert not may(allowed.configure, NAMES.up)
    assert not may(allowed.read, NAMES.up)
    assert not may(allowed.publish_up, NAMES.offer_key(others))
    assert not may(allowed.publish_up, NAMES.operator_key)
    assert not may(allowed.publish_up, NAMES.reply_key(StageId(word), others))
    assert not may(allowed.publish_up, f"reply.{word}.{word}.{SITE}")
    assert not any(may(allowed.bind_down, key) for key in ("#", "*", f"{NAMES.federation}.#", NAMES.client(CLIENTS[0])))


def test_definitions_hold_what_the_transport_declares_and_no_credentials() -> None:
    described = definitions(NAMES, {SITE: CLIENTS, OTHER: [ClientId("c3")]}, MODEL_BYTES)
    declared = federation_topology(NAMES, [*CLIENTS, ClientId("c3")], MODEL_BYTES)

    assert {queue["name"]: queue["arguments"] for queue in described["queues"]} == {
        queue.name: queue.declared_arguments for queue in declared.queues
    }
    assert {(exchange["name"], exchange["type"]) for exchange in described["exchanges"]} == {
        (exchange.name, exchange.kind.value) for exchange in declared.exchanges
    }
    assert {(b["source"], b["destination"], b["routing_key"]) for b in described["bindings"]} == {
        (b.exchange, b.queue, b.routing_key) for queue in declared.queues for b in queue.bindings
    }
    assert {permission["user"] for permission in described["permissions"]} == {"coordinator", SITE, OTHER}
    assert {(topic["user"], topic["exchange"]) for topic in described["topic_permissions"]} == {
        (site, exchange) for site in (SITE, OTHER) for exchange in (NAMES.up, NAMES.down)
    }
    assert "users" not in described


def test_declaring_after_an_import_of_the_definitions_changes_nothing(rabbitmq_url: str) -> None:
    names = Names(str(uuid.uuid4()))
    described = definitions(names, {SITE: CLIENTS}, MODEL_BYTES)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        for exchange in described["exchanges"]:
            channel.exchange_declare(exchange["name"], exchange["type"], durable=exchange["durable"])
        for queue in described["queues"]:
            channel.queue_declare(queue["name"], durable=queue["durable"], arguments=queue["arguments"])
        for binding in described["bindings"]:
            channel.queue_bind(binding["destination"], binding["source"], binding["routing_key"])
        try:
            for again in federation_topology(names, CLIENTS, MODEL_BYTES).queues:
                channel.queue_declare(again.name, durable=True, arguments=again.declared_arguments)
        finally:
            channel = connection.channel()
            for queue in described["queues"]:
                channel.queue_delete(queue["name"])
            for exchange in described["exchanges"]:
                channel.exchange_delete(exchange["name"])


def test_every_arrow_of_the_federation_ends_in_its_queue() -> None:
    recorder = Recorder()
    transport = MemoryTransport(MemoryBroker(), recorder, name="all")
    queues = every_queue()
    durable = tuple(queue for queue in queues if not queue.exclusive)
    transport.declare(Topology(exchanges=federation_topology(NAMES, [], 0).exchanges, queues=durable))
    for queue in queues:
        start = "first" if queue.kind is QueueKind.STREAM else None
        transport.consume(queue, prefetch=10, start=start)  # type: ignore[arg-type]
    down = {queue.name for queue in queues} - {NAMES.offers, NAMES.dead, NAMES.stage(StageId("s1"))}

    for name in down:
        transport.publish(NAMES.down, name, name.encode())
    transport.publish(NAMES.up, NAMES.offer_key(SITE), NAMES.offers.encode())
    transport.publish(NAMES.up, NAMES.reply_key(StageId("s1"), SITE), NAMES.stage(StageId("s1")).encode())
    transport.publish(NAMES.dead_letters, "anything", NAMES.dead.encode())

    for queue in queues:
        assert [delivery.body for delivery in recorder.deliveries(queue)] == [queue.name.encode()]
