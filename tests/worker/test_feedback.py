"""Error feedback: what is owed after each round, beside a reference that goes coordinate by coordinate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec.positions import largest
from shared.codec.quantize import SumFormat, l2_norm
from worker.feedback import RESIDUAL_NORM_MAX, SentValues, owed, residual_after, residual_unsent
from worker.update import prepare_words

D, K = 12, 3


def form_of(clipping_norm: float) -> SumFormat:
    return SumFormat(count=K, bits=16, members=1, clipping_norm=clipping_norm)


def slow_residual(total: list[float], words: dict[int, int], clipping_norm: float, weight: float) -> list[float]:
    """`words`: the signed integer that was sent, by its position."""
    norm = math.sqrt(sum(total[i] ** 2 for i in words))
    shrink = min(1.0, clipping_norm / norm) if norm else 1.0
    scale = (2**15 - 2) / clipping_norm
    left = [0.9 * (x * shrink - words[i] / scale / weight if i in words else x) for i, x in enumerate(total)]
    length = math.sqrt(sum(x * x for x in left))
    most = RESIDUAL_NORM_MAX * clipping_norm
    return [x * most / length for x in left] if length > most else left


@settings(max_examples=80)
@given(
    rounds=st.lists(st.lists(st.floats(-30, 30, width=32), min_size=D, max_size=D), min_size=1, max_size=6),
    clipping_norm=st.floats(0.5, 50),
    weight=st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
def test_what_is_owed_is_what_the_slow_reference_says(
    rounds: list[list[float]], clipping_norm: float, weight: float, seed: int
) -> None:
    form, source = form_of(clipping_norm), np.random.default_rng(seed)
    residual, slow = None, [0.0] * D
    for number, update in enumerate(rounds):
        total = owed(np.array(update, dtype=np.float32), residual)
        slow_total = [a + b for a, b in zip(update, slow, strict=True)]
        if number % 3 == 2:
            residual, slow = residual_unsent(total, clipping_norm), slow_residual(slow_total, {}, clipping_norm, weight)
        else:
            places = largest(total, K)
            prepared = prepare_words(total, places, form, weight=weight, metrics={}, source=source)
            sent = SentValues(places, prepared.words, prepared.norm, weight)
            residual = residual_after(total, sent, form)
            words = dict(zip(places.tolist(), prepared.words.view(np.int16)[:K].tolist(), strict=True))
            slow = slow_residual(slow_total, words, clipping_norm, weight)
        np.testing.assert_allclose(residual, slow, atol=2e-4, rtol=1e-4)
        assert l2_norm(residual) <= RESIDUAL_NORM_MAX * clipping_norm * 1.001


def test_without_clipping_only_rounding_errors_are_owed_where_something_was_sent() -> None:
    total = np.linspace(-1, 1, D, dtype=np.float32)
    before, form, places = total.copy(), form_of(9.0), largest(total, K)
    prepared = prepare_words(total, places, form, weight=0.5, metrics={}, source=np.random.default_rng(0))

    residual = residual_after(total, SentValues(places, prepared.words, prepared.norm, 0.5), form)

    assert np.abs(residual[places]).max() <= 0.9 / (form.scale * 0.5) * 1.01
    assert residual[places].any()
    rest = np.setdiff1d(np.arange(D), places)
    np.testing.assert_allclose(residual[rest], 0.9 * total[rest], rtol=1e-6)
    assert np.array_equal(total, before), "the update is read only"
    with pytest.raises(ValueError, match="read-only"):
        residual[0] = 1


def test_what_clipping_removed_is_not_owed() -> None:
    total = np.full(D, 100, dtype=np.float32)
    form, places = form_of(1.0), np.arange(K)
    prepared = prepare_words(total, places, form, weight=1.0, metrics={}, source=np.random.default_rng(0))
    residual = residual_after(total, SentValues(places, prepared.words, prepared.norm, 1.0), form)
    assert np.abs(residual[places]).max() < 1e-3
    assert residual[K:].any()


def test_what_overflows_is_not_owed() -> None:
    assert not residual_unsent(np.array([np.inf, 1.0], dtype=np.float32), 1.0).any()
