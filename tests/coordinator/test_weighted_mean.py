"""The weighted mean of group sums: exact, the same in every order, and in how much memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator.aggregator.weighted_mean import MeanAccumulator
from shared.codec.quantize import Bits, SumFormat, Words, open_slots, quantize, write_slots
from shared.errors import LocalProtocolError
from tests.memory import peak_bytes


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
    monkeypatch.setattr("coordinator.aggregator.weighted_mean._SMALL_COUNT", 1_000)
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
        patch.setattr("coordinator.aggregator.weighted_mean._RUN_COUNT", 2)
        accumulator = MeanAccumulator(3, 2 * len(sums), 1.0)
        for size, words in sums:
            accumulator.add(words.view(forms[size].word_type), forms[size], 1.0)
        mean = accumulator.take()

    exact = sum(words[:3].astype(np.float64) / forms[size].scale for size, words in sums) / len(sums)
    assert mean == pytest.approx(exact, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("bits", [16, 32])
def test_a_million_coordinates_take_less_than_16_mib_all_told(bits: Bits, rows: int) -> None:
    form = SumFormat(count=1_000_000, bits=bits, members=1, clipping_norm=1.0)
    words = np.broadcast_to(form.word_type.type(7), form.length)
    kept: list[int] = []

    def add_up() -> None:
        accumulator = MeanAccumulator(form.count, rows, 1.0)
        for _ in range(rows):
            accumulator.add(words, form, 1.0)
        accumulator.take()
        kept.append(accumulator.nbytes)

    assert peak_bytes(add_up) < 16 * 2**20
    assert kept[0] == {16: 6, 32: 4}[bits] * form.count


@pytest.mark.parametrize("small", [10, 10_000])
def test_forged_words_of_every_member_do_not_wrap_the_accumulator(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.aggregator.weighted_mean._SMALL_COUNT", small)
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


@pytest.mark.parametrize("bits", [16, 32])
def test_one_mean_after_the_other_is_as_from_a_new_accumulator_and_takes_no_more_memory(bits: Bits) -> None:
    source = np.random.default_rng(3)
    count, end = 1_000, 2 ** (bits - 1)
    kept = MeanAccumulator(count, 4, 1.0)
    held = []
    # Sums that fit the words' width, sums that do not; groups of one size, of two.
    for turn, (size, members) in enumerate(2 * [(end, (1, 2, 1)), (end // 9, (1, 1, 1)), (end, (2, 2)), (9, (1, 2))]):
        new = MeanAccumulator(count, 4, 1.0 + turn)
        kept.start(4, 1.0 + turn)
        for n in members:
            form = SumFormat(count=count, bits=bits, members=n, clipping_norm=1.0 + turn)
            words = source.integers(-size, size, form.length).astype(f"<i{bits // 8}").view(form.word_type)
            new.add(words, form, 1.0)
            kept.add(words, form, 1.0)
        assert kept.take().tobytes() == new.take().tobytes()
        held.append(kept.nbytes)
    assert held[4:] == 4 * held[3:4]


def test_what_was_not_taken_is_forgotten() -> None:
    form = SumFormat(count=2, bits=16, members=1, clipping_norm=1.0)
    accumulator = MeanAccumulator(2, 1, 1.0)
    accumulator.add(np.full(form.length, 9, dtype=form.word_type), form, 1.0)

    accumulator.start(1, 1.0)
    with pytest.raises(LocalProtocolError, match="no groups"):
        accumulator.take()
    accumulator.add(np.full(form.length, 5, dtype=form.word_type), form, 1.0)
    assert accumulator.take() == pytest.approx(np.full(2, 5 / form.scale), rel=1e-6)

    with pytest.raises(LocalProtocolError, match="members"):
        accumulator.add(np.full(form.length, 5, dtype=form.word_type), form, 1.0)
