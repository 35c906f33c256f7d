"""A simulation that is given its entropy is the same again: a bound on what it learns then holds always, or never."""

from __future__ import annotations

import random
from typing import Any

import pytest

from deploy.demo.options import DemoOptions
from deploy.demo.simulation import Simulation

EVERYTHING: dict[str, Any] = {"privacy": "record", "attackers": 1, "drop": 1, "drop_at": "words", "group_size": 3}


def notes_with(entropy: str, options: dict[str, Any]) -> list[Any]:
    """All that is noted, but for what the run cost this machine."""
    run = Simulation(DemoOptions(clients=12, **options), entropy=random.Random(entropy).randbytes).run()
    timed = ("version_measured", "simulation_measured")
    return [(note.event, note.fields) for note in run if note.event not in timed]


@pytest.mark.parametrize("options", [EVERYTHING, {"mode": "async", "validation": 0.25}])
def test_the_same_entropy_makes_the_same_run(options: dict[str, Any]) -> None:
    first, again = (notes_with("some", options | {"rounds": 3}) for _ in range(2))
    other = notes_with("other", options | {"rounds": 3})

    assert first == again
    assert first[-1] != other[-1]
