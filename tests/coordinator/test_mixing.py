"""Mixing and trimming equal their definitions, bit for bit in any order, without copying their input."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator.aggregator import mixing
from coordinator.aggregator.mixing import Mixture, canonical_order, nearest, nnm_trimmed_mean, squared_distances
from coordinator.aggregator.robust import trimmed_mean
from shared.errors import LocalProtocolError


def slow_mixed(matrix: np.ndarray, trim: int) -> np.ndarray:
    """Row by row: sort all vectors by their distance, average the nearest. In float64."""
    exact = matrix.astype(np.float64)
    mixed = []
    for own in exact:
        by_distance = sorted(range(len(exact)), key=lambda j: float(((exact[j] - own) ** 2).sum()))
        mixed.append(exact[by_distance[: len(exact) - trim]].mean(axis=0))
    return np.stack(mixed)


def slow_nnm_trimmed_mean(matrix: np.ndarray, trim: int) -> np.ndarray:
    mixed = slow_mixed(matrix, trim)
    columns = [sorted(column) for column in mixed.T.tolist()]
    return np.array([math.fsum(column[trim : len(column) - trim]) / (len(column) - 2 * trim) for column in columns])


def mixed_of(matrix: np.ndarray, trim: int) -> np.ndarray:
    """The mixed vectors, in canonical order."""
    ordered = canonical_order(list(matrix))
    mixture = Mixture(nearest(squared_distances(ordered), len(matrix) - trim))
    source, out = torch.empty((2, *matrix.shape))
    return mixture.mix(ordered, source, out).numpy()


@settings(max_examples=100, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32 - 1), st.data())
def test_it_equals_its_definition(rows: int, count: int, seed: int, data: st.DataObject) -> None:
    # Continuous values: no two distances are equal, so there is one answer.
    trim = data.draw(st.integers(0, (rows - 1) // 2))
    matrix = np.random.default_rng(seed).standard_normal((rows, count)).astype(np.float32)

    result = nnm_trimmed_mean(list(matrix), trim)

    assert result.dtype == np.float32
    assert np.abs(result - slow_nnm_trimmed_mean(matrix, trim)).max() < 1e-5


def test_worked_example() -> None:
    # b = 1 of 4 on a line, so each mixes with its two nearest: 0, 1 and 2 with (0, 1, 2); 9 with (9, 2, 1).
    vectors = [np.array([value], dtype=np.float32) for value in (9.0, 0.0, 2.0, 1.0)]

    assert sorted(mixed_of(np.stack(vectors), 1).ravel().tolist()) == [1.0, 1.0, 1.0, 4.0]
    assert nnm_trimmed_mean(vectors, 1).tolist() == [1.0]


FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e-30, 1e30])


@settings(max_examples=200, derandomize=True)
@given(
    st.integers(1, 12).flatmap(
        lambda rows: st.tuples(
            st.one_of(
                hnp.arrays(np.float32, st.tuples(st.just(rows), st.integers(1, 3)), elements=FEW_VALUES),
                hnp.arrays(np.float32, (rows, 2), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
            ),
            st.integers(0, (rows - 1) // 2),
        )
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_groups_changes_no_bit(case: tuple[np.ndarray, int], random: object) -> None:
    # Few values: equal vectors, equal distances and signed zeros abound.
    matrix, trim = case
    rows = list(matrix)
    expected = nnm_trimmed_mean(rows, trim).tobytes()

    random.shuffle(rows)  # type: ignore[attr-defined]

    assert nnm_trimmed_mean(rows, trim).tobytes() == expected


@pytest.mark.parametrize("rows", [5, 24, 40])
def test_the_order_changes_no_bit_of_vectors_longer_than_a_tile(rows: int) -> None:
    source = np.random.default_rng(rows)
    matrix = source.standard_normal((rows, 33_001)).astype(np.float32)
    matrix[1, :5000] = matrix[0, :5000]  # a common beginning longer than what is compared at first
    matrix[3] = matrix[2]
    expected = nnm_trimmed_mean(list(matrix), 2)

    for _ in range(3):
        source.shuffle(matrix)
        assert nnm_trimmed_mean(list(matrix), 2).tobytes() == expected.tobytes()
    assert np.abs(expected - slow_nnm_trimmed_mean(matrix, 2)).max() < 1e-5


def test_ties_are_broken_by_value_and_not_by_place() -> None:
    # Both neighbors of 0 are at distance 1; with b = 1 only one of them is taken, the same one in all 6 orders.
    vectors = [np.array([value], dtype=np.float32) for value in (-1.0, 0.0, 1.0)]

    results = {nnm_trimmed_mean(list(order), 1).tobytes() for order in itertools.permutations(vectors)}

    assert len(results) == 1


@settings(max_examples=150, derandomize=True)
@given(st.integers(3, 20), st.integers(1, 8), st.integers(0, 2**32 - 1), st.data())
def test_mixing_brings_honest_vectors_together(rows: int, count: int, seed: int, data: st.DataObject) -> None:
    """Spread and bias of the mixed honest vectors are at most 8f/(n - f) of the spread before, whatever f others send.

    Reference: Allouah et al. (2023), lemma 1.
    """
    trim = data.draw(st.integers(1, (rows - 1) // 2))
    source = np.random.default_rng(seed)
    honest = source.standard_normal((rows - trim, count)).astype(np.float32)
    # Attackers at any distance, from among the honest ones to far away.
    distance = 10.0 ** data.draw(st.floats(-2, 4))
    attackers = (source.standard_normal((trim, count)) * distance + honest.mean(axis=0)).astype(np.float32)
    ordered = canonical_order([*honest, *attackers])
    is_honest = [np.shares_memory(vector, honest) for vector in ordered]
    mixture = Mixture(nearest(squared_distances(ordered), rows - trim))
    buffers = torch.empty((2, rows, count))

    mixed = mixture.mix(ordered, *buffers).numpy()[is_honest].astype(np.float64)

    before = honest.astype(np.float64)
    spread = ((before - before.mean(axis=0)) ** 2).sum(axis=1).mean()
    after = ((mixed - mixed.mean(axis=0)) ** 2).sum(axis=1).mean()
    bias = ((mixed.mean(axis=0) - before.mean(axis=0)) ** 2).sum()
    assert after + bias <= 8 * trim / (rows - trim) * spread * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("rows", [5, 24, 40])
def test_far_away_attackers_leave_the_mean_of_the_others(rows: int) -> None:
    source = np.random.default_rng(rows)
    honest = source.standard_normal((rows - 2, 50)).astype(np.float32)
    attackers = [np.full(50, 1e30, dtype=np.float32), np.full(50, -1e30, dtype=np.float32)]

    result = nnm_trimmed_mean([*honest, *attackers], 2)

    assert np.abs(result - honest.mean(axis=0, dtype=np.float64)).max() < 1e-5


def test_without_attackers_to_expect_it_is_the_mean() -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 20)).astype(np.float32)

    assert nnm_trimmed_mean(list(matrix), 0).tobytes() == trimmed_mean(list(matrix), 0).tobytes()
    assert np.abs(mixed_of(matrix, 0) - matrix.mean(axis=0)).max() < 1e-6


def test_averages_of_the_largest_values_do_not_overflow() -> None:
    huge = np.full((5, 3), np.finfo(np.float32).max, dtype=np.float32)

    assert np.allclose(mixed_of(huge, 1), huge, rtol=1e-6)


def test_distances_are_exact_beside_a_huge_vector() -> None:
    vectors = [np.array(values, dtype=np.float32) for values in ([3.0, 0.0], [0.0, 4.0], [1e18, -1e18])]

    distances = squared_distances(vectors)

    assert distances[0, 1] == 25.0
    assert distances[0, 2] == pytest.approx(2e36)
    assert (np.diag(distances) == 0.0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("trim", [0, 1])
def test_values_that_are_not_finite_never_get_through(bad: float, trim: int) -> None:
    vectors = [np.zeros(5, dtype=np.float32) for _ in range(4)]
    vectors[1][3] = bad

    with pytest.raises(LocalProtocolError, match="finite"):
        nnm_trimmed_mean(vectors, trim)


def test_what_cannot_be_mixed_is_refused() -> None:
    vectors = [np.zeros(2, dtype=np.float32)] * 2

    for attempt in (
        lambda: nnm_trimmed_mean(vectors, 1),
        lambda: nnm_trimmed_mean(vectors, -1),
        lambda: nnm_trimmed_mean([], 0),
        lambda: nnm_trimmed_mean([*vectors, np.zeros(3, dtype=np.float32)], 1),
    ):
        with pytest.raises(LocalProtocolError):
            attempt()


@pytest.mark.parametrize("rows", [8, 40])
def test_no_mixed_copy_of_the_input_exists(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 400_000
    vectors = list(np.random.default_rng(0).standard_normal((rows, count), dtype=np.float32))
    tiles: list[torch.Tensor] = []  # torch's memory is not traced

    def empty(*arguments: Any, **options: Any) -> torch.Tensor:
        tiles.append(torch.zeros(*arguments, **options))
        return tiles[-1]

    monkeypatch.setattr(mixing.torch, "empty", empty)
    tracemalloc.start()

    nnm_trimmed_mean(vectors, 2)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(tile.nbytes for tile in tiles) < 8 * 2**20
    assert peak - 4 * count < 4 * 2**20


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(1).standard_normal((6, 1000)).astype(np.float32)
    whole = nnm_trimmed_mean(list(matrix), 1)

    monkeypatch.setattr(mixing, "_TILE_COLUMNS", (64, 64))

    assert np.abs(nnm_trimmed_mean(list(matrix), 1) - whole).max() < 1e-6
