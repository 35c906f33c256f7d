"""What does Comitia need to know of a model and its data?

A workload is any object with these attributes; nothing has to be inherited. It is named in the plan as
`package.module:object` (`shared.workloads.loading`). Data are map-style datasets of (features, targets) pairs.

A workload may also have a static method `preset(level, epsilon)`, which returns a `Preset` for a level of privacy, or
None. It is asked before the workload is made, since a preset may say how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.data import Dataset

from shared.errors import WorkloadError

Examples = Dataset[tuple[torch.Tensor, torch.Tensor]]
"""A dataset with `__len__` whose items are (features, target). A `TensorDataset` is read without copying items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """How a client trains, as the workload recommends it; the plan may say otherwise.

    Args:
        optimizer: a class of `torch.optim`; each round starts with a fresh one.
        options: its keyword arguments.
        batch_size: examples per step.
        local_epochs: passes over the client's data per round.
        clipping_norm: L2 norm that about 80 % of dense updates stay below at the start; it adapts itself
            later.
        metric_bounds: for each metric of the training that travels with an update the bound that it is clamped to.
        validation_bounds: the same for "loss" and those of `Workload.metrics` that clients measure on their own
            validation records, if the plan asks for it.
    """

    optimizer: str = "SGD"
    options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1})
    batch_size: int = 32
    local_epochs: int = 1
    clipping_norm: float = 10.0
    metric_bounds: Mapping[str, float] = field(default_factory=lambda: {"loss": 20.0})
    validation_bounds: Mapping[str, float] = field(default_factory=lambda: {"loss": 20.0, "accuracy": 1.0})

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.local_epochs < 1:
            raise WorkloadError("workload: batch_size and local_epochs of the training recipe must be 1 or more")
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0.0):
            raise WorkloadError("workload: clipping_norm of the training recipe must be a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What else a level of privacy changes, as the workload recommends it; what is set by hand wins.

    Args:
        name: by which it is printed.
        workload_options: of the workload itself.
        sections: for each section of the coordinator's settings, values by field.
    """

    name: str
    workload_options: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@runtime_checkable
class Workload(Protocol):
    """A model, its data and its measure of success."""

    @property
    def name(self) -> str:
        """A short name for logs and reports."""

    @property
    def recipe(self) -> TrainingRecipe:
        """How clients train unless the plan says otherwise."""

    def model(self) -> nn.Module:
        """Build the model with its initial weights, on the CPU. What requires a gradient federates."""

    def client_data(self, client: str, path: Path | None) -> Examples:
        """Return the training data of one client.

        Args:
            client: the client's id.
            path: where this client keeps its data, from the worker's settings; None if it has none.

        Raises:
            WorkloadError: there are no data; the message says where they were looked for.
        """

    def evaluation_data(self) -> Examples | None:
        """Return the held-out data that the coordinator evaluates on; None if it has none and clients are to do it."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch, a scalar that can be differentiated."""

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, float]:
        """Return further means over a batch, each a finite number; "accuracy" is shown if it is among them."""
