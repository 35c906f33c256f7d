"""The fixture that runs the contract suite over both brokers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.bench import Bench, MemoryBench, RabbitMqBench


@pytest.fixture(params=["memory", "rabbitmq"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Both brokers, one after the other."""
    in_memory = request.param == "memory"
    made = MemoryBench() if in_memory else RabbitMqBench(request.getfixturevalue("rabbitmq_url"))
    yield made
    made.close()
