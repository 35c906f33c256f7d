"""Aggregates equal their obvious definitions, bit for bit in any order, without copying their input."""

from __future__ import annotations

import itertools
import math
import statistics
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator.aggregator.robust import MeanAccumulator, comparators, coordinate_median, trimmed_mean
from shared.codec.quantize import SumFormat, Words, open_slots, quantize, write_slots
from shared.errors import LocalProtocolError

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


def peak_bytes(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def group_words(values: np.ndarray, form: SumFormat, weight: float, source: np.random.Generator) -> Words:
    words: Words = np.empty(form.length, dtype=form.word_type)
    quantize(values, weight, form, source, words)
    write_slots(words, form, weight, {}, True)
    return words


def add_all(accumulator: MeanAccumulator, sums: list[tuple[Words, SumFormat]]) -> np.ndarray:
    for words, form in sums:
        accumulator.add(words, form, open_slots(words, form, 1).weight)
    return accumulator.take()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 2**32 - 1), st.sampled_from([16, 32]))
def test_the_accumulated_mean_is_exact_and_independent_of_order(rosters: list[int], seed: int, bits: int) -> None:
    source = np.random.default_rng(seed)
    count, members = 20, sum(rosters)
    updates = source.uniform(-0.2, 0.2, (len(rosters), count)).astype(np.float32)
    weights = source.uniform(0.1, 1.0, len(rosters)).tolist()
    forms = [SumFormat(count=count, bits=bits, members=n, clipping_norm=1.0) for n in rosters]  # type: ignore[arg-type]
    sums = [
        (group_words(update, form, weight, source), form)
        for update, form, weight in zip(updates, forms, weights, strict=True)
    ]

    forward = add_all(MeanAccumulator(count, members, 1.0), sums)
    backward = add_all(MeanAccumulator(count, members, 1.0), sums[::-1])

    expected = np.average(updates.astype(np.float64), axis=0, weights=weights)
    step = max(rosters) / 2.0 ** (bits - 1)
    assert forward.tobytes() == backward.tobytes()
    assert np.abs(forward - expected).max() <= 30 * step + 1e-7


def test_the_example_weighted_mean_is_exact_to_a_millionth() -> None:
    source = np.random.default_rng(5)
    count = 5_000
    form = SumFormat(count=count, bits=32, members=1, clipping_norm=50.0)
    updates = (source.standard_normal((8, count)) * 0.05).astype(np.float32)
    examples = [3, 40, 72, 100, 150, 8, 61, 200]

    mean = add_all(
        MeanAccumulator(count, 8, 50.0),
        [(group_words(u, form, n / 200, source), form) for u, n in zip(updates, examples, strict=True)],
    )

    expected = np.average(updates.astype(np.float64), axis=0, weights=examples)
    assert np.abs(mean - expected).max() <= 1e-6


def test_a_large_mean_is_exact_enough_in_four_bytes_per_coordinate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.aggregator.robust._SMALL_COUNT", 1_000)
    source = np.random.default_rng(5)
    count = 200_000
    form = SumFormat(count=count, bits=32, members=1, clipping_norm=10.0)
    updates = (source.standard_normal((4, count)) * 0.01).astype(np.float32)
    sums = [(group_words(update, form, 0.5, source), form) for update in updates]
    means: list[np.ndarray] = []

    peak = peak_bytes(lambda: means.append(add_all(MeanAccumulator(count, 4, 10.0), sums)))

    assert np.abs(means[0] - updates.astype(np.float64).mean(axis=0)).max() <= 1e-6
    assert peak < 4 * count + 2 * 2**20  # the result lies where the sum lay


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 3, 2, 3]])
def test_words_of_16_bits_take_4_bytes_for_each_size_of_group_and_2_more(sizes: list[int]) -> None:
    count = 3_000_000
    forms = [SumFormat(count=count, bits=16, members=n, clipping_norm=1.0) for n in sizes]
    words = np.full(forms[0].length, 7, dtype=forms[0].word_type)
    means: list[np.ndarray] = []

    def add_up() -> None:
        accumulator = MeanAccumulator(count, sum(sizes), 1.0)
        for form in forms:
            accumulator.add(words, form, 1.0)
        means.append(accumulator.take())

    peak = peak_bytes(add_up)

    assert peak < (4 * len(set(sizes)) + 2) * count + 2**20
    assert np.allclose(means[0], 7 * sum(1 / form.scale for form in forms) / len(sizes), rtol=1e-6)


