"""What do the built-in workloads have in common?

Each is a small labeled data set that scikit-learn carries. A part of it, chosen once and for all, is held out for
evaluation; the rest is dealt among the clients.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import TensorDataset

from shared.errors import WorkloadError
from shared.workloads.partition import Features, Indices, add_noise, cut, parse_partition
from shared.workloads.port import TrainingRecipe

_SPLIT_SEED = 2024


@dataclass(frozen=True, slots=True, eq=False)
class LabeledTable:
    """A data set, ready to be trained on.

    Args:
        features: (n, width) float32, scaled.
        targets: (n,) from 0 to classes - 1.
        training: indices of what is dealt among the clients.
        held_out: indices of what is evaluated on.
        shift, scale: (width,) or scalars; features are (raw - shift) / scale. Clients' own files hold raw values.
    """

    features: Features
    targets: Indices
    training: Indices
    held_out: Indices
    shift: Any
    scale: Any

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.features.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.targets.max()) + 1


def divided_table(raw: npt.ArrayLike, targets: npt.ArrayLike, evaluation_count: int, scale: float) -> LabeledTable:
    """Hold out `evaluation_count` examples, and divide all features by `scale`."""
    return _table(np.asarray(raw), np.asarray(targets, dtype=np.int64), evaluation_count, lambda _: (0.0, scale))


def standardized_table(raw: npt.ArrayLike, targets: npt.ArrayLike, evaluation_count: int) -> LabeledTable:
    """Hold out `evaluation_count` examples; scale each feature to mean 0 and deviation 1 over the others."""
    return _table(
        np.asarray(raw),
        np.asarray(targets, dtype=np.int64),
        evaluation_count,
        lambda training: (training.mean(axis=0), training.std(axis=0)),
    )


@dataclass(frozen=True)
class BundledWorkload(ABC):
    """A labeled table, a partition of its training part among the clients, cross entropy and accuracy.

    A client whose worker names a file trains on that instead: an .npz with `features` (n, width), raw values as in the
    data set, and `targets` (n,).

    Args:
        partition: one of `shared.workloads.partition.PARTITIONS`.
        clients: how many shares to cut; the client with the number i at the end of its id (from 1) holds share i.
        seed: of the partition and of the initial weights.
    """

    name: ClassVar[str]

    partition: str = "dirichlet:1.0"
    clients: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            SettingsError: there is no such partition.
            WorkloadError: an option is no integer or too small.
        """
        parse_partition(self.partition)
        for option, least in (("clients", 1), ("seed", 0)):
            value = getattr(self, option)
            if type(value) is not int or value < least:
                raise WorkloadError(
                    f"workload_options: {option} of {self.name} must be an integer >= {least}, not {value!r}"
                )

    @property
    @abstractmethod
    def recipe(self) -> TrainingRecipe:
        """How clients train unless the plan says otherwise."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Build the network; its initial weights depend on the seed alone and disturb no other random numbers."""

    @staticmethod
    @abstractmethod
    def table() -> LabeledTable:
        """Return the data set; the same object each time."""

    def client_data(self, client: str, path: Path | None) -> TensorDataset:
        """Return the client's own file, or its share of the partition."""
        table, partition = self.table(), parse_partition(self.partition)
        if path is not None:
            return _read_file(path, table)
        number = self._number(client)
        share = _shares(table, self.partition, self.clients, self.seed)[number - 1]
        features = table.features[share]
        if partition.kind == "features":
            features = add_noise(features, number, self.clients, partition.number, self.seed)
        return _dataset(features, table.targets[share])

    def evaluation_data(self) -> TensorDataset:
        """Return the held-out examples, every class in its proportion, without noise."""
        table = self.table()
        return _dataset(table.features[table.held_out], table.targets[table.held_out])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross entropy."""
        return nn.functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, float]:
        """Return the share of right answers."""
        return {"accuracy": float((outputs.argmax(dim=1) == targets).double().mean())}

    def _number(self, client: str) -> int:
        match = re.search(r"([0-9]+)$", client)
        if match is None or not 1 <= int(match[1]) <= self.clients:
            raise WorkloadError(
                f"workload: {self.name} has shares 1 to {self.clients}, but {client!r} does not end in such a number; "
                "rename the client, raise the workload option 'clients', or give the client its own data file"
            )
        return int(match[1])


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return the network that `build` makes, with torch's usual initial weights from a generator of its own.

    Each layer's weights and biases are uniform within 1/sqrt(fan-in). Only layers with both (linear, convolution) and
    layers without parameters may occur.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # torch's own initialization would draw from the process's random numbers
        network = build()
    network.to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = 1.0 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network


def _table(
    raw: npt.NDArray[np.float64],
    targets: Indices,
    evaluation_count: int,
    scaling: Callable[[npt.NDArray[np.float64]], tuple[Any, Any]],
) -> LabeledTable:
    held_out, training = _split(targets, evaluation_count)
    shift, scale = scaling(raw[training])
    features = _scaled(raw, shift, scale)
    return LabeledTable(features, targets, training, held_out, shift, scale)


def _scaled(raw: npt.NDArray[Any], shift: Any, scale: Any) -> Features:
    scaled: Features = ((raw - shift) / scale).astype(np.float32)
    return scaled


def _split(targets: Indices, evaluation_count: int) -> tuple[Indices, Indices]:
    """Return the indices of held-out and of training examples: of each class, the same share at random."""
    source = np.random.RandomState(_SPLIT_SEED)
    order = source.permutation(len(targets))
    ranks = np.empty(len(targets))
    for label in np.unique(targets):
        own = order[targets[order] == label]
        ranks[own] = (np.arange(len(own)) + 0.5) / len(own)
    by_rank = np.lexsort((order.argsort(), ranks))
    return np.sort(by_rank[:evaluation_count]), np.sort(by_rank[evaluation_count:])


@cache
def _shares(table: LabeledTable, partition: str, clients: int, seed: int) -> list[Indices]:
    """Return each client's examples, as indices into the whole table."""
    source = np.random.RandomState(seed)
    shares = cut(table.targets[table.training], clients, parse_partition(partition), source)
    return [table.training[share] for share in shares]


def _read_file(path: Path, table: LabeledTable) -> TensorDataset:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = arrays["features"], arrays["targets"]
    except (OSError, KeyError, ValueError) as error:
        raise WorkloadError(f"workload: {path} is not an .npz file with 'features' and 'targets': {error}") from error
    if any(array.dtype.kind not in "biuf" for array in found):
        # Here, because numpy would quote a record, and the coordinator is told.
        raise WorkloadError(f"workload: {path} must hold numbers, not {' and '.join(str(one.dtype) for one in found)}")
    raw, targets = found[0].astype(np.float64), found[1].astype(np.int64)
    if raw.ndim != 2 or raw.shape[1] != table.width or targets.shape != (len(raw),):
        raise WorkloadError(
            f"workload: {path} must hold features (n, {table.width}) and targets (n,), "
            f"not {raw.shape} and {targets.shape}"
        )
    if targets.size and not (targets.min() >= 0 and targets.max() < table.classes):
        raise WorkloadError(f"workload: {path} holds targets outside 0 to {table.classes - 1}")
    return _dataset(_scaled(raw, table.shift, table.scale), targets)


def _dataset(features: Features, targets: Indices) -> TensorDataset:
    return TensorDataset(torch.from_numpy(features), torch.from_numpy(targets))
