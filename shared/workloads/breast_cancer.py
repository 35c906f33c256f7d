"""The Wisconsin diagnostic breast cancer records that scikit-learn carries: a small medical table.

569 records of 30 measurements of cell nuclei, target 0 malignant and 1 benign; 114 are held out for evaluation.
Measurements are standardized with mean and deviation of the training part. These few numbers are public here; parties
with their own records have to agree on them.
"""

from __future__ import annotations

from functools import cache

from sklearn.datasets import load_breast_cancer
from torch import nn

from shared.workloads.bundled import BundledWorkload, LabeledTable, seeded, standardized_table
from shared.workloads.port import TrainingRecipe

MEASUREMENTS = 30
HIDDEN = 32
CLASSES = 2
EVALUATION_COUNT = 114


@cache
def breast_cancer_table() -> LabeledTable:
    """Return all records."""
    bunch = load_breast_cancer()
    return standardized_table(bunch.data, bunch.target, EVALUATION_COUNT)


class BreastCancer(BundledWorkload):
    """Malignant or benign, and an MLP of 30-32-2."""

    name = "breast_cancer"
    table = staticmethod(breast_cancer_table)

    @property
    def recipe(self) -> TrainingRecipe:
        """SGD with lr 0.1, batches of 16, 2 local epochs."""
        return TrainingRecipe(optimizer="SGD", options={"lr": 0.1}, batch_size=16, local_epochs=2, clipping_norm=0.7)

    def model(self) -> nn.Module:
        """Build the network, d = 1,058; see `BundledWorkload.model`."""
        return seeded(
            lambda: nn.Sequential(nn.Linear(MEASUREMENTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)), self.seed
        )
