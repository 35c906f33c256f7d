"""Local training yields the difference to the global weights and leaves nothing else behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from shared.codec.flatten import layout_of, read_weights, write_weights
from shared.errors import LocalProtocolError, WorkloadError
from shared.workloads.batches import batches
from shared.workloads.digits import Digits
from shared.workloads.port import TrainingRecipe
from worker.training.plain import PlainTraining, TrainingStopped


def line_data(count: int = 10) -> TensorDataset:
    features = torch.linspace(-1, 1, count).unsqueeze(1)
    return TensorDataset(features, 3 * features + 1)


def training(proximal_mu: float = 0.0, **fields: object) -> PlainTraining:
    return PlainTraining(nn.functional.mse_loss, TrainingRecipe(**fields), proximal_mu)  # type: ignore[arg-type]


def test_the_update_is_what_gradient_descent_by_hand_gives() -> None:
    model, data = nn.Linear(1, 1), line_data()
    weights = np.array([0.5, -0.25], dtype=np.float32)
    slope, offset = 0.5, -0.25
    x, y = (tensor.double() for tensor in data.tensors)
    for _ in range(3):
        error = slope * x + offset - y
        slope -= 0.1 * float((2 * error * x).mean())
        offset -= 0.1 * float((2 * error).mean())

    outcome = training(options={"lr": 0.1}, batch_size=10, local_epochs=3).train(model, data, weights, seed=0)

    assert outcome.num_examples == 10
    assert outcome.update == pytest.approx([slope - 0.5, offset + 0.25], abs=1e-6)
    assert weights.tolist() == [0.5, -0.25]
    assert read_weights(model) == pytest.approx([slope, offset], abs=1e-6)


def test_the_reported_loss_is_the_last_epochs_mean_over_examples() -> None:
    data = line_data(5)
    frozen = training(options={"lr": 0.0}, batch_size=2, local_epochs=2)
    model = nn.Linear(1, 1)
    weights = np.array([1.0, 0.0], dtype=np.float32)

    outcome = frozen.train(model, data, weights, seed=3)

    expected = float(nn.functional.mse_loss(data.tensors[0] * 1.0, data.tensors[1]))
    assert outcome.metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert not outcome.update.any()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_proximal_term_is_what_autograd_makes_of_its_formula(optimizer: str) -> None:
    data, mu, epochs = line_data(), 0.7, 4
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    weights = read_weights(model)
    anchors = [parameter.detach().clone() for parameter in model.parameters()]
    by_hand = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
    for _ in range(epochs):
        by_hand.zero_grad()
        distance = sum((p - a).square().sum() for p, a in zip(model.parameters(), anchors, strict=True))
        (nn.functional.mse_loss(model(data.tensors[0]), data.tensors[1]) + mu / 2 * distance).backward()
        by_hand.step()
    expected = read_weights(model) - weights

    recipe = {"optimizer": optimizer, "options": {"lr": 0.05}, "batch_size": 10, "local_epochs": epochs}
    near = training(mu, **recipe).train(model, data, weights, seed=0)
    free = training(0.0, **recipe).train(model, data, weights, seed=0)

    np.testing.assert_allclose(near.update, expected, atol=2e-6)
    assert np.abs(near.update - free.update).max() > 1e-3


def test_mu_holds_training_near_the_global_weights_and_zero_leaves_every_bit() -> None:
    model = nn.Linear(1, 1)
    weights = np.array([0.5, -0.25], dtype=np.float32)
    recipe = {"options": {"lr": 0.05}, "batch_size": 2, "local_epochs": 5}

    lengths = [np.linalg.norm(training(mu, **recipe).train(model, line_data(), weights, 1).update) for mu in (0, 1, 5)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[2] < 0.5 * lengths[0]

    write_weights(model, weights)
    by_hand, order = torch.optim.SGD(model.parameters(), lr=0.05), torch.Generator().manual_seed(1)
    for _ in range(5):
        for features, targets in batches(line_data(), 2, order):
            by_hand.zero_grad()
            nn.functional.mse_loss(model(features), targets).backward()
            by_hand.step()
    expected = read_weights(model) - weights
    assert np.array_equal(training(0.0, **recipe).train(model, line_data(), weights, 1).update, expected)


def test_a_parameter_that_the_loss_does_not_reach_stays_under_the_proximal_term() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.used(features)

    model = Half()
    update = training(1.0).train(model, line_data(), read_weights(model), 0).update
    assert update[:2].any()
    assert not update[2:].any()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop", "Adagrad"])
def test_any_optimizer_of_torch_learns(optimizer: str) -> None:
    workload = Digits(partition="iid", clients=4)
    model, data = workload.model(), workload.client_data("client-1", None)
    weights = read_weights(model)
    options = {"lr": 0.3} if optimizer == "SGD" else {"lr": 0.01}
    trainer = PlainTraining(workload.loss, TrainingRecipe(optimizer=optimizer, options=options, batch_size=16))

    losses = []
    for seed in range(4):
        outcome = trainer.train(model, data, weights, seed)
        weights = weights + outcome.update
        losses.append(outcome.metrics["loss"])

    assert losses[-1] < 0.5 * losses[0]


def test_the_seed_decides_order_and_dropout_and_nothing_outside_is_touched() -> None:
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    weights = read_weights(model)
    trainer = training(batch_size=2)
    state, threads = torch.get_rng_state(), torch.get_num_threads()

    updates = [trainer.train(model, line_data(), weights, seed).update for seed in (1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)  # whatever the rest of the process draws in between
    again = trainer.train(model, line_data(), weights, 1).update

    assert np.array_equal(updates[0], again)
    assert not np.array_equal(updates[0], updates[1])
    assert torch.get_num_threads() == threads


def test_one_model_serves_several_clients_without_a_trace() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    weights = read_weights(model)
    trainer = training(optimizer="Adam", options={"lr": 0.01}, batch_size=5)
    first = trainer.train(model, line_data(), weights, seed=1).update

    trainer.train(model, line_data(20), weights, seed=2)
    again = trainer.train(model, line_data(), weights, seed=1).update

    assert np.array_equal(first, again)
    assert model[1].running_mean.eq(0).all()
    assert not model.training


def test_running_statistics_are_part_of_the_update_on_request() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)), line_data()
    weights = read_weights(model, float_buffers=True)
    x = data.tensors[0]
    recipe = TrainingRecipe(options={"lr": 0.1}, batch_size=10, local_epochs=1)
    trainer = PlainTraining(nn.functional.mse_loss, recipe, float_buffers=True)

    first = trainer.train(model, data, weights, seed=1)
    trainer.train(model, line_data(20), weights, seed=2)
    again = trainer.train(model, data, weights, seed=1)

    # One batch moves a running statistic a tenth of the way; torch takes the unbiased variance.
    assert first.update[-2:] == pytest.approx([0.1 * float(x.mean()), 0.1 * (float(x.var()) - 1.0)], abs=1e-6)
    assert np.array_equal(first.update, again.update)
    assert first.update[:-2] == pytest.approx(training(batch_size=10).train(model, data, weights[:-2], 1).update)
    assert model[0].num_batches_tracked == 0


def test_model_and_batches_meet_on_the_device() -> None:
    seen: set[str] = set()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.update((outputs.device.type, targets.device.type))
        return torch.tensor(math.nan)

    # The meta device is the only second one that every machine has: it computes shapes and no values.
    model = nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.5), nn.Linear(2, 1)).to("meta")
    trainer = PlainTraining(loss, TrainingRecipe(), device=torch.device("meta"))
    with pytest.raises(WorkloadError, match="loss became nan"):
        trainer.train(model, line_data(), np.zeros(7, np.float32), seed=0)

    assert seen == {"meta"}


def test_frozen_parameters_stay() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()

    outcome = training().train(model, line_data(), read_weights(model), seed=0)

    assert outcome.update.shape == (layout_of(model).dimension,) == (3,)
    assert torch.equal(model[0].weight, before)


def test_training_stops_between_batches() -> None:
    asked = iter([False, False, True])
    model = nn.Linear(1, 1)

    with pytest.raises(TrainingStopped):
        training(batch_size=2).train(model, line_data(), read_weights(model), 0, should_stop=lambda: next(asked))

    assert list(asked) == []


def test_data_and_losses_that_lead_nowhere_are_told() -> None:
    model = nn.Linear(1, 1)
    weights = read_weights(model)
    broken = line_data()
    broken.tensors[0][3] = float("nan")

    with pytest.raises(WorkloadError, match="no examples"):
        training().train(model, line_data(0), weights, seed=0)
    with pytest.raises(WorkloadError, match="loss became nan"):
        training().train(model, broken, weights, seed=0)
    with pytest.raises(WorkloadError, match="loss became"):
        training(options={"lr": 1e30}, local_epochs=5).train(model, line_data(), weights, seed=0)

    write_weights(model, weights)
    assert np.isfinite(training().train(model, line_data(), weights, seed=0).update).all()


def test_a_recipe_that_torch_does_not_know_is_refused_at_once() -> None:
    with pytest.raises(WorkloadError, match=r"^optimizer: torch.optim has no optimizer 'Adma'"):
        training(optimizer="Adma")
    with pytest.raises(WorkloadError, match=r"^optimizer: SGD has no option 'beta'"):
        training(options={"beta": 1})


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}},
        {"optimizer": "AdamW", "options": {"lr": 0.05, "weight_decay": 0.3}},
    ],
    ids=lambda recipe: recipe["optimizer"],
)
def test_restricted_training_moves_its_coordinates_as_if_all_else_were_constant(recipe: dict[str, object]) -> None:
    data = line_data()
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    weights = read_weights(model)
    coordinates = np.array([1, 4, 6, 9])
    restricted = training(0.7, **recipe, batch_size=4, local_epochs=3)

    outcome = restricted.train(model, data, weights, seed=0, coordinates=coordinates)

    assert set(np.flatnonzero(outcome.update)) == set(coordinates), "all of these, and nothing else, bit for bit"
    # A model whose only parameters are those four, and whatever else it computes with are constants.
    few = _OnlySome(model, weights, coordinates)
    alone = training(0.7, **recipe, batch_size=4, local_epochs=3).train(few, data, weights[coordinates], seed=0)
    np.testing.assert_allclose(outcome.update[coordinates], alone.update, atol=1e-6)
    assert outcome.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)


class _OnlySome(nn.Module):
    """`model` as a function of its weights at `coordinates`."""

    def __init__(self, model: nn.Module, weights: np.ndarray, coordinates: np.ndarray) -> None:
        super().__init__()
        self.some = nn.Parameter(torch.from_numpy(weights[coordinates]))
        self._held = torch.from_numpy(weights.copy())
        self._coordinates = torch.from_numpy(coordinates)
        self._shapes = [(name, parameter.shape) for name, parameter in model.named_parameters()]
        self._call = lambda parameters, x: torch.func.functional_call(model, parameters, (x,))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        flat = self._held.index_put((self._coordinates,), self.some)
        pieces = flat.split([shape.numel() for _, shape in self._shapes])
        parameters = {name: piece.view(shape) for (name, shape), piece in zip(self._shapes, pieces, strict=True)}
        return self._call(parameters, features)


def test_a_gradient_that_is_not_finite_harms_no_value_that_is_held() -> None:
    class Pole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.a * features + self.b.sqrt()

    weights = np.array([1.0, 0.0], dtype=np.float32)
    outcome = training(options={"lr": 0.1}).train(Pole(), line_data(), weights, seed=0, coordinates=np.array([0]))
    assert outcome.update[0] != 0
    assert outcome.update[1] == 0


def test_coordinates_beyond_the_model_are_refused() -> None:
    weights = np.zeros(2, dtype=np.float32)
    with pytest.raises(LocalProtocolError):
        training().train(nn.Linear(1, 1), line_data(), weights, seed=0, coordinates=np.array([0, 2]))
