"""Where does a new federation's first model come from: the workload, or a file of parameters?

Only what federates travels to the workers. Everything else in a file (other buffers, frozen parameters) must therefore
be what the workload's own model holds: silently dropping it would train another model than the one that was meant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shared.codec.flatten import FloatVector, Layout, layout_of, read_weights
from shared.errors import SettingsError
from shared.workloads.port import Workload

_FIELD = "initial_weights"
_DTYPES = {"float32": "F32"}


def first_weights(path: Path | None, workload: Workload, float_buffers: bool = False) -> FloatVector:
    """The weights that a new federation starts from.

    Args:
        path: a safetensors file, for example one that `comitia export` wrote; None for the workload's own.
        workload: its model says which names, shapes and dtypes there are.
        float_buffers: float buffers federate, too.

    Returns:
        (d,) float32.

    Raises:
        SettingsError: the file cannot be read or does not fit the model; names the first mismatch.
        WorkloadError: the workload's model cannot be federated.
    """
    model = workload.model()
    if path is not None:
        try:
            with safe_open(path, framework="pt") as stored:
                _fill(model, stored, layout_of(model, float_buffers))
        except (OSError, SafetensorError) as error:
            raise SettingsError(f"{_FIELD}: {path} cannot be read as safetensors: {error}") from error
    weights = read_weights(model, float_buffers=float_buffers)
    if path is not None and not np.isfinite(weights).all():
        raise SettingsError(f"{_FIELD}: {path} holds a value that is not finite")
    return weights


def _fill(model: nn.Module, stored: Any, layout: Layout) -> None:
    """Overwrite what federates, and check the rest of the file against the model."""
    state, names = model.state_dict(), set(stored.keys())
    for name, shape, dtype in zip(layout.names, layout.shapes, layout.dtypes, strict=True):
        if name not in names:
            raise SettingsError(f"{_FIELD}: the model's {name!r} is not in the file")
        piece = stored.get_slice(name)
        found = tuple(piece.get_shape())
        if found != shape:
            raise SettingsError(f"{_FIELD}: {name!r} has the shape {found} in the file, {shape} in the model")
        if piece.get_dtype() != _DTYPES[dtype]:
            raise SettingsError(f"{_FIELD}: {name!r} is {piece.get_dtype()} in the file, {dtype} in the model")
        state[name].copy_(stored.get_tensor(name))
    for name in sorted(names - set(layout.names)):
        if name not in state:
            raise SettingsError(f"{_FIELD}: the model has no parameter or buffer {name!r}")
        # A second name of a tied parameter shares the memory that was just overwritten.
        if not torch.equal(state[name], stored.get_tensor(name)):
            raise SettingsError(
                f"{_FIELD}: {name!r} differs from the model's, and would not travel: only parameters that require a "
                "gradient do, and float buffers with float_buffers; let the workload's model() set it"
            )
