"""Aggregates equal their obvious definitions, bit for bit in any order, without copying their input."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator.aggregator.robust import comparators, coordinate_median, trimmed_mean
from shared.errors import LocalProtocolError
from tests.memory import peak_bytes

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def vectors_and_trim(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    rows = draw(st.one_of(st.integers(1, 12), st.sampled_from([31, 32, 33, 40])))
    matrix = draw(hnp.arrays(np.float32, (rows, draw(st.integers(1, 4))), elements=FINITE))
    return matrix, draw(st.integers(0, (rows - 1) // 2))


def slow_trimmed_mean(matrix: np.ndarray, trim: int) -> np.ndarray:
    """Column by column with Python's sort and exact sums."""
    columns = [sorted(float(value) for value in column) for column in matrix.T]
    return np.array([math.fsum(column[trim : len(column) - trim]) / (len(column) - 2 * trim) for column in columns])


@settings(max_examples=150)
@given(vectors_and_trim())
def test_trimmed_mean_equals_its_definition(case: tuple[np.ndarray, int]) -> None:
    matrix, trim = case

    result = trimmed_mean(list(matrix), trim)

    middle = np.sort(matrix, axis=0)[trim : len(matrix) - trim]
    tolerance = 8 * np.finfo(np.float32).eps * np.abs(middle).max(axis=0) + np.finfo(np.float32).tiny
    assert result.dtype == np.float32
    assert (np.abs(result - slow_trimmed_mean(matrix, trim)) <= tolerance).all()
    assert (result >= middle[0] - tolerance).all()
    assert (result <= middle[-1] + tolerance).all()


@settings(max_examples=150)
@given(vectors_and_trim(), st.randoms(use_true_random=False))
def test_trimmed_mean_does_not_depend_on_order(case: tuple[np.ndarray, int], random: object) -> None:
    matrix, trim = case
    rows = list(matrix)
    expected = trimmed_mean(rows, trim).tobytes()

    random.shuffle(rows)  # type: ignore[attr-defined]

    assert trimmed_mean(rows, trim).tobytes() == expected


@pytest.mark.parametrize("zeros", list(itertools.product([0.0, -0.0], repeat=3)))
def test_signed_zeros_do_not_betray_the_order(zeros: tuple[float, ...]) -> None:
    result = trimmed_mean([np.array([zero], dtype=np.float32) for zero in zeros], 1)

    assert result.tobytes() == np.zeros(1, dtype=np.float32).tobytes()


@pytest.mark.parametrize("rows", [3, 16, 40])
def test_one_huge_sender_changes_nothing(rows: int) -> None:
    source = np.random.default_rng(rows)
    honest = [source.standard_normal(100).astype(np.float32) for _ in range(rows - 1)]
    attacked = [*honest, np.full(100, 1e30, dtype=np.float32)]

    result = trimmed_mean(attacked, 1)

    assert np.abs(result).max() < 4.0
    assert np.allclose(result, slow_trimmed_mean(np.stack(attacked), 1), atol=1e-6)


@pytest.mark.parametrize("rows", range(1, 33))
def test_the_network_sorts_every_pattern_it_has_to(rows: int) -> None:
    # A network that sorts all sequences of zeros and ones sorts everything (Knuth, volume 3, theorem Z); monotone
    # patterns and 300 random ones stand for them above 10 rows.
    trim = (rows - 1) // 4
    patterns = (
        np.array(list(itertools.product([0.0, 1.0], repeat=rows)), dtype=np.float32)
        if rows <= 10
        else np.random.default_rng(rows).integers(0, 2, (300, rows)).astype(np.float32)
    )

    wires = list(patterns.T.copy())
    for low, high, low_needed, high_needed in comparators(rows, trim):
        smaller, larger = np.minimum(wires[low], wires[high]), np.maximum(wires[low], wires[high])
        wires[low] = smaller if low_needed else np.full_like(smaller, np.nan)
        wires[high] = larger if high_needed else np.full_like(larger, np.nan)

    middle = slice(trim, rows - trim)
    assert np.array_equal(np.stack(wires)[middle], np.sort(patterns.T, axis=0)[middle])


@pytest.mark.parametrize("rows", [7, 35])
def test_vectors_longer_than_a_tile(rows: int) -> None:
    source = np.random.default_rng(0)
    matrix = source.standard_normal((rows, 40_003)).astype(np.float32)
    matrix.flags.writeable = False

    result = trimmed_mean(list(matrix), 2)

    expected = np.sort(matrix.astype(np.float64), axis=0)[2:-2].mean(axis=0)
    assert np.abs(result - expected).max() < 1e-6


@settings(max_examples=100)
@given(vectors_and_trim(), st.randoms(use_true_random=False))
def test_the_median_equals_its_definition_in_any_order(case: tuple[np.ndarray, int], random: object) -> None:
    rows = list(case[0])

    result = coordinate_median(rows)
    random.shuffle(rows)  # type: ignore[attr-defined]

    exact = [statistics.median(float(value) for value in column) for column in case[0].T]
    assert result == pytest.approx(np.array(exact), rel=1e-6, abs=1e-30)
    assert coordinate_median(rows).tobytes() == result.tobytes()


@pytest.mark.parametrize("rows", [5, 6, 41, 42])
def test_just_under_half_of_the_senders_do_not_move_the_median_out_of_the_others(rows: int) -> None:
    source = np.random.default_rng(rows)
    honest = [source.standard_normal(100).astype(np.float32) for _ in range(rows // 2 + 1)]
    attackers = [np.full(100, 1e30, dtype=np.float32)] * (rows - len(honest))

    result = coordinate_median([*honest, *attackers])

    assert (result <= np.max(honest, axis=0)).all()
    assert (result >= np.min(honest, axis=0)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rows", [3, 33])
def test_values_that_are_not_finite_never_get_through(rows: int, bad: float) -> None:
    vectors = [np.zeros(5, dtype=np.float32) for _ in range(rows)]
    vectors[1][3] = bad

    with pytest.raises(LocalProtocolError, match="finite"):
        trimmed_mean(vectors, 1)
    with pytest.raises(LocalProtocolError, match="finite"):
        coordinate_median(vectors)


def test_what_cannot_be_aggregated_is_refused() -> None:
    vectors = [np.zeros(2, dtype=np.float32)] * 2

    for attempt in (
        lambda: trimmed_mean(vectors, 1),
        lambda: trimmed_mean(vectors, -1),
        lambda: trimmed_mean([], 0),
        lambda: trimmed_mean([*vectors, np.zeros(3, dtype=np.float32)], 0),
        lambda: trimmed_mean([np.zeros(2)], 0),
        lambda: coordinate_median([]),
        lambda: coordinate_median([*vectors, np.zeros(3, dtype=np.float32)]),
    ):
        with pytest.raises(LocalProtocolError):
            attempt()


@pytest.mark.parametrize("rows", [8, 40])
def test_aggregates_take_little_memory_beside_their_result(rows: int) -> None:
    count = 500_000
    vectors = [np.full(count, row, dtype=np.float32) for row in range(rows)]

    for aggregate in (lambda: trimmed_mean(vectors, 1), lambda: coordinate_median(vectors)):
        assert peak_bytes(aggregate) - 4 * count < 4 * 2**20


@pytest.mark.parametrize("rows", [16, 64])
def test_a_million_coordinates_take_less_than_16_mib_beside_the_input(rows: int) -> None:
    vectors = [np.full(1_000_000, 0.5, dtype=np.float32)] * rows

    assert peak_bytes(lambda: trimmed_mean(vectors, 3)) < 16 * 2**20
