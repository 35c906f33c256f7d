"""Small workloads for federations of real processes; named `tests.integration.workloads:Wide` and so on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from shared.workloads.port import TrainingRecipe

GATE_VARIABLE = "E2E_GATE"
"""Names the file that `Gated` waits for."""

WAIT_S = 120.0


class _Vector(nn.Module):
    """All parameters in one vector; each output is its mean, so that every parameter has a gradient."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.linspace(-1.0, 1.0, dimension))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.vector.mean().expand(len(features))


@dataclass(frozen=True)
class Wide:
    """A model of `dimension` parameters that trains in no time: its mean is to become the mean of the targets."""

    dimension: int = 1_000_000
    records: int = 4
    name: str = field(default="wide", init=False)

    @property
    def recipe(self) -> TrainingRecipe:
        return TrainingRecipe(options={"lr": 0.1 * self.dimension}, batch_size=64, clipping_norm=1000.0)

    def model(self) -> nn.Module:
        return _Vector(self.dimension)

    def client_data(self, client: str, path: Path | None) -> TensorDataset:
        number = int(client.rpartition("-")[2])
        return TensorDataset(torch.zeros(self.records, 1), torch.full((self.records,), float(number)))

    def evaluation_data(self) -> TensorDataset:
        return self.client_data("client-1", None)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, float]:
        return {"accuracy": 1.0 / (1.0 + float((outputs - targets).abs().mean()))}


@dataclass(frozen=True)
class Small(Wide):
    """The same with few parameters."""

    dimension: int = 1000


@dataclass(frozen=True)
class Normalized(Small):
    """The same behind running statistics of the features, which are all equal to the client's number."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(1, affine=False), super().model())

    def client_data(self, client: str, path: Path | None) -> TensorDataset:
        targets = super().client_data(client, path).tensors[1]
        return TensorDataset(targets.unsqueeze(1), targets)


@dataclass(frozen=True)
class Gated(Small):
    """After `free` batches of one process, training waits until the file that `E2E_GATE` names is there."""

    free: int = 0
    _trained: list[int] = field(default_factory=list, init=False, compare=False)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if outputs.requires_grad:
            self._trained.append(1)
            if len(self._trained) > self.free:
                _wait_for(Path(os.environ[GATE_VARIABLE]))
        return super().loss(outputs, targets)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} never came")
        time.sleep(0.01)
