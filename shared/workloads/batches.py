"""How are examples grouped into batches, and a model evaluated on them?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.utils.data import TensorDataset, default_collate

from shared.errors import WorkloadError
from shared.workloads.port import Examples, Workload

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]

_EVALUATION_BATCH = 512


def example_count(dataset: Examples) -> int:
    """Return the number of examples.

    Raises:
        WorkloadError: the dataset has no length.
    """
    try:
        return len(cast(Any, dataset))
    except TypeError as error:
        raise WorkloadError(f"workload: {type(dataset).__name__} has no length; give a map-style dataset") from error


def batches(dataset: Examples, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
    """Yield batches of `size` examples (the last may be smaller), shuffled by `generator` if there is one."""
    count = example_count(dataset)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for start in range(0, count, size):
        yield _collect(dataset, order[start : start + size])


def evaluate(workload: Workload, model: nn.Module, dataset: Examples) -> dict[str, float]:
    """Return the mean of "loss" and of the workload's metrics over a dataset; leaves the model's mode as it was.

    Records are taken to the device where the model's parameters are.

    Raises:
        WorkloadError: the dataset is empty.
    """
    totals: dict[str, list[float]] = {}
    count = example_count(dataset)
    if count == 0:
        raise WorkloadError("workload: there is nothing to evaluate on; evaluation_data() is empty")
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches(dataset, _EVALUATION_BATCH):
                features, targets = (tensor.to(device) for tensor in batch)
                outputs = model(features)
                values: Mapping[str, float] = workload.metrics(outputs, targets)
                for name, value in {**values, "loss": float(workload.loss(outputs, targets))}.items():
                    totals.setdefault(name, []).append(float(value) * len(targets))
    finally:
        model.train(was_training)
    return {name: math.fsum(parts) / count for name, parts in totals.items()}


def _collect(dataset: Examples, indices: torch.Tensor) -> Batch:
    """Index tensors at once; examples that exist one by one only are stacked."""
    if type(dataset) is TensorDataset:
        features, targets = dataset[indices]
    else:
        features, targets = default_collate([dataset[index] for index in indices.tolist()])
    return features, targets
