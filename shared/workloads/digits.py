"""The handwritten digits that scikit-learn carries: a real data set small enough to federate on any machine.

1,797 images of 8 x 8 grey values; 360 of them, chosen once and for all, are held out for evaluation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from shared.errors import WorkloadError
from shared.workloads.partition import cut, parse_partition
from shared.workloads.port import TrainingRecipe

PIXELS = 64
HIDDEN = 128
CLASSES = 10
EVALUATION_COUNT = 360

_SPLIT_SEED = 2024
_GREY_MAX = 16.0


@dataclass(frozen=True)
class Digits:
    """Ten digits, an MLP of 64-128-10, and a partition of the 1,437 training images among the clients.

    A client whose worker names a file trains on that instead: an .npz with `features` (n, 64), grey values of 0 to 16,
    and `targets` (n,).

    Args:
        partition: "iid" or "dirichlet:<alpha>".
        clients: how many shares to cut; the client with the number i at the end of its id (from 1) holds share i.
        seed: of the partition and of the initial weights.
    """

    partition: str = "dirichlet:1.0"
    clients: int = 20
    seed: int = 0
    name: str = field(default="digits", init=False)

    def __post_init__(self) -> None:
        parse_partition(self.partition)
        for option, least in (("clients", 1), ("seed", 0)):
            value = getattr(self, option)
            if type(value) is not int or value < least:
                raise WorkloadError(
                    f"workload_options: {option} of digits must be an integer >= {least}, not {value!r}"
                )

    @property
    def recipe(self) -> TrainingRecipe:
        """SGD with lr 0.3, batches of 16, 2 local epochs."""
        return TrainingRecipe(optimizer="SGD", options={"lr": 0.3}, batch_size=16, local_epochs=2, clipping_norm=1.5)

    def model(self) -> nn.Module:
        """Build the network; its initial weights depend on the seed alone and disturb no other random numbers."""
        generator = torch.Generator().manual_seed(self.seed)
        layers = [_linear(PIXELS, HIDDEN, generator), nn.ReLU(), _linear(HIDDEN, CLASSES, generator)]
        return nn.Sequential(*layers)

    def client_data(self, client: str, path: Path | None) -> TensorDataset:
        """Return the client's own file, or its share of the partition."""
        if path is not None:
            return _read_file(path)
        features, targets = _images()
        share = _shares(self.partition, self.clients, self.seed)[self._number(client) - 1]
        return _dataset(features[share], targets[share])

    def evaluation_data(self) -> TensorDataset:
        """Return the 360 held-out images, every digit in its proportion."""
        held_out, _ = _split()
        features, targets = _images()
        return _dataset(features[held_out], targets[held_out])

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
                f"workload: digits has shares 1 to {self.clients}, but {client!r} does not end in such a number; "
                "rename the client, raise the workload option 'clients', or give the client its own data file"
            )
        return int(match[1])


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's usual initial weights, uniform within 1/sqrt(inputs), from our own generator."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    bound = 1.0 / math.sqrt(inputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


@cache
def _images() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    bunch = load_digits()
    return (bunch.data / _GREY_MAX).astype(np.float32), bunch.target.astype(np.int64)


@cache
def _split() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the indices of held-out and of training images: of each digit's images, the same share at random."""
    _, targets = _images()
    source = np.random.RandomState(_SPLIT_SEED)
    order = source.permutation(len(targets))
    ranks = np.empty(len(targets))
    for digit in range(CLASSES):
        own = order[targets[order] == digit]
        ranks[own] = (np.arange(len(own)) + 0.5) / len(own)
    by_rank = np.lexsort((order.argsort(), ranks))
    return np.sort(by_rank[:EVALUATION_COUNT]), np.sort(by_rank[EVALUATION_COUNT:])


@cache
def _shares(partition: str, clients: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Return each client's images, as indices into all images."""
    _, training = _split()
    _, targets = _images()
    source = np.random.RandomState(seed)
    return [training[share] for share in cut(targets[training], clients, parse_partition(partition), source)]


def _read_file(path: Path) -> TensorDataset:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features = np.asarray(arrays["features"], dtype=np.float32) / np.float32(_GREY_MAX)
            targets = np.asarray(arrays["targets"], dtype=np.int64)
    except (OSError, KeyError, ValueError) as error:
        raise WorkloadError(f"workload: {path} is not an .npz file with 'features' and 'targets': {error}") from error
    if features.ndim != 2 or features.shape[1] != PIXELS or targets.shape != (len(features),):
        raise WorkloadError(
            f"workload: {path} must hold features (n, {PIXELS}) and targets (n,), "
            f"not {features.shape} and {targets.shape}"
        )
    if targets.size and not (targets.min() >= 0 and targets.max() < CLASSES):
        raise WorkloadError(f"workload: {path} holds targets outside 0 to {CLASSES - 1}")
    return _dataset(features, targets)


def _dataset(features: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> TensorDataset:
    return TensorDataset(torch.from_numpy(features), torch.from_numpy(targets))
