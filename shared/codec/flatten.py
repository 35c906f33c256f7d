"""How does a model become one flat vector, and the vector a model again?

What federates is what `requires_grad`, in the order of `named_parameters()`. Both sides compute the `Layout` from
their own copy of the model; its digest stands in the signed plan, so a worker whose model differs notices before it
trains.
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


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each federated parameter lies in the flat vector: one name, shape and dtype each, in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each parameter."""
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


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of the parameters of `model` that require a gradient. Tied parameters count once.

    Raises:
        WorkloadError: nothing is trainable, a parameter is not float32, or d reaches 2**32.
    """
    named = _federated(model)
    if not named:
        raise WorkloadError("workload: the model has no parameter with requires_grad, so nothing would be trained")
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise WorkloadError(
                f"workload: parameter {name!r} is {_dtype_name(parameter)}, but float32 is what federates; "
                "call .float() on the model or set requires_grad_(False) on this parameter"
            )
    layout = Layout(
        names=tuple(name for name, _ in named),
        shapes=tuple(tuple(parameter.shape) for _, parameter in named),
        dtypes=tuple(_dtype_name(parameter) for _, parameter in named),
    )
    if not 0 < layout.dimension <= _DIMENSION_MAX:
        raise WorkloadError(f"workload: the model has {layout.dimension} trainable values; 1 to 2**32 - 1 can federate")
    return layout


def read_weights(model: nn.Module, out: FloatVector | None = None) -> FloatVector:
    """Copy the federated parameters into one vector.

    Args:
        out: (d,) float32 to fill; allocated if None. Nothing else of size d is allocated.

    Returns:
        (d,) float32; `out` itself if given. Never aliases the model.

    Raises:
        LocalProtocolError: `out` has another length than the model.
    """
    parameters = [parameter for _, parameter in _federated(model)]
    dimension = sum(parameter.numel() for parameter in parameters)
    if out is None:
        out = np.empty(dimension, dtype=np.float32)
    _require_shape(out, dimension)
    start = 0
    for parameter in parameters:
        piece = out[start : start + parameter.numel()].reshape(tuple(parameter.shape))
        np.copyto(piece, parameter.detach().cpu().numpy())
        start += parameter.numel()
    return out


def write_weights(model: nn.Module, weights: FloatVector) -> None:
    """Overwrite the federated parameters in place; gradients, buffers and frozen parameters stay as they are.

    Args:
        weights: (d,) float32, may be read-only.

    Raises:
        LocalProtocolError: `weights` has another length than the model.
    """
    parameters = [parameter for _, parameter in _federated(model)]
    _require_shape(weights, sum(parameter.numel() for parameter in parameters))
    start = 0
    for parameter in parameters:
        piece = weights[start : start + parameter.numel()].reshape(tuple(parameter.shape))
        _overwrite(parameter.detach(), piece)
        start += parameter.numel()


def _overwrite(target: torch.Tensor, piece: FloatVector) -> None:
    """Copy through numpy where memory is shared: torch warns about read-only arrays, and a broker's bytes are that."""
    if target.device.type == "cpu":
        np.copyto(target.numpy(), piece)
    else:
        target.copy_(torch.from_numpy(np.array(piece)))


def _federated(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _dtype_name(parameter: nn.Parameter) -> str:
    return str(parameter.dtype).removeprefix("torch.")


def _require_shape(vector: FloatVector, dimension: int) -> None:
    if vector.shape != (dimension,) or vector.dtype != np.float32:
        raise LocalProtocolError(
            f"a flat float32 vector of {dimension} values was expected, not {vector.dtype} of shape {vector.shape}"
        )
