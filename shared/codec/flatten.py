"""How does a model become one flat vector, and the vector a model again?

What federates is what `requires_grad`, in the order of `named_parameters()`; on request then the float buffers that the
model stores, such as running statistics, in the order of `named_buffers()`. Both sides compute the `Layout` from their
own copy of the model; its digest stands in the signed plan, so a worker whose model differs notices before it trains.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shared.errors import LocalProtocolError, WorkloadError

FloatVector: TypeAlias = npt.NDArray[np.float32]

_DIGEST_TAG = b"comitia/layout/1"
_DIMENSION_MAX = 2**32 - 1
_VARIANCE = "running_var"
"""What torch's normalization layers call a buffer that holds variances."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each federated tensor lies in the flat vector: one name, shape and dtype each, in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def dimension(self) -> int:
        """Length d of the flat vector."""
        return sum(self.sizes)

    def digest(self) -> bytes:
        """Return SHA-256 over a canonical, length-prefixed form of names, shapes and dtypes (32 bytes)."""
        hasher = hashlib.sha256(_DIGEST_TAG)
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            for text in (name, dtype):
                encoded = text.encode()
                hasher.update(len(encoded).to_bytes(8, "little") + encoded)
            hasher.update(len(shape).to_bytes(8, "little"))
            hasher.update(b"".join(size.to_bytes(8, "little") for size in shape))
        return hasher.digest()


def layout_of(model: nn.Module, float_buffers: bool = False) -> Layout:
    """Return the layout of the parameters of `model` that require a gradient. Tied parameters count once.

    Args:
        float_buffers: its stored float buffers follow them. Integer buffers, and buffers that are not part of the
            model's state, never federate.

    Raises:
        WorkloadError: nothing is trainable, there are no float buffers although they are to federate, a tensor is not
            float32, or d reaches 2**32.
    """
    buffers = federated_buffers(model) if float_buffers else []
    named: list[tuple[str, torch.Tensor]] = [*_trainable(model), *buffers]
    if len(named) == len(buffers):
        raise WorkloadError("workload: the model has no parameter with requires_grad, so nothing would be trained")
    if float_buffers and not buffers:
        raise WorkloadError("float_buffers: the model stores no float buffer that could federate; leave it off")
    for name, tensor in named:
        if tensor.dtype != torch.float32:
            kind, remedy = (
                ("parameter", "set requires_grad_(False) on this parameter")
                if isinstance(tensor, nn.Parameter)
                else ("buffer", "leave float_buffers off")
            )
            raise WorkloadError(
                f"workload: {kind} {name!r} is {_dtype_name(tensor)}, but float32 is what federates; "
                f"call .float() on the model or {remedy}"
            )
    layout = Layout(
        names=tuple(name for name, _ in named),
        shapes=tuple(tuple(tensor.shape) for _, tensor in named),
        dtypes=tuple(_dtype_name(tensor) for _, tensor in named),
    )
    if not 0 < layout.dimension <= _DIMENSION_MAX:
        raise WorkloadError(f"workload: the model has {layout.dimension} values to federate; 1 to 2**32 - 1 can")
    return layout


def federated_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The float buffers that the model stores, by name, in order: what federates beside parameters on request."""
    stored = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in stored and buffer.is_floating_point()]


def read_weights(model: nn.Module, out: FloatVector | None = None, *, float_buffers: bool = False) -> FloatVector:
    """Copy what federates into one vector.

    Args:
        out: (d,) float32 to fill; allocated if None. Nothing else of size d is allocated.
        float_buffers: as in `layout_of`.

    Returns:
        (d,) float32; `out` itself if given. Never aliases the model.

    Raises:
        LocalProtocolError: `out` has another length than the model.
    """
    tensors = _federated(model, float_buffers)
    dimension = sum(tensor.numel() for _, tensor in tensors)
    if out is None:
        out = np.empty(dimension, dtype=np.float32)
    _require_shape(out, dimension)
    start = 0
    for _, tensor in tensors:
        piece = out[start : start + tensor.numel()].reshape(tuple(tensor.shape))
        np.copyto(piece, tensor.detach().cpu().numpy())
        start += tensor.numel()
    return out


def write_weights(model: nn.Module, weights: FloatVector, *, float_buffers: bool = False) -> None:
    """Overwrite what federates in place; gradients, other buffers and frozen parameters stay as they are.

    A running variance below 0 is written as 0: rounding can take a vanishing one a little below, and its root is what a
    normalization divides by.

    Args:
        weights: (d,) float32, may be read-only.
        float_buffers: as in `layout_of`.

    Raises:
        LocalProtocolError: `weights` has another length than the model.
    """
    tensors = _federated(model, float_buffers)
    _require_shape(weights, sum(tensor.numel() for _, tensor in tensors))
    start = 0
    for name, tensor in tensors:
        piece = weights[start : start + tensor.numel()].reshape(tuple(tensor.shape))
        is_variance = name.rpartition(".")[2] == _VARIANCE and not isinstance(tensor, nn.Parameter)
        _overwrite(tensor.detach(), np.maximum(piece, np.float32(0)) if is_variance else piece)
        start += tensor.numel()


def _overwrite(target: torch.Tensor, piece: FloatVector) -> None:
    """Copy through numpy where memory is shared: torch warns about read-only arrays, and a broker's bytes are that."""
    if target.device.type == "cpu":
        np.copyto(target.numpy(), piece)
    else:
        target.copy_(torch.from_numpy(np.array(piece)))


def _federated(model: nn.Module, float_buffers: bool) -> list[tuple[str, torch.Tensor]]:
    return [*_trainable(model), *(federated_buffers(model) if float_buffers else [])]


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _require_shape(vector: FloatVector, dimension: int) -> None:
    if vector.shape != (dimension,) or vector.dtype != np.float32:
        raise LocalProtocolError(
            f"a flat float32 vector of {dimension} values was expected, not {vector.dtype} of shape {vector.shape}"
        )
