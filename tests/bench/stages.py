"""What does one group cost a summing stage, and what do two stages do that one does not?

64 groups of 8, 100,000 parameters, over a real RabbitMQ: 512 clients in two processes, the coordinator sums nothing.
The limit is the arithmetic alone: eight vectors added, and as many keystreams taken off.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from coordinator.summing.secure_sum import open_sum
from deploy.brokers import Broker
from shared.crypto.masks import unmasking_keys
from tests.bench.measure import Row
from tests.integration.federation import LiveFederation, LoggingProcess, wait_until

GROUPS, MEMBERS = 64, 8
DIMENSION = 100_000
ROUNDS, WARM_UP = 3, 1
TURNS = 9
WAIT_S = 900.0


def stage_rows(broker: Broker) -> Iterator[Row]:
    """CPU time of a stage per group, and the time from draw to step, with one stage and with two."""
    limit_name, limit = "the arithmetic alone", 1e3 * arithmetic_s()
    size = f"{GROUPS} groups of {MEMBERS}, d = 1e5"
    for stages in (1, 2):
        cpu_s, seconds = measure(broker, stages)
        what = f"{stages} stage{'s' * (stages > 1)}, {size}"
        yield Row(path=f"{what}: CPU per group", unit="ms", ours=1e3 * cpu_s, limit_name=limit_name, limit=limit)
        every = {"limit_name": f"{limit_name}, all groups", "limit": GROUPS * limit / stages}
        yield Row(path="  draw to step, clients on the same machine", unit="ms", ours=1e3 * seconds, **every)


def measure(broker: Broker, count: int) -> tuple[float, float]:
    """CPU seconds of the stages per group, and the median seconds from draw to step, without the first rounds."""
    clients = GROUPS * MEMBERS
    settings = {
        "roles": ["scheduler", "aggregator"],
        "group_size": MEMBERS,
        "max_colluders": 1,
        "workload_options": {"dimension": DIMENSION},
        "codec": {"selection": "dense", "density": 1.0, "bits": 32},
        "aggregation": {"rule": "mean", "trim": 0},
        "round": {
            "rounds": WARM_UP + ROUNDS,
            "min_clients": clients,
            "round_deadline_s": 600,
            "group_step_s": 120,
            "sums_deadline_s": 600,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        workload = "tests.integration.workloads:Wide"
        federation = LiveFederation(Path(folder), broker.url, workload, clients, settings)
        try:
            coordinator = federation.start_coordinator()
            stages = [federation.start_stage() for _ in range(count)]
            federation.start_workers(2)
            wait_until(lambda: len(coordinator.notes("round_finished")) >= WARM_UP, "the first round", WAIT_S)
            before = [(cpu_s(stage), groups_of(stage)) for stage in stages]
            coordinator.wait(WAIT_S)
            after = [(cpu_s(stage), groups_of(stage)) for stage in stages]
            rounds = coordinator.notes("round_finished")[WARM_UP:]
        finally:
            federation.close()
    assert all(note["clients_counted"] == clients for note in rounds), "a group was lost"
    spent = sum(late[0] - early[0] for early, late in zip(before, after, strict=True))
    summed = sum(late[1] - early[1] for early, late in zip(before, after, strict=True))
    return spent / summed, statistics.median(note["seconds_sums"] for note in rounds)


def cpu_s(stage: LoggingProcess) -> float:
    """CPU seconds of a process so far."""
    times = psutil.Process(stage.process.pid).cpu_times()
    return float(times.user + times.system)


def groups_of(stage: LoggingProcess) -> int:
    """Groups that a stage has summed so far."""
    return len(stage.notes("group_summed"))


def arithmetic_s() -> float:
    """CPU seconds of one group's sum, from eight vectors in memory (median)."""
    source = random.Random(0)
    keys = unmasking_keys([source.randbytes(32) for _ in range(MEMBERS)], {})
    seconds = []
    for _ in range(TURNS):
        vectors = [np.ones(DIMENSION, np.dtype("<u4")) for _ in range(MEMBERS)]
        start = time.process_time()
        open_sum(vectors, keys)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)
