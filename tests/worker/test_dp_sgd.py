"""DP-SGD: how far one record reaches, where the noise is and how much, and which models are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from shared.codec.flatten import read_weights
from shared.errors import WorkloadError
from shared.privacy.entropy import SecureSource
from shared.privacy.updates import RecordNoise
from shared.workloads.digits import Digits
from worker.training.dp_sgd import DpSgd, check_model
from worker.training.plain import TrainingStopped

WORKLOAD = Digits(network="tanh-64", clients=4)
DIMENSION = 4_810


def numbers(multiplier: float = 0.0, steps: int = 1, rate: float = 1.0) -> RecordNoise:
    return RecordNoise(
        multiplier=multiplier, gradient_norm=0.5, sampling_rate=rate, steps=steps, records=50.0 * rate, rate=2.0
    )


def source(key: int = 1) -> SecureSource:
    return SecureSource(bytes([key]) * 32)


def train(
    data: TensorDataset,
    noise: RecordNoise,
    coordinates: np.ndarray | None = None,
    key: int = 1,
    model: nn.Module | None = None,
) -> np.ndarray:
    model = model or WORKLOAD.model()
    weights = read_weights(model)
    outcome = DpSgd(WORKLOAD.loss, noise).train(model, data, weights, 0, source(key), coordinates=coordinates)
    assert outcome.metrics == {}
    assert outcome.update.dtype == np.float32
    return outcome.update


def some_coordinates() -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(DIMENSION)[: DIMENSION // 4])


@pytest.mark.parametrize("restricted", [False, True])
def test_one_more_record_moves_the_sum_by_its_clip_at_most(restricted: bool) -> None:
    coordinates = some_coordinates() if restricted else None
    noise, whole = numbers(), WORKLOAD.client_data("client-1", None)
    features, targets = whole.tensors
    most = 0.0
    for i in range(12):
        x = features.clone()
        x[-1] *= 10.0 ** (i - 3)  # also records that nobody has
        with_it = train(TensorDataset(x, targets), noise, coordinates)
        without = train(TensorDataset(features[:-1], targets[:-1]), noise, coordinates)
        difference = (with_it.astype(np.float64) - without) * noise.records / noise.rate
        most = max(most, float(np.linalg.norm(difference)))
        if coordinates is not None:
            assert not np.delete(with_it, coordinates).any()
    assert 0.99 * noise.gradient_norm < most <= noise.gradient_norm * 1.0001


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("restricted", [False, True])
def test_the_noise_has_its_deviation_and_is_nowhere_else(steps: int, restricted: bool) -> None:
    coordinates = some_coordinates() if restricted else np.arange(DIMENSION)
    noise = numbers(multiplier=3.0, steps=steps)
    data = WORKLOAD.client_data("client-1", None)
    given = coordinates if restricted else None
    updates = np.stack([train(data, noise, given, key) for key in range(1, 31)]).astype(np.float64)

    drawn = updates[:, coordinates] - updates[:, coordinates].mean(axis=0)
    deviation = np.sqrt((drawn**2).sum() / (29 * len(coordinates)))
    # Local steps see each other's noise, which moves the deviation a little.
    assert deviation == pytest.approx(noise.deviation, rel=0.03)
    assert not np.delete(updates, coordinates, axis=1).any()


def test_the_noise_of_different_keys_and_steps_is_independent() -> None:
    noise = numbers(multiplier=100.0)
    data = WORKLOAD.client_data("client-1", None)
    first, second = (train(data, noise, key=key).astype(np.float64) for key in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    np.testing.assert_array_equal(first.astype(np.float32), train(data, noise, key=1))


def test_an_empty_sample_still_gets_its_noise() -> None:
    noise = numbers(multiplier=3.0, rate=1e-9)
    update = train(WORKLOAD.client_data("client-1", None), noise)
    assert float(update.std()) == pytest.approx(noise.deviation, rel=0.05)


def test_poisson_samples_are_divided_by_the_expected_number() -> None:
    data = WORKLOAD.client_data("client-1", None)
    whole = train(data, numbers())
    halves = np.mean([train(data, numbers(rate=0.5), key=key) for key in range(1, 41)], axis=0)
    cosine = whole @ halves / np.linalg.norm(whole) / np.linalg.norm(halves)
    assert cosine > 0.99
    assert np.linalg.norm(halves) == pytest.approx(np.linalg.norm(whole), rel=0.1)


def test_full_batches_and_one_step_do_not_see_how_the_records_are_shared_out() -> None:
    totals = []
    for partition in ("iid", "dirichlet:0.3"):
        workload = Digits(partition=partition, network="tanh-64", clients=4)
        shares = [workload.client_data(f"client-{i}", None) for i in range(1, 5)]
        totals.append(sum(train(share, numbers()).astype(np.float64) for share in shares))
    np.testing.assert_allclose(totals[0], totals[1], atol=1e-5)
    assert np.abs(totals[0]).max() > 0.01


def test_it_stops_when_it_is_told_to_and_needs_records() -> None:
    data, model = WORKLOAD.client_data("client-1", None), WORKLOAD.model()
    training, weights = DpSgd(WORKLOAD.loss, numbers()), read_weights(WORKLOAD.model())
    with pytest.raises(TrainingStopped):
        training.train(model, data, weights, 0, source(), lambda: True)
    with pytest.raises(WorkloadError, match="no examples"):
        training.train(model, TensorDataset(*data[:0]), weights, 0, source())


class Centered(nn.Module):
    """Looks at the batch without being a layer that anybody knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0)


class CenteredInTraining(Centered):
    """Looks at the batch where it matters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.training else x


class Running(nn.Module):
    """Looks at one record at a time, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(dim=0).detach()
        return x - seen


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.BatchNorm1d(64), "1 is a BatchNorm1d, .* use GroupNorm or LayerNorm"),
        (nn.BatchNorm1d(64, affine=False, track_running_stats=False), "BatchNorm1d"),
        (nn.InstanceNorm1d(64, track_running_stats=True), "InstanceNorm1d"),
        (Centered(), "depends on the others of its batch"),
        (CenteredInTraining(), "depends on the others of its batch"),
        (Running(), "training changes the model's buffer '1.mean'"),
    ],
)
def test_models_whose_records_meet_are_refused(layer: nn.Module, told: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), layer, nn.Linear(64, 10))
    with pytest.raises(WorkloadError, match=told):
        check_model(model, WORKLOAD.client_data("client-1", None))


def test_models_whose_records_are_apart_are_not() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Dropout(0.5), nn.GroupNorm(4, 64), nn.Linear(64, 10))
    check_model(model, WORKLOAD.client_data("client-1", None))
    assert model.training
