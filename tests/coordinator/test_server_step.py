"""The aggregate moves the model as the chosen optimizer would, and its state survives a restart."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.aggregator.server_step import ServerOptimizer, adapt_clipping_norm
from shared.errors import LocalProtocolError, PlanError, StateError

OPTIMIZERS = [
    ("SGD", {"lr": 0.5}),
    ("SGD", {"lr": 1.0, "momentum": 0.9}),
    ("SGD", {"lr": 1.0, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.1, "betas": [0.9, 0.99]}),
    ("AdamW", {"lr": 0.1, "amsgrad": True}),
    ("Adagrad", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.01, "centered": True}),
    ("NAdam", {"lr": 0.1}),
    ("ASGD", {"lr": 0.1}),
    ("Rprop", {}),
    ("Adafactor", {"lr": 0.1}),
]


def aggregates(dimension: int, steps: int) -> list[np.ndarray]:
    source = np.random.default_rng(3)
    return [source.standard_normal(dimension).astype(np.float32) for _ in range(steps)]


def run(optimizer: ServerOptimizer, weights: np.ndarray, steps: list[np.ndarray]) -> np.ndarray:
    for aggregate in steps:
        weights = optimizer.step(weights, None, aggregate)
    return weights


def test_sgd_with_rate_one_is_federated_averaging_exactly() -> None:
    weights, aggregate = aggregates(10_000, 2)

    changed = ServerOptimizer("SGD", {"lr": 1}, 10_000).step(weights, None, aggregate)

    assert np.array_equal(changed, weights + aggregate)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=lambda value: value if isinstance(value, str) else "")
def test_steps_are_those_of_torch_on_the_negated_aggregate(name: str, options: dict[str, object]) -> None:
    weights, *steps = aggregates(50, 4)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    reference = getattr(torch.optim, name)([parameter], **options)
    for aggregate in steps:
        parameter.grad = torch.from_numpy(-aggregate)
        reference.step()

    changed = run(ServerOptimizer(name, options, 50), weights, steps)

    assert np.allclose(changed, parameter.detach().numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_restart_in_between_changes_nothing(name: str, options: dict[str, object]) -> None:
    weights, *steps = aggregates(50, 4)
    expected = run(ServerOptimizer(name, options, 50), weights, steps)

    before = ServerOptimizer(name, options, 50)
    weights = run(before, weights, steps[:2])
    after = ServerOptimizer(name, options, 50)
    after.load_state(before.state_bytes())

    assert np.array_equal(run(after, weights, steps[2:]), expected)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "options", "coordinates", "value"),
    [
        # Zero by zero at the coordinates that no client sent.
        ("Adam", {"lr": 0.1, "eps": 0.0}, np.array([1, 3]), 1.0),
        ("SGD", {"lr": 1.0}, None, 3e38),
        ("SGD", {"lr": 1.0, "momentum": 0.9}, None, 3e38),
    ],
)
def test_weights_that_are_not_finite_are_refused(
    name: str, options: dict[str, Any], coordinates: np.ndarray | None, value: float
) -> None:
    weights = np.full(70_000, 1e38, dtype=np.float32)
    aggregate = np.full(70_000 if coordinates is None else len(coordinates), value, dtype=np.float32)

    with pytest.raises(PlanError, match=f"server_optimizer: a step by {name} .* not finite.*--initial-weights"):
        ServerOptimizer(name, options, 70_000).step(weights, coordinates, aggregate)


def test_plain_sgd_touches_the_coordinates_alone() -> None:
    weights = np.ones(10, dtype=np.float32)
    optimizer = ServerOptimizer("SGD", {"lr": 0.5}, 10)

    changed = optimizer.step(weights, np.array([2, 7]), np.array([1.0, -1.0], dtype=np.float32), rescale=4.0)

    assert changed.tolist() == [1, 1, 3, 1, 1, 1, 1, -1, 1, 1]
    assert weights.tolist() == [1] * 10
    assert not optimizer.touches_all


def test_momentum_goes_on_moving_what_is_not_sent() -> None:
    optimizer = ServerOptimizer("SGD", {"lr": 1.0, "momentum": 0.5}, 3)
    one = np.ones(1, dtype=np.float32)

    first = optimizer.step(np.zeros(3, dtype=np.float32), np.array([0]), one, rescale=2.0)
    second = optimizer.step(first, np.array([1]), one, rescale=2.0)

    assert optimizer.touches_all
    assert first.tolist() == [2, 0, 0]
    assert second.tolist() == [3, 2, 0]


def test_a_sparse_step_takes_no_memory_beside_the_new_weights() -> None:
    dimension, count = 2_000_000, 200_000
    weights = np.zeros(dimension, dtype=np.float32)
    coordinates = np.arange(0, dimension, 10)
    aggregate = np.ones(count, dtype=np.float32)
    optimizer = ServerOptimizer("SGD", {"lr": 1.0}, dimension)

    tracemalloc.start()
    try:
        optimizer.step(weights, coordinates, aggregate, rescale=10.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < weights.nbytes + 2**20


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("Sdg", {}, "SGD"),
        ("Optimizer", {}, "SGD"),
        ("LBFGS", {}, "closure"),
        ("SparseAdam", {}, "dense gradients"),
        ("SGD", {"learning_rate": 0.1}, "momentum"),
        ("Adam", {"fused": True}, "amsgrad"),
        ("SGD", {"lr": -1.0}, "learning rate"),
        ("SGD", {"lr": math.nan}, "lr"),
        ("SGD", {"lr": "fast"}, "fast"),
        ("Adam", {"betas": 0.9}, "betas"),
    ],
)
def test_what_torch_would_refuse_is_refused_with_the_field(name: str, options: dict[str, object], named: str) -> None:
    with pytest.raises(PlanError, match=rf"^server_optimizer: (?s:.*){named}"):
        ServerOptimizer(name, options, 4)


def test_steps_that_do_not_fit_are_refused() -> None:
    optimizer = ServerOptimizer("SGD", {"lr": 1.0}, 4)
    four, three = np.zeros(4, dtype=np.float32), np.zeros(3, dtype=np.float32)

    for weights, coordinates, aggregate in ((three, None, three), (four, None, three), (four, np.arange(2), three)):
        with pytest.raises(LocalProtocolError):
            optimizer.step(weights, coordinates, aggregate)


def test_states_that_do_not_fit_are_refused() -> None:
    momentum = {"lr": 1.0, "momentum": 0.9}
    used = ServerOptimizer("SGD", momentum, 4)
    used.step(np.zeros(4, dtype=np.float32), None, np.ones(4, dtype=np.float32))
    state = used.state_bytes()

    for other, data in (
        (ServerOptimizer("SGD", momentum, 5), state),
        (ServerOptimizer("SGD", {"lr": 1.0}, 4), state),
        (ServerOptimizer("SGD", momentum, 4), state[:-3]),
        (ServerOptimizer("SGD", momentum, 4), b""),
    ):
        with pytest.raises(StateError):
            other.load_state(data)


def test_the_clipping_norm_settles_where_four_of_five_norms_are_below() -> None:
    # Groups of one: every share is 0 or 1. A median would settle at 50.
    norms = np.arange(1.0, 101.0)
    clipping_norm = 5.0

    for _ in range(200):
        clipping_norm = adapt_clipping_norm(clipping_norm, (norms <= clipping_norm).astype(float).tolist(), trim=2)

    assert 75 < clipping_norm < 85


@pytest.mark.parametrize("lie", [0.0, 1.0])
def test_liars_within_the_trim_move_the_clipping_norm_little(lie: float) -> None:
    norms = np.arange(1.0, 21.0)
    clipping_norm = 5.0

    for _ in range(200):
        honest = (norms <= clipping_norm).astype(float).tolist()
        clipping_norm = adapt_clipping_norm(clipping_norm, [*honest, lie, lie], trim=2)

    assert 13 <= clipping_norm <= 20.5


def test_the_clipping_norm_of_no_groups_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        adapt_clipping_norm(1.0, [1.0, 1.0], trim=1)


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {"lr": 0.5}), ("SGD", {"lr": 0.5, "momentum": 0.9}), ("Adam", {"lr": 0.5})]
)
def test_a_steps_rate_is_the_optimizers_own_times_a_factor(name: str, options: dict[str, Any]) -> None:
    weights, aggregate = np.zeros(4, np.float32), np.array([1, -2, 3, 0.5], np.float32)
    steered, lower = ServerOptimizer(name, options, 4), ServerOptimizer(name, {**options, "lr": 0.125}, 4)

    np.testing.assert_array_equal(
        steered.step(weights, None, aggregate, rate_factor=0.25), lower.step(weights, None, aggregate)
    )
    # The factor is of one step: it does not add up.
    own = ServerOptimizer(name, options, 4)
    own.step(weights, None, aggregate)
    np.testing.assert_allclose(
        steered.step(weights, None, aggregate, rate_factor=1.0), own.step(weights, None, aggregate), rtol=1e-6
    )
