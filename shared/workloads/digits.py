"""The handwritten digits that scikit-learn carries: a real data set small enough to federate on any machine.

1,797 images of 8 x 8 grey values from 0 to 16; 360 of them are held out for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from sklearn.datasets import load_digits
from torch import nn

from shared.errors import WorkloadError
from shared.workloads.bundled import BundledWorkload, LabeledTable, divided_table, seeded
from shared.workloads.port import Preset, TrainingRecipe

SIDE = 8
PIXELS = SIDE * SIDE
HIDDEN = 128
HIDDEN_PRIVATE = 64
CLASSES = 10
EVALUATION_COUNT = 360

_GREY_MAX = 16.0


@cache
def digits_table() -> LabeledTable:
    """Return all images as rows of 64 values from 0 to 1."""
    bunch = load_digits()
    return divided_table(bunch.data, bunch.target, EVALUATION_COUNT, _GREY_MAX)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu-128": lambda: nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)),
    "tanh-64": lambda: nn.Sequential(nn.Linear(PIXELS, HIDDEN_PRIVATE), nn.Tanh(), nn.Linear(HIDDEN_PRIVATE, CLASSES)),
}


@dataclass(frozen=True)
class Digits(BundledWorkload):
    """Ten digits and an MLP with one hidden layer.

    Args:
        network: one of `NETWORKS`, relu-128 (d = 9,610) or tanh-64 (d = 4,810), whose bounded activations keep
            gradients short.
    """

    name = "digits"
    table = staticmethod(digits_table)

    network: str = "relu-128"

    def __post_init__(self) -> None:
        """
        Raises:
            WorkloadError: there is no such network.
        """
        super().__post_init__()
        if self.network not in NETWORKS:
            raise WorkloadError(
                f"workload_options: network of digits must be one of {', '.join(NETWORKS)}, not {self.network!r}"
            )

    @staticmethod
    def preset(level: str, epsilon: float) -> Preset | None:
        """`digits/record`: for about 20 clients of 72 records in groups of 4, one of which may be attacked.

        `digits/client`: for 300 clients of 4 or 5 records in one sum.
        """
        if level == "client":
            return Preset(
                name="digits/client",
                workload_options={"network": "tanh-64"},
                sections={
                    "training": {
                        "optimizer": {"name": "SGD", "options": {"lr": 1.0}},
                        "batch_size": 8,
                        "local_epochs": 1,
                    },
                    "codec": {"selection": "restricted", "density": 0.25, "clipping_norm": 1.0},
                    "round": {"rounds": 30},
                },
            )
        if level != "record":
            return None
        return Preset(
            name="digits/record",
            workload_options={"network": "tanh-64"},
            sections={
                "training": {"optimizer": {"name": "SGD", "options": {"lr": 2.0 if epsilon >= 4.0 else 1.0}}},
                "codec": {"selection": "restricted", "density": 0.25, "bits": 16},
                "round": {"rounds": 60},
                "steering": {"ema": 0.85},
            },
        )

    @property
    def recipe(self) -> TrainingRecipe:
        """SGD with lr 0.3, batches of 16, 2 local epochs."""
        return TrainingRecipe(optimizer="SGD", options={"lr": 0.3}, batch_size=16, local_epochs=2, clipping_norm=1.5)

    def model(self) -> nn.Module:
        """Build the network; see `BundledWorkload.model`."""
        return seeded(NETWORKS[self.network], self.seed)


class DigitsLinear(BundledWorkload):
    """The same images and a linear model; its data files are those of `Digits`."""

    name = "digits_linear"
    table = staticmethod(digits_table)

    @property
    def recipe(self) -> TrainingRecipe:
        """SGD with lr 0.5, batches of 16, 2 local epochs."""
        return TrainingRecipe(optimizer="SGD", options={"lr": 0.5}, batch_size=16, local_epochs=2, clipping_norm=1.5)

    @staticmethod
    def preset(level: str, epsilon: float) -> Preset | None:
        """`digits_linear/record`: for about 10 clients of 144 records; `digits_linear/client`: for 300 in one sum."""
        if level == "client":
            return Preset(
                name="digits_linear/client",
                sections={
                    "training": {
                        "optimizer": {"name": "SGD", "options": {"lr": 2.0}},
                        "batch_size": 8,
                        "local_epochs": 1,
                    },
                    "codec": {"selection": "dense", "density": 1.0, "clipping_norm": 2.0},
                    "round": {"rounds": 10},
                },
            )
        if level != "record":
            return None
        return Preset(
            name="digits_linear/record",
            sections={
                "training": {"optimizer": {"name": "SGD", "options": {"lr": 8.0 if epsilon >= 4.0 else 2.0}}},
                "codec": {"selection": "dense", "density": 1.0},
                "round": {"rounds": 40},
            },
        )

    def model(self) -> nn.Module:
        """Build the network, d = 650; see `BundledWorkload.model`."""
        return seeded(lambda: nn.Linear(PIXELS, CLASSES), self.seed)


class DigitsCnn(BundledWorkload):
    """The same images and a small convolutional network; its data files are those of `Digits`."""

    name = "digits_cnn"
    table = staticmethod(digits_table)

    @property
    def recipe(self) -> TrainingRecipe:
        """SGD with lr 0.125, batches of 16, 2 local epochs. With 0.2 one run in seven diverges at density 0.1."""
        return TrainingRecipe(optimizer="SGD", options={"lr": 0.125}, batch_size=16, local_epochs=2, clipping_norm=0.9)

    def model(self) -> nn.Module:
        """Build the network, d = 6,090; see `BundledWorkload.model`."""
        return seeded(_convolutions, self.seed)


def _convolutions() -> nn.Module:
    """Two 3 x 3 convolutions, each halved by pooling, and a linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (SIDE // 4) ** 2, CLASSES),
    )
