"""A workload that learns nothing and costs next to nothing: what is left of a round is Comitia's own.

Each client takes one real step of SGD on the same made-up record. It is there to measure everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from shared.workloads.port import TrainingRecipe


class Still:
    """One linear layer of 100 x 100 (d = 10,000) and one record per client, of whom there may be any number."""

    name = "still"
    recipe = TrainingRecipe(optimizer="SGD", options={"lr": 0.01}, batch_size=1, local_epochs=1, clipping_norm=1.0)

    def model(self) -> nn.Module:
        """Zeros: nothing is drawn."""
        layer = nn.Linear(100, 100, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    def client_data(self, client: str, path: Path | None) -> TensorDataset:
        """One record."""
        return TensorDataset(torch.ones(1, 100), torch.ones(1, 100))

    def evaluation_data(self) -> TensorDataset:
        """The same record."""
        return self.client_data("", None)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean squared error."""
        return nn.functional.mse_loss(outputs, targets)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, float]:
        """Nothing more."""
        return {}
