"""Which of its records does a client keep for validation, and what do they say of the weights it received?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.utils.data import Subset, TensorDataset

from shared.codec.flatten import FloatVector, write_weights
from shared.workloads.batches import evaluate, example_count
from shared.workloads.port import Examples, Workload

_SLACK = 1e-9
"""Lets 0.1 of 30 records be 3."""


@dataclass(frozen=True, slots=True)
class Records:
    """A client's data: what it trains on, and what it validates on, if it has enough records for one of these."""

    training: Examples
    validation: Examples | None


def split_records(records: Examples, share: float, name: str) -> Records:
    """Hold out floor(share · n) of n records.

    Args:
        records: all of one client's.
        share: 0 <= share < 1; with fewer than 1/share records none is held out.
        name: two clients with different names hold out different places; the same name always the same ones.

    Raises:
        WorkloadError: the dataset has no length.
    """
    count = example_count(records)
    held_out = held_out_places(count, share, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))
    if not len(held_out):
        return Records(records, None)
    return Records(_subset(records, np.setdiff1d(np.arange(count), held_out)), _subset(records, held_out))


def held_out_places(count: int, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Return floor(share · count) ascending places, one at random out of each 1/share neighboring ones.

    Records that are appended later leave the earlier places as they were: what was validated on is never trained on.
    """
    held_out = int(count * share + _SLACK)
    if held_out == 0:
        return np.empty(0, dtype=np.int64)
    edges = np.floor(np.arange(held_out + 1) / share + _SLACK).astype(np.int64)
    # numpy has frozen the streams of `RandomState`, so a newer numpy holds out the same records.
    offsets = np.random.RandomState(seed).random_sample(held_out)
    return edges[:-1] + (offsets * np.diff(edges)).astype(np.int64)


def measure(
    workload: Workload, model: nn.Module, weights: FloatVector, records: Examples | None, *, float_buffers: bool = False
) -> dict[str, float]:
    """Return "loss" and the workload's metrics of these weights, means over `records`; nothing without records.

    `float_buffers`: as in `shared.codec.flatten.layout_of`.
    """
    if records is None:
        return {}
    write_weights(model, weights, float_buffers=float_buffers)
    return evaluate(workload, model, records)


def _subset(records: Examples, places: npt.NDArray[np.int64]) -> Examples:
    """Tensors stay tensors, which are read without copying items."""
    if type(records) is TensorDataset:
        return cast(Examples, TensorDataset(*(tensor[places] for tensor in records.tensors)))
    return Subset(records, places.tolist())
