"""What is the sum of all records' gradients, each of them clipped by itself?

The gradient of one record is never formed where it need not be. A linear layer that gets the row x of a record and
passes back the row z has the gradient z x^T for it, whose squared norm on the coordinates of a 0/1 mask M is
sum_j z_j² (M x²)_j: one more product of matrices for all records. When all norms are known, the rows z are scaled, and
one product gives the clipped sum. Convolutions form theirs layer by layer; a model with any other layer is
differentiated record by record.

Reference: Goodfellow, Efficient Per-Example Gradient Computations (2015); Bu et al., Differentially Private
Optimization on Large Model at Small Cost (2023), for clipping with one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from shared.errors import WorkloadError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

CHUNK_VALUES = 1 << 24
"""Values of per-record gradients in memory at once, 64 MiB of float32."""

_BELOW = 1.0 - 1e-5
"""Times the norm that is promised: what float32 arithmetic can get wrong."""


class ClippedSum:
    """Sums clipped gradients of one model's records.

    Args:
        model: what is trained; its records must not influence each other.
        loss: mean loss of a batch; it is only ever asked about batches of one.
        norm: S', the L2 norm that one record's gradient is clipped to.
        moved: (d,) bool, the coordinates that gradients are taken at; None for all. At others the sum is zero.
    """

    def __init__(self, model: nn.Module, loss: Loss, norm: float, moved: torch.Tensor | None) -> None:
        self._model = model
        self._loss = loss
        self._norm = norm
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        sizes = [one.numel() for one in self._parameters.values()]
        self._moved = moved
        pieces = [None] * len(sizes) if moved is None else list(torch.split(moved, sizes))
        self._masks: _Masks = {
            one: None if piece is None else piece.view(one.shape).to(one.dtype)
            for one, piece in zip(self._parameters.values(), pieces, strict=True)
        }
        self._layers = plain_layers(model)
        self._chunk = max(1, CHUNK_VALUES // sum(sizes))

    def of(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (d,) sum over all records; a record whose gradient is not finite adds nothing.

        Raises:
            WorkloadError: the model or its loss cannot be differentiated record by record.
        """
        total = torch.zeros(sum(one.numel() for one in self._parameters.values()), device=features.device)
        if len(features) == 0:
            return total
        for x, y in zip(torch.split(features, self._chunk), torch.split(targets, self._chunk), strict=True):
            layered = self._by_layers(x, y) if self._layers else None
            total += self._by_records(x, y) if layered is None else layered
        if self._moved is not None:
            total[~self._moved] = 0.0
        return total

    def _by_layers(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
        """None if a layer turns out to be used in a way that the formulas do not know."""
        seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
        hooks = [
            layer.register_forward_hook(lambda layer, given, out: seen.append((layer, given[0].detach(), out)))
            for layer in self._layers
        ]
        try:
            outputs = self._model(x)
        finally:
            for hook in hooks:
                hook.remove()
        once = len(seen) == len(self._layers) == len({layer for layer, _, _ in seen})
        if not once or any(given.dim() != _DIMENSIONS[type(layer)] for layer, given, _ in seen):
            return None
        back = torch.autograd.grad(self._losses(outputs, y).sum(), [out for _, _, out in seen])
        pairs = [_PAIRS[type(layer)](layer, given, z) for (layer, given, _), z in zip(seen, back, strict=True)]
        squares = sum((pair.squared_norms(self._masks) for pair in pairs), start=torch.zeros(len(x), device=x.device))
        factors = self._factors(squares)
        if not bool(factors.all()):  # zero times a value that is not finite would not be zero
            for pair in pairs:
                pair.drop(factors == 0)
        sums: dict[torch.Tensor, torch.Tensor] = {}
        for pair in pairs:
            sums |= pair.scaled_sums(factors)
        return torch.cat([sums[one].reshape(-1) for one in self._parameters.values()])

    def _losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(n,) each record's own loss, that of a batch of one."""

        def alone(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return self._loss(output.unsqueeze(0), target.unsqueeze(0))

        losses: torch.Tensor = _differentiated(vmap(alone), outputs, targets)
        return losses

    def _by_records(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        buffers = dict(self._model.named_buffers())

        def alone(parameters: dict[str, torch.Tensor], one: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            outputs = functional_call(self._model, (parameters, buffers), (one.unsqueeze(0),))
            return self._loss(outputs, target.unsqueeze(0))

        detached = {name: one.detach() for name, one in self._parameters.items()}
        per_record = vmap(grad(alone), in_dims=(None, 0, 0), randomness="different")
        gradients = _differentiated(per_record, detached, x, y)
        flat = torch.cat([gradients[name].reshape(len(x), -1) for name in self._parameters], dim=1)
        if self._moved is not None:
            flat[:, ~self._moved] = 0.0
        factors = self._factors(flat.square().sum(dim=1))
        flat[factors == 0] = 0.0
        return factors @ flat

    def _factors(self, squares: torch.Tensor) -> torch.Tensor:
        """(n,) what each record's gradient is multiplied by: 0 where it is not finite."""
        norms = squares.sqrt()
        return torch.where(norms.isfinite(), (self._norm * _BELOW / norms).clamp(max=1.0), 0.0)


class _LinearPair:
    """A linear layer's inputs x (n, in) and the gradients z (n, out) at its outputs."""

    def __init__(self, layer: nn.Linear, x: torch.Tensor, z: torch.Tensor) -> None:
        self._layer, self._x, self._z = layer, x, z

    def squared_norms(self, masks: _Masks) -> torch.Tensor:
        weight, bias = self._layer.weight, self._layer.bias
        z2, x2 = self._z.square(), self._x.square()
        total = torch.zeros(len(z2), device=z2.device)
        if weight in masks:
            mask = masks[weight]
            total = z2.sum(1) * x2.sum(1) if mask is None else (z2 * (x2 @ mask.T)).sum(1)
        if bias in masks:
            total = total + _masked(z2, masks[bias])
        return total

    def drop(self, rows: torch.Tensor) -> None:
        self._x, self._z = self._x.masked_fill(rows[:, None], 0.0), self._z.masked_fill(rows[:, None], 0.0)

    def scaled_sums(self, factors: torch.Tensor) -> dict[torch.Tensor, torch.Tensor]:
        z = self._z * factors[:, None]
        sums = {self._layer.weight: z.T @ self._x}
        return sums if self._layer.bias is None else sums | {self._layer.bias: z.sum(0)}


class _ConvolutionPair:
    """A convolution's gradients of its weight (n, out, in * kernel) and of its bias (n, out)."""

    def __init__(self, layer: nn.Conv2d, x: torch.Tensor, z: torch.Tensor) -> None:
        assert not isinstance(layer.padding, str)
        patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        flat = z.flatten(2)
        self._layer, self._weight, self._bias = layer, flat @ patches.transpose(1, 2), flat.sum(2)

    def squared_norms(self, masks: _Masks) -> torch.Tensor:
        weight, bias = self._layer.weight, self._layer.bias
        total = torch.zeros(len(self._bias), device=self._bias.device)
        if weight in masks:
            total = _masked(self._weight.flatten(1).square(), masks[weight])
        if bias in masks:
            total = total + _masked(self._bias.square(), masks[bias])
        return total

    def drop(self, rows: torch.Tensor) -> None:
        self._weight = self._weight.masked_fill(rows[:, None, None], 0.0)
        self._bias = self._bias.masked_fill(rows[:, None], 0.0)

    def scaled_sums(self, factors: torch.Tensor) -> dict[torch.Tensor, torch.Tensor]:
        sums = {self._layer.weight: factors @ self._weight.flatten(1)}
        return sums if self._layer.bias is None else sums | {self._layer.bias: factors @ self._bias}


_Masks = dict[torch.Tensor, torch.Tensor | None]
_PAIRS: dict[type[nn.Module], Callable[..., _LinearPair | _ConvolutionPair]] = {
    nn.Linear: _LinearPair,
    nn.Conv2d: _ConvolutionPair,
}
_DIMENSIONS: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv2d: 4}


def plain_layers(model: nn.Module) -> Sequence[nn.Module]:
    """Return the layers that hold what is trained, if the formulas know all of them; else nothing."""
    layers = [layer for layer in model.modules() if any(one.requires_grad for one in layer.parameters(recurse=False))]
    owned = [one for layer in layers for one in layer.parameters(recurse=False) if one.requires_grad]
    tied = len(owned) != len(set(owned))
    return [] if tied or not all(_known(layer) for layer in layers) else layers


def _known(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def _masked(squares: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return squares.sum(1) if mask is None else squares @ mask.reshape(-1)


def _differentiated(function: Callable[..., Any], *given: object) -> Any:
    try:
        return function(*given)
    except RuntimeError as error:
        raise WorkloadError(
            f"workload: its model or loss cannot be differentiated record by record ({str(error).splitlines()[0]}); "
            "use layers and losses that torch.func.vmap knows, or privacy.level 'off'"
        ) from error
