"""What a federation learns in groups of one and of four, beside figures that were measured independently of this code.

The bounds lie 2 to 8 points below what was measured with six seeds, so that two seeds can hold them every time: the
split alone makes a point of difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deploy.demo.options import DemoOptions
from tests.simulated import notes_of

SEEDS = (0, 1)
TWELVE: dict[str, Any] = {"clients": 12, "partition": "dirichlet:0.5", "rounds": 40, "robust": "mean", "group_size": 1}


def accuracies(seed: int, options: dict[str, Any]) -> Iterator[float]:
    for note in notes_of(DemoOptions(seed=seed, **options)):
        if note.event == "round_finished":
            yield float(note.fields["accuracy"])  # type: ignore[arg-type]


def final_accuracy(seed: int, options: dict[str, Any]) -> float:
    return list(accuracies(seed, options))[-1]


def versions_to(accuracy: float, options: dict[str, Any]) -> int:
    """Versions until an accuracy is reached, added up over the seeds."""
    firsts = [next((i for i, found in enumerate(accuracies(seed, options)) if found >= accuracy), 99) for seed in SEEDS]
    return sum(first + 1 for first in firsts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "least"),
    [
        pytest.param(TWELVE | {"density": 1.0}, 0.92, id="dense"),
        pytest.param(TWELVE | {"density": 0.1}, 0.925, id="a tenth of the coordinates"),
        pytest.param(TWELVE | {"density": 0.05}, 0.90, id="a twentieth of the coordinates"),
        pytest.param(TWELVE | {"density": 1.0, "partition": "iid"}, 0.945, id="iid"),
        pytest.param(TWELVE | {"density": 1.0, "group_size": 4}, 0.92, id="dense, groups of four"),
        pytest.param(TWELVE | {"density": 0.1, "group_size": 4}, 0.925, id="a tenth, groups of four"),
        pytest.param(
            {"workload": "breast_cancer", "clients": 8, "rounds": 20, "group_size": 1}, 0.915, id="breast cancer"
        ),
        pytest.param({"partition": "labels:2", "group_size": 1}, 0.85, id="two labels each"),
        pytest.param({"partition": "labels:2", "group_size": 4}, 0.85, id="two labels each, groups of four"),
    ],
)
def test_mean_accuracy_of_two_seeds(options: dict[str, Any], least: float) -> None:
    assert sum(final_accuracy(seed, options) for seed in SEEDS) / len(SEEDS) >= least


@pytest.mark.slow
def test_a_network_of_convolutions_learns() -> None:
    options: dict[str, Any] = {"workload": "digits_cnn", "clients": 8, "processes": 1, "partition": "iid", "rounds": 30}
    options["group_size"] = 1

    # 30 runs, whose coordinates are drawn anew each time, gave 0.947 to 0.981.
    assert final_accuracy(0, options) >= 0.92


@pytest.mark.slow
def test_top_k_is_nearly_as_soon_at_95_percent_as_dense() -> None:
    dense = versions_to(0.95, TWELVE | {"density": 1.0})
    # Measured: 17 + 19 versions and 21 + 21.
    assert versions_to(0.95, TWELVE | {"selection": "top_k"}) <= 1.3 * dense


@pytest.mark.slow
def test_restricted_training_learns_with_steps_that_its_rescale_bears() -> None:
    half = TWELVE | {"selection": "restricted", "density": 0.5, "rounds": 25}
    # Measured: 0.956 with both seeds.
    assert final_accuracy(0, half) >= 0.92
