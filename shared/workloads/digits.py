"""The handwritten digits that scikit-learn carries: a real data set small enough to federate on any machine.

1,797 images of 8 x 8 grey values from 0 to 16; 360 of them are held out for evaluation.
"""

from __future__ import annotations

from functools import cache

from sklearn.datasets import load_digits
from torch import nn

from shared.workloads.bundled import BundledWorkload, LabeledTable, divided_table, seeded
from shared.workloads.port import TrainingRecipe

SIDE = 8
PIXELS = SIDE * SIDE
HIDDEN = 128
CLASSES = 10
EVALUATION_COUNT = 360

_GREY_MAX = 16.0


@cache
def digits_table() -> LabeledTable:
    """Return all images as rows of 64 values from 0 to 1."""
    bunch = load_digits()
    return divided_table(bunch.data, bunch.target, EVALUATION_COUNT, _GREY_MAX)


class Digits(BundledWorkload):
    """Ten digits and an MLP of 64-128-10."""

    name = "digits"
    table = staticmethod(digits_table)

    @property
    def recipe(self) -> TrainingRecipe:
        """SGD with lr 0.3, batches of 16, 2 local epochs."""
        return TrainingRecipe(optimizer="SGD", options={"lr": 0.3}, batch_size=16, local_epochs=2, clipping_norm=1.5)

    def model(self) -> nn.Module:
        """Build the network, d = 9,610; see `BundledWorkload.model`."""
        return seeded(
            lambda: nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)), self.seed
        )


class DigitsCnn(BundledWorkload):
    """The same images and a small convolutional network; its data files are those of `Digits`."""

    name = "digits_cnn"
    table = staticmethod(digits_table)

    @property
    def recipe(self) -> TrainingRecipe:
        """SGD with lr 0.2, batches of 16, 2 local epochs."""
        return TrainingRecipe(optimizer="SGD", options={"lr": 0.2}, batch_size=16, local_epochs=2, clipping_norm=0.9)

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
