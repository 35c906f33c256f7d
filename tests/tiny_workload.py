"""The smallest workload that learns: a linear model, every client's data made from its name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from shared.codec.flatten import layout_of
from shared.workloads.port import TrainingRecipe

FEATURES = 3
TINY_DIMENSION = FEATURES + 1
RECORDS_MAX = 12


class TinyWorkload:
    """Regression to known weights; `features` + 1 parameters. Clients have 4 to 12 records."""

    name = "tiny"
    recipe = TrainingRecipe(
        options={"lr": 0.1}, batch_size=2, local_epochs=1, clipping_norm=10.0, metric_bounds={"loss": 50.0}
    )

    def __init__(self, features: int = FEATURES) -> None:
        self._features = features
        self.solution = np.linspace(-1.0, 1.0, features + 1, dtype=np.float32)

    @property
    def dimension(self) -> int:
        return self._features + 1

    @property
    def layout_digest(self) -> str:
        return layout_of(self.model()).digest().hex()

    def model(self) -> nn.Module:
        model = nn.Linear(self._features, 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model

    def client_data(self, client: str, path: Path | None) -> TensorDataset:
        seed = zlib.crc32(client.encode())
        return self._data(seed, 4 + seed % (RECORDS_MAX - 3))

    def evaluation_data(self) -> TensorDataset:
        return self._data(0, 32)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, float]:
        return {"accuracy": float(((outputs - targets).abs() < 0.1).float().mean())}

    def _data(self, seed: int, count: int) -> TensorDataset:
        features = np.random.default_rng(seed).standard_normal((count, self._features)).astype(np.float32)
        features /= np.float32(self._features**0.5)
        targets = features @ self.solution[:-1] + self.solution[-1]
        return TensorDataset(torch.from_numpy(features), torch.from_numpy(targets[:, None]))
