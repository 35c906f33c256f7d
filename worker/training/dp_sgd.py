"""How does a client train so that its update hardly depends on any one record?

DP-SGD: each step takes a Poisson sample of the records, clips every record's gradient by itself, adds Gaussian noise
to their sum and divides it by a public number, never by how many records there are. With coordinates, gradients are
clipped on these alone, and the noise is there alone. An empty sample still gets its noise.

Noise and samples come from a cryptographic generator (`shared.privacy.entropy`).

Reference: Abadi et al., Deep Learning with Differential Privacy (2016), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector, write_weights
from shared.errors import WorkloadError
from shared.privacy.updates import RecordNoise
from shared.workloads.batches import Batch, batches, example_count
from shared.workloads.port import Examples
from worker.training.device import CPU, seeded_draws
from worker.training.plain import Loss, TrainingOutcome, TrainingStopped
from worker.training.sample_gradients import ClippedSum

_PROBED = 4
_INDEPENDENT = 1e-3
"""How far outputs of a record alone and in a batch may lie apart, relatively: arithmetic, and nothing else."""


class NoiseSource(Protocol):
    """Where noise and samples come from."""

    def normals(self, out: npt.NDArray[np.float64]) -> None:
        """Fill `out` with independent standard normal numbers."""

    def sample(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        """Return (count,) bool, each true with the chance `rate`."""


class DpSgd:
    """Training by DP-SGD; made once, used for every round and every client of a process.

    Args:
        loss: mean loss of a batch, from (outputs, targets).
        noise: the plan's numbers.
        device: where the models lie that are trained.
    """

    def __init__(self, loss: Loss, noise: RecordNoise, *, device: torch.device = CPU) -> None:
        self._loss = loss
        self._noise = noise
        self._device = device

    def train(
        self,
        model: nn.Module,
        dataset: Examples,
        weights: FloatVector,
        seed: int,
        source: NoiseSource,
        should_stop: Callable[[], bool] = lambda: False,
        coordinates: Coordinates | None = None,
    ) -> TrainingOutcome:
        """Train `model` from `weights` and return the difference. Its metrics are empty: nothing noises them.

        Args:
            model: overwritten.
            dataset: this client's records.
            weights: (d,) float32, read only.
            seed: decides what the model itself draws, such as dropout.
            source: of noise and samples.
            should_stop: asked before every step.
            coordinates: the only positions that training may move; None for all.

        Raises:
            TrainingStopped: `should_stop` said so.
            WorkloadError: there are no records, or gradients of single records cannot be had.
        """
        noise, count = self._noise, example_count(dataset)
        if count == 0:
            raise WorkloadError("workload: this client has no examples to train on")
        features, targets = self._all(dataset, count)
        moved = None
        if coordinates is not None:
            moved = torch.zeros(len(weights), dtype=torch.bool, device=self._device)
            moved[torch.from_numpy(coordinates)] = True
        clipped = ClippedSum(model, self._loss, noise.gradient_norm, moved)
        update = np.zeros(len(weights), dtype=np.float64)
        was_training = model.training
        model.train()
        try:
            with seeded_draws(self._device, seed):
                for _ in range(noise.steps):
                    if should_stop():
                        raise TrainingStopped("training was stopped between two steps")
                    write_weights(model, (weights + update).astype(np.float32))
                    chosen = torch.from_numpy(np.flatnonzero(source.sample(count, noise.sampling_rate)))
                    total = clipped.of(features[chosen], targets[chosen]).cpu().numpy().astype(np.float64)
                    where = slice(None) if coordinates is None else coordinates
                    sent = total[where]
                    drawn = np.empty(len(sent))
                    source.normals(drawn)
                    # In double precision: the low bits of a float32 could tell neighbors apart.
                    sent += noise.gradient_deviation * drawn
                    update[where] -= noise.rate / noise.records * sent
        finally:
            model.train(was_training)
        return TrainingOutcome(update=update.astype(np.float32), num_examples=count, metrics={})

    def _all(self, dataset: Examples, count: int) -> Batch:
        features, targets = next(iter(batches(dataset, count)))
        return features.to(self._device), targets.to(self._device)


def check_model(model: nn.Module, dataset: Examples) -> None:
    """Refuse a model in which records influence each other: clipping each by itself would bound nothing.

    Raises:
        WorkloadError: it has layers that look at a whole batch, or its outputs show that something in it does, or
            a buffer of it moves with what it is trained on.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) or getattr(layer, "track_running_stats", False):
            raise WorkloadError(
                f"workload: {name} is a {type(layer).__name__}, which mixes the records of a batch, so no record's "
                "influence can be bounded; use GroupNorm or LayerNorm with privacy.level 'record', or set it to 'off'"
            )
    if example_count(dataset) == 0:
        return
    features, _ = next(iter(batches(dataset, _PROBED)))
    features = features.to(next(model.parameters()).device)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # In training among copies of itself: a batch of the same size draws the same dropout.
    compared = [
        [_first_output(model, batch, training) for batch in (features, other)]
        for training, other in ((False, features[:1]), (True, features[:1].expand_as(features)))
    ]
    moved = next((name for name, now in model.named_buffers() if not torch.equal(now, before[name])), None)
    if moved is not None:
        raise WorkloadError(
            f"workload: training changes the model's buffer {moved!r}, through which records reach later steps past "
            "clipping and noise; leave it out, or set privacy.level to 'off'"
        )
    if not all(torch.allclose(one, two, rtol=_INDEPENDENT, atol=_INDEPENDENT) for one, two in compared):
        raise WorkloadError(
            "workload: the model's output for a record depends on the others of its batch, so no record's influence "
            "can be bounded; make it a function of single records, or set privacy.level to 'off'"
        )


def _first_output(model: nn.Module, features: torch.Tensor, training: bool) -> torch.Tensor:
    """What the model answers to the first record of a batch; its random draws are the same every time."""
    was_training = model.training
    model.train(training)
    try:
        with torch.no_grad(), seeded_draws(features.device, 0):
            output: torch.Tensor = model(features)[0]
            return output
    finally:
        model.train(was_training)
