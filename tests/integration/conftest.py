"""Federations of real processes over the session's broker."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BrokerUnavailable
from tests.integration.broker_nodes import BrokerNodes, broker_nodes
from tests.integration.federation import LiveFederation

MakeFederation = Callable[..., LiveFederation]

Record = Callable[[str, object], None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Puts a figure into the JUnit report."""
    return lambda name, figure: request.node.user_properties.append((name, figure))


@pytest.fixture
def make_federation(tmp_path: Path, rabbitmq_url: str) -> Iterator[MakeFederation]:
    """Makes one federation, whose settings are those of a coordinator."""
    made: list[LiveFederation] = []

    def make(workload: str, clients: int, **settings: Any) -> LiveFederation:
        root = tmp_path / f"federation-{len(made)}"
        root.mkdir()
        made.append(LiveFederation(root, rabbitmq_url, f"tests.integration.workloads:{workload}", clients, settings))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


@pytest.fixture
def start_nodes(tmp_path: Path) -> Iterator[Callable[[int], BrokerNodes]]:
    """Starts nodes of a broker that the test may kill."""
    root = tmp_path / "broker"
    root.mkdir()
    with contextlib.ExitStack() as stack:

        def start(count: int) -> BrokerNodes:
            try:
                return stack.enter_context(broker_nodes(root, count))
            except BrokerUnavailable as error:
                if os.environ.get("CI"):
                    pytest.fail(f"no RabbitMQ for the tests: {error}")
                pytest.skip(f"no RabbitMQ for the tests: {error}")

        yield start
