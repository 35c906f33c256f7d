"""Mean and spread of what clients measured, as the sum of their words says it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.summing.secure_sum import add_words
from shared.codec.quantize import Bits, SumFormat, open_slots
from shared.codec.validation import Spread, is_validation_slot, read_spreads, slot_values, validation_slots
from worker.update import prepare_words

BOUNDS = {"loss": 20.0, "accuracy": 1.0}

Client = tuple[float, dict[str, float]]
"""Weight, and what it measured."""


def spreads_of(clients: Sequence[Client], bits: Bits = 32, bounds: dict[str, float] = BOUNDS) -> dict[str, Spread]:
    """What the sum of one group of these clients says."""
    slots = validation_slots(bounds)
    form = SumFormat(
        count=1, bits=bits, members=len(clients), clipping_norm=1.0, metric_bounds=tuple(sorted(slots.items()))
    )
    total = np.zeros(form.length, dtype=form.word_type)
    for weight, measured in clients:
        prepared = prepare_words(
            np.zeros(1, np.float32),
            None,
            form,
            weight=weight,
            metrics=slot_values(measured, slots),
            source=np.random.default_rng(0),
        )
        add_words(total, prepared.words)
    return read_spreads(open_slots(total, form, len(clients)).metrics)


weights = st.floats(0.01, 1.0)
figures = st.fixed_dictionaries({"loss": st.floats(0.0, 20.0), "accuracy": st.floats(0.0, 1.0)})


@given(st.lists(st.tuples(weights, figures), min_size=1, max_size=20))
def test_mean_and_deviation_are_those_between_the_clients(clients: list[Client]) -> None:
    found = spreads_of(clients)

    for name, bound in BOUNDS.items():
        values, by_weight = [measured[name] for _, measured in clients], [weight for weight, _ in clients]
        mean = np.average(values, weights=by_weight)
        deviation = math.sqrt(np.average((values - mean) ** 2, weights=by_weight))
        assert found[name].mean == pytest.approx(mean, abs=1e-5 * bound)
        assert found[name].deviation ** 2 == pytest.approx(deviation**2, abs=1e-5 * bound**2)
        assert found[name].share == pytest.approx(1.0)


@given(st.lists(st.tuples(weights, figures), min_size=1, max_size=5), st.lists(weights, min_size=1, max_size=5))
def test_clients_without_validation_records_change_nothing_but_the_share(
    measuring: list[Client], others: list[float]
) -> None:
    alone, together = spreads_of(measuring), spreads_of([*measuring, *((weight, {}) for weight in others)])

    total = sum(weight for weight, _ in measuring)
    for name, spread in alone.items():
        assert together[name].mean == pytest.approx(spread.mean, abs=1e-4 * BOUNDS[name])
        assert together[name].deviation ** 2 == pytest.approx(spread.deviation**2, abs=1e-4 * BOUNDS[name] ** 2)
        assert together[name].share == pytest.approx(total / (total + sum(others)), abs=1e-4)


def test_what_nobody_could_measure_is_not_reported() -> None:
    assert spreads_of([(1.0, {}), (0.5, {})]) == {}
    assert set(spreads_of([(1.0, {"loss": 1.0, "accuracy": math.nan}), (0.5, {"loss": 2.0})])) == {"loss"}


@pytest.mark.parametrize("members", [1, 5, 10, 50])
@pytest.mark.parametrize(("least", "step"), [(0.05, 0.03), (2.3, 0.001), (19.0, 0.01)])
def test_sixteen_bits_tell_losses_apart_that_are_small_or_nearly_equal(least: float, step: float, members: int) -> None:
    # In a single word up to 20² the square would have steps of 0.1, and a deviation of 0.03 about 2.3 was reported as
    # anything from 0 to 0.1.
    losses = [least + step * index for index in range(members)]
    weights = [0.17 + 0.4 * index / members for index in range(members)]
    clients = [(weight, {"loss": loss, "accuracy": 0.9}) for weight, loss in zip(weights, losses, strict=True)]
    spread = spreads_of(clients, bits=16)["loss"]

    mean = np.average(losses, weights=weights)
    assert spread.mean == pytest.approx(mean, rel=1e-3)
    assert spread.deviation**2 == pytest.approx(np.average((losses - mean) ** 2, weights=weights), abs=2e-4)
    assert spread.share == 1.0


def test_a_figure_beyond_its_bound_counts_as_the_bound_and_is_counted_once() -> None:
    assert spreads_of([(1.0, {"loss": 99.0})])["loss"].mean == pytest.approx(20.0, rel=1e-4)
    slots = validation_slots(BOUNDS)
    values = slot_values({"loss": 99.0}, slots)
    assert [name for name, value in values.items() if value > slots[name]] == ["validation_loss"]


@pytest.mark.parametrize("bound", [0.5, 1.0, 3.0])
def test_there_is_a_slot_for_all_that_is_written(bound: float) -> None:
    slots = validation_slots({"loss": bound})
    assert slot_values({"loss": bound}, slots).keys() == slots.keys()
    assert slot_values({}, slots) == dict.fromkeys(slots, 0.0)
    assert all(is_validation_slot(name) for name in slots)
    assert slot_values({"loss": 1.0}, {"loss": 20.0}) == {}
