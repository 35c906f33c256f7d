"""A model becomes one vector and back, without loss and without copies."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from shared.codec.flatten import layout_of, read_weights, write_weights
from shared.errors import LocalProtocolError, WorkloadError


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False))
    for value, parameter in enumerate(model.parameters()):
        nn.init.constant_(parameter, float(value))
    return model


def test_the_layout_names_what_requires_a_gradient_in_order() -> None:
    model = small_model()
    model[0].bias.requires_grad_(False)

    layout = layout_of(model)

    assert layout.names == ("0.weight", "1.weight", "1.bias", "2.weight")
    assert layout.shapes == ((2, 3), (2,), (2,), (1, 2))
    assert layout.dtypes == ("float32",) * 4
    assert layout.dimension == 12


def test_digests_agree_for_equal_models_and_differ_for_others() -> None:
    renamed = nn.Sequential(nn.Linear(3, 2, bias=False))
    models = (
        nn.Linear(3, 2, bias=False),
        nn.Linear(2, 3, bias=False),
        nn.Linear(6, 1, bias=False),
        nn.Linear(3, 2),
        renamed,
    )

    digests = {layout_of(model).digest() for model in models}

    assert len(digests) == len(models)
    assert layout_of(nn.Linear(3, 2)).digest() == layout_of(nn.Linear(3, 2)).digest()


def test_the_digest_is_the_same_in_every_release() -> None:
    # Provenance: hashlib over the canonical bytes written out by hand. Plans in old logs carry such digests.
    expected = "8836f695375f747c99ae76730ef78419f9ba7a38fb0d11d8a9cb9af1d05aa731"

    assert layout_of(nn.Linear(3, 2)).digest().hex() == expected


def test_weights_survive_the_round_trip() -> None:
    model = small_model()
    vector = np.arange(layout_of(model).dimension, dtype=np.float32)
    vector.flags.writeable = False

    write_weights(model, vector)

    assert np.array_equal(read_weights(model), vector)
    assert torch.equal(model[0].weight, torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_parameters_and_buffers_stay() -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    write_weights(model, np.full(layout_of(model).dimension, 9.0, dtype=np.float32))

    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_what_was_read_does_not_follow_the_model() -> None:
    model = small_model()
    vector = read_weights(model)
    before = vector.copy()

    write_weights(model, vector + 1.0)

    assert np.array_equal(vector, before)


def test_unusual_strides_and_tied_weights() -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last), "b": nn.Linear(2, 2)})
    model["c"] = nn.Linear(2, 2)
    model["c"].weight = model["b"].weight
    vector = np.arange(layout_of(model).dimension, dtype=np.float32)

    write_weights(model, vector)

    assert layout_of(model).dimension == 2 * 3 * 4 + 3 + 4 + 2 + 2
    assert np.array_equal(read_weights(model), vector)
    assert model["a"].weight[0, 1, 0, 0] == 4.0  # row-major order, whatever the memory looks like


def test_reading_and_writing_take_no_memory_beside_the_vector() -> None:
    model = nn.Linear(1000, 1000, bias=False)
    vector = read_weights(model)

    tracemalloc.start()
    try:
        read_weights(model, vector)
        write_weights(model, vector)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 100_000  # the vector has 4 MB


def test_a_vector_of_another_model_is_refused() -> None:
    model = small_model()
    for wrong in (np.zeros(3, dtype=np.float32), np.zeros(layout_of(model).dimension, dtype=np.float64)):
        with pytest.raises(LocalProtocolError, match="expected"):
            write_weights(model, wrong)
        with pytest.raises(LocalProtocolError, match="expected"):
            read_weights(model, wrong)


def test_a_parameter_of_another_dtype_is_named_with_the_remedy() -> None:
    model = small_model()
    model[2].half()

    with pytest.raises(WorkloadError, match=r"'2\.weight' is float16.*\.float\(\)"):
        layout_of(model)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(WorkloadError, match="requires_grad"):
        layout_of(small_model().requires_grad_(False))


# ── float buffers ──


class Normalized(nn.Module):
    """Parameters, running statistics, an integer buffer, and a float buffer that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.full((3,), 7.0), persistent=False)
        self.line = nn.Linear(2, 1)


def test_stored_float_buffers_follow_the_parameters_on_request() -> None:
    layout = layout_of(Normalized(), float_buffers=True)

    parameters = ("norm.weight", "norm.bias", "line.weight", "line.bias")
    assert layout.names == (*parameters, "norm.running_mean", "norm.running_var")
    assert layout_of(Normalized()).names == parameters
    assert layout.shapes[4:] == ((2,), (2,))
    assert layout.dimension == 2 + 2 + 2 + 1 + 2 + 2
    assert layout.digest() != layout_of(Normalized()).digest()


def test_buffers_survive_the_round_trip_and_the_others_stay() -> None:
    model = Normalized()
    vector = np.arange(11, dtype=np.float32)
    vector.flags.writeable = False

    write_weights(model, vector, float_buffers=True)

    assert np.array_equal(read_weights(model, float_buffers=True), vector)
    assert np.array_equal(read_weights(model), vector[:7])
    assert model.norm.running_mean.tolist() == [7.0, 8.0]
    assert model.norm.running_var.tolist() == [9.0, 10.0]
    assert model.norm.num_batches_tracked.item() == 0
    assert model.table.tolist() == [7.0] * 3


def test_a_variance_below_zero_is_written_as_zero() -> None:
    model = Normalized()
    vector = np.full(11, -1e-3, dtype=np.float32)

    write_weights(model, vector, float_buffers=True)

    assert model.norm.running_var.tolist() == [0.0, 0.0]
    assert np.array_equal(read_weights(model, float_buffers=True)[:9], vector[:9])
    assert torch.isfinite(model.eval().norm(torch.ones(4, 2))).all()


def test_buffers_that_cannot_federate_are_named_with_the_remedy() -> None:
    with pytest.raises(WorkloadError, match=r"^float_buffers: .* no float buffer .* leave it off"):
        layout_of(nn.Linear(1, 1), float_buffers=True)

    model = Normalized()
    model.norm.running_mean = model.norm.running_mean.double()
    with pytest.raises(WorkloadError, match=r"buffer 'norm\.running_mean' is float64.*float_buffers off"):
        layout_of(model, float_buffers=True)
    layout_of(model)
