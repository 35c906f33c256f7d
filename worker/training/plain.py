"""How does a client turn global weights and its own data into an update?

Plain mini-batch training with any optimizer of `torch.optim`, fresh in every round, so that a client keeps nothing
between rounds; on request with a proximal term that holds it near the global weights, or moving only some coordinates
(`worker.training.restricted`). The process's random numbers and thread settings are left as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector, federated_buffers, read_weights, write_weights
from shared.errors import ComitiaError, WorkloadError
from shared.workloads.batches import batches, example_count
from shared.workloads.optimizers import optimizer_factory
from shared.workloads.port import Examples, TrainingRecipe
from worker.training.device import CPU, seeded_draws
from worker.training.restricted import Restriction

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Anchored = tuple[nn.Parameter, torch.Tensor]
"""A parameter and its global value, from which the proximal term measures."""


class TrainingStopped(ComitiaError):
    """Training was asked to stop between two batches; there is no update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What local training yields: update (d,) float32, number of examples, and metrics ("loss": last epoch's mean)."""

    update: FloatVector
    num_examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Run:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    anchored: Sequence[Anchored]
    restriction: Restriction | None


class PlainTraining:
    """Mini-batch training by a recipe; made once, used for every round and every client of a process.

    Args:
        loss: mean loss of a batch, from (outputs, targets).
        recipe: optimizer, batch size, epochs.
        proximal_mu: mu >= 0 of the proximal term mu/2 · ||w - w_global||², whose gradient is added to the loss's;
            metrics are of the loss alone. 0 leaves the term out.
        float_buffers: the model's float buffers are part of weights and update (`shared.codec.flatten.layout_of`).
        device: where the models lie that are trained; batches are taken there.

    Raises:
        WorkloadError: the recipe names an optimizer or option that torch does not have.

    Reference: Li et al., Federated Optimization in Heterogeneous Networks (2020), algorithm 2.
    """

    def __init__(
        self,
        loss: Loss,
        recipe: TrainingRecipe,
        proximal_mu: float = 0.0,
        *,
        float_buffers: bool = False,
        device: torch.device = CPU,
    ) -> None:
        self._loss = loss
        self._recipe = recipe
        self._proximal_mu = proximal_mu
        self._float_buffers = float_buffers
        self._device = device
        self._build = optimizer_factory(recipe.optimizer, recipe.options, field="optimizer", error=WorkloadError)

    def train(
        self,
        model: nn.Module,
        dataset: Examples,
        weights: FloatVector,
        seed: int,
        should_stop: Callable[[], bool] = lambda: False,
        coordinates: Coordinates | None = None,
    ) -> TrainingOutcome:
        """Train `model` from `weights` and return the difference.

        Args:
            model: overwritten with `weights` first; holds the trained weights afterwards. Buffers that do not federate
                are restored, so one model may serve several clients in turn.
            weights: (d,) float32, read only.
            seed: decides the order of examples and what the model itself draws, such as dropout.
            should_stop: asked before every batch.
            coordinates: the only positions that training may move; None for all.

        Raises:
            TrainingStopped: `should_stop` said so.
            WorkloadError: there are no examples, or the loss is not finite.
        """
        count = example_count(dataset)
        if count == 0:
            raise WorkloadError("workload: this client has no examples to train on")
        write_weights(model, weights, float_buffers=self._float_buffers)
        federated = {name for name, _ in federated_buffers(model)} if self._float_buffers else set()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if name not in federated}
        was_training = model.training
        model.train()
        try:
            with seeded_draws(self._device, seed):
                loss = self._run(model, dataset, seed, should_stop, coordinates)
        finally:
            model.train(was_training)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])
        update = read_weights(model, float_buffers=self._float_buffers)
        np.subtract(update, weights, out=update)
        return TrainingOutcome(update=update, num_examples=count, metrics={"loss": loss})

    def _run(
        self,
        model: nn.Module,
        dataset: Examples,
        seed: int,
        should_stop: Callable[[], bool],
        coordinates: Coordinates | None,
    ) -> float:
        generator = torch.Generator().manual_seed(seed)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        run = _Run(
            model,
            self._build(parameters),
            [(parameter, parameter.detach().clone()) for parameter in parameters if self._proximal_mu],
            None if coordinates is None else Restriction(parameters, coordinates),
        )
        mean_loss = math.nan
        for _ in range(self._recipe.local_epochs):
            losses: list[float] = []
            sizes: list[int] = []
            for features, targets in batches(dataset, self._recipe.batch_size, generator):
                if should_stop():
                    raise TrainingStopped("training was stopped between two batches")
                there = features.to(self._device), targets.to(self._device)
                losses.append(self._step(run, *there))
                sizes.append(len(targets))
            mean_loss = math.fsum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
        return mean_loss

    def _step(self, run: _Run, features: torch.Tensor, targets: torch.Tensor) -> float:
        run.optimizer.zero_grad()
        loss = self._loss(run.model(features), targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise WorkloadError(
                f"workload: the training loss became {value}; a smaller learning rate or cleaner data would help"
            )
        torch.autograd.backward(loss)
        for parameter, anchor in run.anchored:
            # Without a gradient the loss does not reach it: it has not moved, and nothing pulls it back.
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self._proximal_mu)
        if run.restriction is None:
            run.optimizer.step()
        else:
            run.restriction.mask_gradients()
            run.optimizer.step()
            run.restriction.restore()
        return value
