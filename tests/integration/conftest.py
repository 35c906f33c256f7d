"""Federations of real processes over the session's broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