@st.composite
def words_of_any_size(draw: st.DrawFn, bits: int) -> list[tuple[int, np.ndarray]]:
    end = 2 ** (bits - 1)
    vector = hnp.arrays(f"i{bits // 8}", 5, elements=st.integers(-end, end - 1))
    return draw(st.lists(st.tuples(st.integers(0, 1), vector), min_size=1, max_size=8))


@pytest.mark.parametrize("bits", [16, 32])
@settings(max_examples=100)
@given(st.data())
def test_words_of_any_size_add_up_exactly(bits: int, data: st.DataObject) -> None:
    # All of them may be forged; runs have 2 coordinates, so that they are carried apart.
    sums = data.draw(words_of_any_size(bits))
    forms = [SumFormat(count=3, bits=bits, members=n, clipping_norm=1.0) for n in (1, 2)]  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordinator.aggregator.robust._RUN_COUNT", 2)
        accumulator = MeanAccumulator(3, 2 * len(sums), 1.0)
        for size, words in sums:
            accumulator.add(words.view(forms[size].word_type), forms[size], 1.0)
        mean = accumulator.take()

    exact = sum(words[:3].astype(np.float64) / forms[size].scale for size, words in sums) / len(sums)
    assert mean == pytest.approx(exact, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("rows", [16, 64])
def test_a_million_coordinates_take_less_than_16_mib_beside_the_input(rows: int) -> None:
    count = 1_000_000
    vectors = [np.full(count, 0.5, dtype=np.float32)] * rows

    def add_up(bits: int) -> None:
        form = SumFormat(count=count, bits=bits, members=1, clipping_norm=1.0)  # type: ignore[arg-type]
        words = np.broadcast_to(form.word_type.type(7), form.length)
        accumulator = MeanAccumulator(count, rows, 1.0)
        for _ in range(rows):
            accumulator.add(words, form, 1.0)
        accumulator.take()

    assert peak_bytes(lambda: trimmed_mean(vectors, 3)) < 16 * 2**20
    assert peak_bytes(lambda: add_up(16)) < 16 * 2**20
    assert peak_bytes(lambda: add_up(32)) < 16 * 2**20


@pytest.mark.parametrize("small", [10, 10_000])
def test_forged_words_of_every_member_do_not_wrap_the_accumulator(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.aggregator.robust._SMALL_COUNT", small)
    form = SumFormat(count=100, bits=16, members=2, clipping_norm=1.0)
    words = np.full(form.length, 2**15, dtype=form.word_type)  # -2**15: below what honest members reach
    accumulator = MeanAccumulator(100, 8, 1.0)

    for _ in range(4):
        accumulator.add(words, form, 2.0)

    assert accumulator.groups == 4
    assert accumulator.take() == pytest.approx(np.full(100, -(2**15) / form.scale / 2.0), rel=1e-6)


def test_an_accumulator_refuses_what_it_was_not_made_for() -> None:
    form = SumFormat(count=2, bits=16, members=2, clipping_norm=1.0)
    words = np.ones(form.length, dtype=form.word_type)
    accumulator = MeanAccumulator(2, 3, 1.0)

    with pytest.raises(LocalProtocolError, match="no groups"):
        accumulator.take()
    accumulator.add(words, form, 1.0)
    with pytest.raises(LocalProtocolError, match="members"):
        accumulator.add(words, form, 1.0)
    with pytest.raises(LocalProtocolError, match="fit"):
        accumulator.add(words[1:], form, 1.0)
