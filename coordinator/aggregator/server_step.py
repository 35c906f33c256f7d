"""How does an aggregate change the global model?

It is the pseudo-gradient of a `torch.optim` optimizer (with its sign turned, since an update already points downhill).
SGD with lr = 1 is federated averaging, with momentum FedAvgM, Adam is FedAdam.

Reference: Reddi et al., Adaptive Federated Optimization (2021), algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer

from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector
from shared.codec.quantize import BLOCK
from shared.errors import LocalProtocolError, PlanError, StateError
from shared.workloads.optimizers import optimizer_factory

_FIELD = "server_optimizer"

CLIPPING_SHARE_TARGET = 0.8
CLIPPING_GAIN = 0.3


class ServerOptimizer:
    """One optimizer over the flat weight vector, with state that can be saved and loaded.

    Args:
        name: a class of `torch.optim`.
        options: its keyword arguments.
        dimension: d.

    Raises:
        PlanError: no such optimizer or option, or a value that it refuses.
    """

    def __init__(self, name: str, options: Mapping[str, Any], dimension: int) -> None:
        self._name = name
        self._dimension = dimension
        self._plain_rate = _plain_learning_rate(name, options)
        self._rates: list[Any] = []
        self._optimizer: Optimizer | None = None
        # One number that looks like d: weights lend the parameter their memory for the time of a step.
        self._idle = torch.zeros(1).expand(dimension)
        self._parameter = nn.Parameter(self._idle)
        if self._plain_rate is None:
            self._optimizer = optimizer_factory(name, options, field=_FIELD, error=PlanError)([self._parameter])
            self._rates = [group["lr"] for group in self._optimizer.param_groups]

    @property
    def touches_all(self) -> bool:
        """Whether a step on k coordinates may move the others too, as momentum and adaptive state do."""
        return self._plain_rate is None

    def step(
        self,
        weights: FloatVector,
        coordinates: Coordinates | None,
        aggregate: FloatVector,
        rescale: float = 1.0,
        rate_factor: float = 1.0,
    ) -> FloatVector:
        """Return the new weights; `weights` stays as it is.

        Without momentum, weight decay or adaptive state nothing of size d is allocated but the result, and only
        `coordinates` change. Everything else needs a gradient of size d for the time of the step, and its state.

        Args:
            weights: (d,) float32.
            coordinates: (k,) ascending positions, or None if `aggregate` is dense.
            aggregate: (k,) float32, the mean update.
            rescale: r, applied to the aggregate.
            rate_factor: the step's learning rate is the optimizer's own times this.

        Returns:
            (d,) float32.

        Raises:
            LocalProtocolError: sizes do not fit.
            PlanError: a weight would not be finite. No client can train on such a model, and a version is for good.
        """
        count = self._dimension if coordinates is None else len(coordinates)
        if weights.shape != (self._dimension,) or aggregate.shape != (count,):
            raise LocalProtocolError(f"a step of {aggregate.shape} values at {count} places on {weights.shape} weights")
        changed = weights.copy()
        if self._plain_rate is not None:
            _add_scaled(changed, coordinates, aggregate, self._plain_rate * rescale * rate_factor)
        else:
            self._set_rate(rate_factor)
            self._step_by_torch(changed, coordinates, aggregate, rescale)
        if not _all_finite(changed):
            raise PlanError(
                f"{_FIELD}: a step by {self._name} would lead to weights that are not finite, so the model stays as it "
                "is; begin a new federation with it (comitia export, --initial-weights) and with other options, for "
                "example a smaller lr or a larger eps"
            )
        return changed

    def state_bytes(self) -> bytes:
        """Return the optimizer's state in the safetensors format. No hyperparameter is in it: those are the plan's."""
        state = {} if self._optimizer is None else self._optimizer.state[self._parameter]
        tensors = {key: value.detach().contiguous() for key, value in state.items() if value is not None}
        return safetensors.torch.save(tensors)

    def load_state(self, data: bytes) -> None:
        """Go on from what `state_bytes` of an optimizer with the same name, options and dimension returned.

        Raises:
            StateError: the bytes are not such a state.
        """
        try:
            tensors = safetensors.torch.load(data)
        except SafetensorError as damage:
            raise StateError(f"the state of the server optimizer is damaged: {damage}") from damage
        if any(tensor.numel() not in (1, self._dimension) for tensor in tensors.values()):
            raise StateError("the state of the server optimizer belongs to a model of another size")
        if self._optimizer is not None:
            self._optimizer.state[self._parameter] = dict(tensors)
        elif tensors:
            raise StateError("the state of the server optimizer belongs to another optimizer")

    def _set_rate(self, factor: float) -> None:
        assert self._optimizer is not None
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _step_by_torch(
        self, changed: FloatVector, coordinates: Coordinates | None, aggregate: FloatVector, rescale: float
    ) -> None:
        assert self._optimizer is not None
        gradient = np.zeros(self._dimension, dtype=np.float32)
        _add_scaled(gradient, coordinates, aggregate, -rescale)
        self._parameter.data = torch.from_numpy(changed)
        self._parameter.grad = torch.from_numpy(gradient)
        self._optimizer.step()
        self._parameter.grad = None
        self._parameter.data = self._idle


def adapt_clipping_norm(clipping_norm: float, unclipped_shares: Sequence[float], trim: int) -> float:
    """Return the next round's C = C * exp(-0.3 * (share - 0.8)).

    `share` is the trimmed mean over the groups of the share of members whose norm was at most C, so `trim` groups that
    lie cannot take C anywhere that honest ones do not go. (A median would do in large groups; with groups of
    one it is a majority vote, and C would follow the median norm instead of the 0.8 quantile.)

    Reference: Andrew et al., Differentially Private Learning with Adaptive Clipping (2021), section 2.
    """
    ordered = sorted(unclipped_shares)[trim : len(unclipped_shares) - trim]
    if not ordered:
        raise LocalProtocolError(f"trimming 2 x {trim} of {len(unclipped_shares)} shares leaves nothing")
    share = math.fsum(ordered) / len(ordered)
    return clipping_norm * math.exp(-CLIPPING_GAIN * (share - CLIPPING_SHARE_TARGET))


def _plain_learning_rate(name: str, options: Mapping[str, Any]) -> float | None:
    """Return lr if this is SGD with a learning rate and nothing else, which moves what it is given and has no state.

    It needs no optimizer of torch, whose first use takes more than a second and 70 MB.
    """
    rate = options.get("lr")
    plain = name == "SGD" and set(options) == {"lr"} and isinstance(rate, int | float) and 0.0 < rate < math.inf
    return float(options["lr"]) if plain else None


def _all_finite(values: FloatVector) -> bool:
    return all(np.isfinite(values[start : start + BLOCK]).all() for start in range(0, len(values), BLOCK))


def _add_scaled(target: FloatVector, coordinates: Coordinates | None, values: FloatVector, factor: float) -> None:
    scale = np.float32(factor)
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK] * scale
        if coordinates is None:
            target[start : start + BLOCK] += part
        else:
            target[coordinates[start : start + BLOCK]] += part
