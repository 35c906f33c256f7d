"""How long does a warm round take over a real RabbitMQ, and where does the time go?

10,000 parameters, plain mean, 100 rounds, in groups of one and in secure groups; training is next to nothing, and what
it takes is measured in the same run. Beside it stands the broker's hop time, also of the same run: half of what a 1 KiB
persistent message takes to a quorum queue and back.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploy.brokers import Broker
from deploy.demo.options import DemoOptions
from deploy.demo.processes import Processes
from deploy.demo.report import Run
from shared.codec.flatten import read_weights
from shared.transport.broker_settings import BrokerSettings
from shared.transport.port import (
    Binding,
    Delivered,
    Exchange,
    ExchangeKind,
    Queue,
    QueueKind,
    Topology,
    TransportEvent,
)
from shared.transport.rabbitmq import RabbitMqTransport
from shared.workloads.still import Still
from tests.bench.measure import Row
from worker.training.plain import PlainTraining

WARM_UP = 10
HOPS = 200


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Who takes part, in how many processes, and in groups of how many."""

    name: str
    clients: int
    processes: int
    group_size: int


LAYOUTS = (
    Layout(name="plain round, 8 clients in 2 processes", clients=8, processes=2, group_size=1),
    Layout(name="secure round, 8 clients in 2 processes, groups of 4", clients=8, processes=2, group_size=4),
    Layout(name="secure round, 64 clients in 8 processes, groups of 8", clients=64, processes=8, group_size=8),
)

SPANS = (
    ("seconds_offers", "change entry to draw (log, training, offers)"),
    ("seconds_sums", "draw to step"),
    ("seconds_log", "step to read-back"),
)

STATES = {
    "job": "draw to rosters (job through its queue)",
    "shares": "rosters to all shares",
    "words": "shares handed on, to all words (masks, disk)",
    "agreement": "who arrived, to t agreements",
    "reveal": "agreements handed on, to t reveals",
}
"""What the groups of a round wait for one after the other, as the coordinator reports it: means over its groups."""


def round_rows(broker: Broker) -> Iterator[Row]:
    """The whole round and its parts in every layout, beside one hop through the broker."""
    for layout in LAYOUTS:
        # Measured anew for each: what else the machine does meets both.
        hop_s = hop_time(broker.url)
        rounds = measure(broker, layout)
        whole = [one["seconds"] for one in rounds]
        yield row(layout.name, statistics.median(whole), hop_s)
        yield row("  nine of ten rounds within", statistics.quantiles(whole, n=10)[-1], hop_s)
        for name, label in SPANS:
            yield row(f"  {label}", statistics.median(one[name] for one in rounds), hop_s)
            if name == "seconds_sums" and layout.group_size > 1:
                for state, waited_for in STATES.items():
                    seconds = [one["seconds_in_groups"][state] for one in rounds]
                    yield row(f"    {waited_for}", statistics.median(seconds), hop_s)
        training_s = layout.clients // layout.processes * training_time()
        yield row("  training of one process", training_s, hop_s)


def row(label: str, seconds: float, hop_s: float) -> Row:
    """One line, in milliseconds."""
    return Row(path=label, unit="ms", ours=seconds * 1e3, limit_name="one hop (quorum queue)", limit=hop_s * 1e3)


def measure(broker: Broker, layout: Layout, rounds: int = 100) -> list[dict[str, Any]]:
    """The rounds after the warm-up, as the coordinator reports them."""
    options = DemoOptions(
        workload="still",
        clients=layout.clients,
        processes=layout.processes,
        group_size=layout.group_size,
        rounds=rounds + WARM_UP,
        robust="mean",
        trim=0,
    )
    run = Run(broker.kind.value, broker.version)
    with tempfile.TemporaryDirectory() as folder, Processes(options, broker, Path(folder) / "bench") as processes:
        for line in processes.notes():
            if line is not None:
                run.hear(str(line["event"]), line)
    return run.rounds[WARM_UP:]


def training_time() -> float:
    """Seconds of one client's training (median)."""
    torch.set_num_threads(1)
    workload = Still()
    model, data = workload.model(), workload.client_data("", None)
    training = PlainTraining(workload.loss, workload.recipe)
    weights = read_weights(model)
    seconds = []
    for seed in range(50):
        start = time.perf_counter()
        training.train(model, data, weights, seed)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def hop_time(url: str) -> float:
    """Seconds of one hop through a quorum queue: half of a request and its reply (median)."""
    arrived = threading.Semaphore(0)
    transport: RabbitMqTransport

    def sink(events: list[TransportEvent]) -> None:
        for event in events:
            if isinstance(event, Delivered):
                for delivery in event.deliveries:
                    transport.settle(delivery)
                    arrived.release()

    name = f"bench-{time.time_ns()}"
    exchange = Exchange(name=name, kind=ExchangeKind.TOPIC)
    binding = Binding(exchange=name, queue=name, routing_key=name)
    queue = Queue(name=name, kind=QueueKind.QUORUM, arguments={"x-expires": 60_000}, bindings=(binding,))
    transport = RabbitMqTransport(BrokerSettings(urls=(url,)), sink, name=name)
    try:
        transport.declare(Topology(exchanges=(exchange,), queues=(queue,)))
        transport.consume(queue, prefetch=10)
        seconds = []
        for _ in range(HOPS):
            start = time.perf_counter()
            transport.publish(name, name, bytes(1024))
            arrived.acquire()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)
    finally:
        transport.close()
