"""How long does a warm round take over a real RabbitMQ, and where does the time go?

8 clients in 2 processes, 10,000 parameters, plain mean, 100 rounds; training is next to nothing, and what it takes is
measured in the same run. Beside it stands the broker's hop time, also of the same run: half of what a 1 KiB persistent
message takes to a quorum queue and back.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

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
from tests.bench.measure import Row
from tests.bench.workloads import Still
from worker.training.plain import PlainTraining

WARM_UP = 10
HOPS = 200


def round_rows(broker: Broker) -> Iterator[Row]:
    """The whole round and its parts, beside one hop through the broker."""
    hop_s = hop_time(broker.url)
    training_s = 4 * training_time()
    rounds = measure(broker)
    for name, label in (
        ("seconds", "warm round, 8 clients, d = 1e4"),
        ("seconds_offers", "  change entry to draw (log, training, offers)"),
        ("seconds_sums", "  draw to step (jobs, rosters, words)"),
        ("seconds_log", "  step to read-back"),
    ):
        yield row(label, [one[name] for one in rounds], hop_s)
    yield row("  all but training", [one["seconds"] - training_s for one in rounds], hop_s)


def row(label: str, seconds: list[float], hop_s: float) -> Row:
    """One line: the median."""
    limit_name = "one hop through a quorum queue"
    return Row(path=label, unit="ms", ours=statistics.median(seconds) * 1e3, limit_name=limit_name, limit=hop_s * 1e3)


def measure(broker: Broker, rounds: int = 100) -> list[dict[str, float]]:
    """The rounds after the warm-up, as the coordinator reports them."""
    options = DemoOptions(
        workload="tests.bench.workloads:Still", clients=8, processes=2, rounds=rounds + WARM_UP, robust="mean"
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
