"""What leaves a client is selected, clipped last, weighted, rounded, and never silently wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregator.weighted_mean import MeanAccumulator
from shared.codec.quantize import SumFormat, l2_norm, open_mean, open_slots
from shared.errors import LocalProtocolError, WorkloadError
from worker.update import prepare_words

SOURCE = np.random.default_rng


def form_of(count: int, clipping_norm: float, bits: int = 32, **bounds: float) -> SumFormat:
    metric_bounds = tuple(bounds.items())
    return SumFormat(
        count=count,
        bits=bits,  # type: ignore[arg-type]
        members=1,
        clipping_norm=clipping_norm,
        metric_bounds=metric_bounds,
    )


def test_only_the_coordinates_are_sent_and_only_they_are_clipped() -> None:
    update = np.array([100.0, 3.0, -100.0, 4.0], dtype=np.float32)
    coordinates = np.array([1, 3])

    within = prepare_words(update, coordinates, form_of(2, 5.0), weight=1.0, metrics={}, source=SOURCE(0))
    beyond = prepare_words(update, coordinates, form_of(2, 1.0), weight=1.0, metrics={}, source=SOURCE(0))

    assert (within.norm, within.clipped) == (5.0, False)
    assert open_mean(within.words, form_of(2, 5.0), 1.0) == pytest.approx([3.0, 4.0], abs=1e-6)
    assert (beyond.norm, beyond.clipped) == (5.0, True)
    assert open_mean(beyond.words, form_of(2, 1.0), 1.0) == pytest.approx([0.6, 0.8], abs=1e-6)
    assert update.tolist() == [100.0, 3.0, -100.0, 4.0]


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.floats(0.01, 1e4),
    st.floats(0.05, 1.0),
    st.floats(-9, 9),
    st.sampled_from([16, 32]),
)
def test_what_the_server_opens_is_what_was_sent(
    raw: list[float], clipping_norm: float, weight: float, loss: float, bits: int
) -> None:
    update = np.array(raw, dtype=np.float32)
    form = form_of(len(raw), clipping_norm, bits, loss=10.0)

    prepared = prepare_words(update, None, form, weight=weight, metrics={"loss": loss}, source=SOURCE(0))
    slots = open_slots(prepared.words, form, 1)
    mean = open_mean(prepared.words, form, slots.weight)

    step = 1.0 / (form.levels * weight)
    expected = update.astype(np.float64) * min(1.0, clipping_norm / max(prepared.norm, 1e-300))
    assert slots.weight == pytest.approx(weight, rel=step)
    assert slots.metrics["loss"] == pytest.approx(loss, abs=20 * step)
    assert slots.unclipped_share == float(not prepared.clipped)
    assert np.abs(mean - expected).max() <= clipping_norm * (3 * step + 1e-7)
    assert prepared.clamped == ()


def test_the_example_weighted_mean_of_clients_is_exact_to_a_millionth() -> None:
    source = SOURCE(7)
    count, largest = 9610, 200
    examples = [8, 31, 72, 100, 143, 199, 200]
    updates = [(source.standard_normal(count) * 0.02).astype(np.float32) for _ in examples]
    form = form_of(count, 10.0)
    accumulator = MeanAccumulator(count, len(examples), form.clipping_norm)

    for update, number in zip(updates, examples, strict=True):
        words = prepare_words(update, None, form, weight=number / largest, metrics={}, source=source).words
        accumulator.add(words, form, open_slots(words, form, 1).weight)

    expected = np.average(np.stack(updates).astype(np.float64), axis=0, weights=examples)
    assert max(l2_norm(update) for update in updates) < form.clipping_norm
    assert np.abs(accumulator.take() - expected).max() <= 1e-6


def test_metrics_beyond_their_bound_are_clamped_and_named() -> None:
    form = form_of(1, 1.0, loss=2.0, score=1.0)

    prepared = prepare_words(
        np.zeros(1, dtype=np.float32), None, form, weight=1.0, metrics={"loss": -7.0, "score": 1.0}, source=SOURCE(0)
    )

    assert prepared.clamped == ("loss",)
    assert open_slots(prepared.words, form, 1).metrics == {"loss": pytest.approx(-2.0), "score": pytest.approx(1.0)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_an_update_that_is_not_finite_is_told_wherever_it_is(position: int, bad: float) -> None:
    update = np.zeros(2, dtype=np.float32)
    update[position] = bad

    with pytest.raises(WorkloadError, match="update is not finite"):
        prepare_words(update, np.array([0]), form_of(1, 1.0), weight=1.0, metrics={}, source=SOURCE(0))


@pytest.mark.parametrize("metrics", [{}, {"loss": math.nan}, {"loss": math.inf}])
def test_a_metric_that_is_missing_or_not_finite_is_named(metrics: dict[str, float]) -> None:
    with pytest.raises(WorkloadError, match="'loss'"):
        prepare_words(
            np.zeros(1, dtype=np.float32),
            None,
            form_of(1, 1.0, loss=1.0),
            weight=1.0,
            metrics=metrics,
            source=SOURCE(0),
        )


@pytest.mark.parametrize(("count", "weight"), [(2, 1.0), (3, 0.0), (3, 1.1), (3, math.nan)])
def test_sizes_and_weights_that_do_not_fit_stop_the_process(count: int, weight: float) -> None:
    with pytest.raises(LocalProtocolError):
        prepare_words(
            np.zeros(3, dtype=np.float32), None, form_of(count, 1.0), weight=weight, metrics={}, source=SOURCE(0)
        )
