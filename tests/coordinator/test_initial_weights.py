"""What a new federation may start from: a file that fits the workload's model in every name, shape and dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from coordinator.initial_weights import first_weights
from coordinator.output import save_model
from shared.codec.flatten import read_weights
from shared.errors import SettingsError
from tests.tiny_workload import TinyWorkload


class Wide(TinyWorkload):
    """A model with a frozen parameter, buffers, and one parameter under two names."""

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
        model[1].weight = model[0].weight
        model[0].bias.requires_grad_(False)
        return model


def tensors(**changed: Any) -> dict[str, torch.Tensor]:
    whole = {"weight": torch.ones(1, 3), "bias": torch.full((1,), 2.0), **changed}
    return {name: tensor for name, tensor in whole.items() if tensor is not None}


def test_without_a_file_the_workloads_own_weights_count() -> None:
    np.testing.assert_array_equal(first_weights(None, TinyWorkload()), np.zeros(4, np.float32))


def test_a_file_is_read_in_the_order_of_the_model(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "start.safetensors")

    weights = first_weights(tmp_path / "start.safetensors", TinyWorkload())
    assert (weights.dtype, weights.tolist()) == (np.float32, [1.0, 1.0, 1.0, 2.0])


def test_what_was_exported_can_be_started_from(tmp_path: Path) -> None:
    model = Wide().model()
    nn.init.constant_(model[0].weight, 5.0)  # type: ignore[index, arg-type, union-attr]
    save_model(model, tmp_path / "start.safetensors", {})

    np.testing.assert_array_equal(first_weights(tmp_path / "start.safetensors", Wide()), read_weights(model))


def test_buffers_are_read_where_they_federate(tmp_path: Path) -> None:
    model = Wide().model()
    model.state_dict()["2.running_mean"].add_(1.0)
    save_model(model, tmp_path / "start.safetensors", {})

    weights = first_weights(tmp_path / "start.safetensors", Wide(), float_buffers=True)

    np.testing.assert_array_equal(weights, read_weights(model, float_buffers=True))
    assert weights[-4:].tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bias": None}, "the model's 'bias' is not in the file"),
        ({"weight": torch.ones(3, 1)}, r"'weight' has the shape \(3, 1\) in the file, \(1, 3\) in the model"),
        ({"bias": torch.ones(1, dtype=torch.float64)}, "'bias' is F64 in the file, float32 in the model"),
        ({"extra": torch.ones(1)}, "the model has no parameter or buffer 'extra'"),
        ({"bias": torch.full((1,), torch.nan)}, "not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    save_file(tensors(**changed), tmp_path / "start.safetensors")

    with pytest.raises(SettingsError, match=f"^initial_weights: .*{message}") as refused:
        first_weights(tmp_path / "start.safetensors", TinyWorkload())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["0.bias", "2.running_mean"])
def test_what_would_not_travel_may_not_differ(tmp_path: Path, name: str) -> None:
    model = Wide().model()
    model.state_dict()[name].add_(1.0)
    save_model(model, tmp_path / "start.safetensors", {})

    with pytest.raises(SettingsError, match=f"'{name}' differs from the model's, and would not travel"):
        first_weights(tmp_path / "start.safetensors", Wide())


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "start.safetensors"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError, match=r"initial_weights: .* cannot be read as safetensors") as refused:
        first_weights(path, TinyWorkload())
    assert "\n" not in str(refused.value)
