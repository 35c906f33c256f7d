"""Gates let every honest group through, whatever its data and rounding, and stop what no honest group can send."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregator.gates import mean_norm, norm_limit, pass_gates, weight_floor
from coordinator.summing.secure_sum import add_words
from shared.codec.quantize import (
    METRIC_WORDS,
    SumFormat,
    Words,
    l2_norm,
    open_mean,
    open_slots,
    signed_view,
    write_slots,
)
from shared.codec.validation import slot_values, validation_slots
from shared.errors import PlanError, RefusalReason, RemoteProtocolError
from worker.update import prepare_words

RECORDS_MAX = 200


class FixedSource:
    """Rounding whose every number is the same: 0 rounds down, the largest below 1 rounds up."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self, *, out: np.ndarray) -> None:
        out[:] = self._value


ROUNDINGS = {"down": FixedSource(0.0), "up": FixedSource(1.0 - 2.0**-53), "random": np.random.default_rng(0)}


def form_of(count: int, members: int, clipping_norm: float, bits: int) -> SumFormat:
    return SumFormat(
        count=count,
        bits=bits,  # type: ignore[arg-type]
        members=members,
        clipping_norm=clipping_norm,
        metric_bounds=(("loss", 5.0),),
    )


def honest_words(
    update: np.ndarray, form: SumFormat, records: int, rounding: Any = ROUNDINGS["random"], loss: float = 5.0
) -> Words:
    weight = min(1.0, records / RECORDS_MAX)
    return prepare_words(update, None, form, weight=weight, metrics={"loss": loss}, source=rounding).words


def sum_of(members: list[Words]) -> Words:
    total = np.zeros_like(members[0])
    for words in members:
        add_words(total, words)
    return total


def extreme_update(shape: str, count: int, clipping_norm: float, source: np.random.Generator) -> np.ndarray:
    match shape:
        case "one-hot":
            values = np.zeros(count)
            values[int(source.integers(count))] = 1.0
        case "flat":
            values = np.ones(count)
        case "dust":  # all above an integer, so that rounding up errs by nearly a step everywhere
            values = np.full(count, 1e-7)
        case "zero":
            values = np.zeros(count)
        case _:
            values = source.standard_normal(count) * 10.0
    return (values * 3.0 * clipping_norm * source.choice([-1.0, 1.0])).astype(np.float32)


@settings(max_examples=300, derandomize=True)
@given(
    st.integers(1, 400),
    st.lists(st.integers(1, 2 * RECORDS_MAX), min_size=1, max_size=7),
    st.floats(1e-6, 1e6),
    st.sampled_from([16, 32]),
    st.lists(st.sampled_from(["one-hot", "flat", "dust", "zero", "random"]), min_size=1, max_size=3),
    st.sampled_from(sorted(ROUNDINGS)),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_no_honest_group_is_ever_stopped(
    count: int, records: list[int], norm: float, bits: int, shapes: list[str], rounding: str, lost: int, seed: int
) -> None:
    source = np.random.default_rng(seed)
    form = form_of(count, len(records) + lost, norm, bits)
    members = [
        honest_words(
            extreme_update(shapes[i % len(shapes)], count, norm, np.random.default_rng(seed)),
            form,
            one,
            ROUNDINGS[rounding],
        )
        for i, one in enumerate(records)
    ]
    source.shuffle(members)

    slots = pass_gates(sum_of(members), form, len(records), RECORDS_MAX)

    assert slots == open_slots(sum_of(members), form, len(records))


def test_rounding_that_conspires_comes_close_to_the_limit_and_not_above() -> None:
    # All of a light member's values lie just above an integer and all are rounded up: the worst case of the bound.
    count = 10_000
    form = form_of(count, 1, 1.0, 16)
    words = honest_words(np.full(count, 1e-9, dtype=np.float32), form, 1, ROUNDINGS["up"])

    slots = pass_gates(words, form, 1, RECORDS_MAX)

    limit = norm_limit(form, 1, slots.weight)
    assert 0.35 * limit < mean_norm(words, form, slots.weight) < limit
    assert mean_norm(words, form, slots.weight) > 0.98 * (limit - 1.02)


def test_a_light_group_has_no_metric_beyond_its_bound() -> None:
    # Every metric is multiplied by its client's weight, so a light group cannot have measured as much as a heavy one.
    form = form_of(4, 4, 1.0, 32)
    members = [honest_words(np.zeros(4, dtype=np.float32), form, 1) for _ in range(4)]
    assert pass_gates(sum_of(members), form, 4, RECORDS_MAX).metrics["loss"] == pytest.approx(5.0, rel=1e-4)

    signed_view(members[0])[form.count + 1] *= 3
    with pytest.raises(RemoteProtocolError) as refusal:
        pass_gates(sum_of(members), form, 4, RECORDS_MAX)
    assert refusal.value.reason is RefusalReason.OUT_OF_RANGE


VALIDATION = validation_slots({"loss": 5.0})


def validated(loss: float | None, form: SumFormat, records: int) -> Words:
    figures = slot_values({} if loss is None else {"loss": loss}, VALIDATION)
    weight = min(1.0, records / RECORDS_MAX)
    return prepare_words(
        np.zeros(4, dtype=np.float32), None, form, weight=weight, metrics=figures, source=ROUNDINGS["random"]
    ).words


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("losses", [(5.0, -5.0, 5.0), (None, None, None), (None, 5.0, None), (-5.0, -5.0, -5.0)])
@pytest.mark.parametrize("records", [(1, 1, 1), (1, 77, 200), (13, 1, 1)])
def test_honest_figures_pass_whoever_measured(
    losses: tuple[float | None, ...], records: tuple[int, ...], bits: int
) -> None:
    form = replace(form_of(4, 3, 1.0, bits), metric_bounds=tuple(sorted(VALIDATION.items())))
    members = [validated(loss, form, count) for loss, count in zip(losses, records, strict=True)]

    assert pass_gates(sum_of(members), form, 3, RECORDS_MAX)


@pytest.mark.parametrize("members", [-1.5, -0.2])
def test_figures_of_fewer_members_than_measured_are_stopped(members: float) -> None:
    # The mean is divided by the share of those who measured: a share that is taken away makes it as large as one likes.
    form = replace(form_of(4, 3, 1.0, 32), metric_bounds=tuple(sorted(VALIDATION.items())))
    honest = [validated(5.0, form, 200), validated(None, form, 200), validated(None, form, 200)]
    total = sum_of(honest)
    place = form.count + 1 + METRIC_WORDS * [name for name, _ in form.metric_bounds].index("validation_loss_share")
    signed_view(total)[place] += int(members * form.weight_scale)

    with pytest.raises(RemoteProtocolError) as refusal:
        pass_gates(total, form, 3, RECORDS_MAX)
    assert refusal.value.reason is RefusalReason.OUT_OF_RANGE


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("square", [-1.0, -0.01, 0.0, 0.6, 1.0])
def test_squares_that_no_figures_have_are_stopped(square: float, bits: int) -> None:
    # One group could make the deviation between all clients nothing, or larger than the bound.
    form = replace(form_of(4, 2, 1.0, bits), metric_bounds=tuple(sorted(VALIDATION.items())))
    total = sum_of([validated(2.5, form, 200), validated(None, form, 200)])
    assert pass_gates(total, form, 2, RECORDS_MAX).metrics["validation_loss_square"] == pytest.approx(2.5**2 / 2)

    place = form.count + 1 + METRIC_WORDS * [name for name, _ in form.metric_bounds].index("validation_loss_square")
    signed_view(total)[place] = int(square * signed_view(total)[form.count])
    signed_view(total)[place + 1] = 0
    with pytest.raises(RemoteProtocolError) as refusal:
        pass_gates(total, form, 2, RECORDS_MAX)
    assert refusal.value.reason is RefusalReason.OUT_OF_RANGE


def attacked(norm: float, form: SumFormat, weight: float, source: np.random.Generator) -> Words:
    """Words of a group of one whose mean has this norm, to rounding."""
    words: Words = np.empty(form.length, dtype=form.word_type)
    write_slots(words, form, weight, {"loss": 0.0}, True)
    exact = open_slots(words, form, 1).weight
    values = source.standard_normal(form.count)
    values *= norm * form.scale * exact / math.sqrt(float(values @ values))
    signed_view(words)[: form.count] = np.trunc(np.abs(values) + 1.0 - 1e-12) * np.sign(values)  # never shorter
    return words


@settings(max_examples=100, derandomize=True)
@given(
    st.integers(4, 1000),
    st.floats(1e-3, 1e3),
    st.sampled_from([16, 32]),
    st.floats(1 / RECORDS_MAX, 1.0),
    st.integers(0, 2**32 - 1),
)
def test_a_tenth_above_the_limit_is_always_stopped(
    count: int, clipping_norm: float, bits: int, weight: float, seed: int
) -> None:
    form = form_of(count, 1, clipping_norm, bits)
    words = np.zeros(form.length, dtype=form.word_type)
    write_slots(words, form, weight, {"loss": 0.0}, True)
    limit = norm_limit(form, 1, open_slots(words, form, 1).weight)

    words = attacked(1.1 * limit, form, weight, np.random.default_rng(seed))

    with pytest.raises(RemoteProtocolError, match="norm") as refused:
        pass_gates(words, form, 1, RECORDS_MAX)
    assert refused.value.reason is RefusalReason.OUT_OF_RANGE


@pytest.mark.parametrize("members", [1, 3, 7])
def test_nobody_can_be_lighter_than_one_record(members: int) -> None:
    form = form_of(10, members, 1.0, 16)
    update = np.zeros(10, dtype=np.float32)
    total = sum_of([honest_words(update, form, 1, loss=0.0) for _ in range(members)])
    pass_gates(total, form, members, RECORDS_MAX)

    signed_view(total)[form.count] -= 1

    with pytest.raises(RemoteProtocolError, match="weigh"):
        pass_gates(total, form, members, RECORDS_MAX)
    open_slots(total, form, members)  # it was within the range of the slot


def test_a_claimed_weight_of_next_to_nothing_does_not_open_the_norm_gate() -> None:
    form = form_of(1000, 1, 1.0, 16)
    words = np.zeros(form.length, dtype=form.word_type)
    write_slots(words, form, 1e-9, {"loss": 0.0}, True)
    signed_view(words)[: form.count] = 1  # as one honest client of this weight might round: a mean 32 C long

    assert mean_norm(words, form, 1 / form.weight_scale) == pytest.approx(math.sqrt(1000))
    with pytest.raises(RemoteProtocolError, match="weigh"):
        pass_gates(words, form, 1, RECORDS_MAX)


@pytest.mark.parametrize("records_max", [1, 7, 200, 40_000, 10**9])
def test_the_floor_is_what_one_record_weighs(records_max: int) -> None:
    form = form_of(1, 3, 1.0, 16)
    words = np.zeros(form.length, dtype=form.word_type)
    write_slots(words, form, min(1.0, 1 / records_max), {"loss": 0.0}, True)
    word = int(words[form.count])

    floor = weight_floor(form, 1, records_max) * form.weight_scale

    assert word - 1 < floor < word


def test_words_of_another_shape_or_type_are_stopped() -> None:
    form = form_of(10, 1, 1.0, 16)
    words = honest_words(np.zeros(10, dtype=np.float32), form, 5)

    for other in (words[:-1], words.astype(np.uint32), words.reshape(1, -1)):
        with pytest.raises(RemoteProtocolError) as refused:
            pass_gates(other, form, 1, RECORDS_MAX)
        assert refused.value.reason is RefusalReason.WRONG_SIZE


def test_slots_out_of_range_are_stopped() -> None:
    form = form_of(4, 2, 1.0, 16)
    words = sum_of([honest_words(np.zeros(4, dtype=np.float32), form, 50)] * 2)

    for slot, value in (
        (form.count, 0),
        (form.count, -1),
        (form.count + 1, -(2**15)),
        (-1, 3),
        (-1, -1),
    ):
        spoilt = words.copy()
        signed_view(spoilt)[slot] = value
        with pytest.raises(RemoteProtocolError) as refused:
            pass_gates(spoilt, form, 2, RECORDS_MAX)
        assert refused.value.reason is RefusalReason.OUT_OF_RANGE


@settings(max_examples=50, derandomize=True)
@given(st.integers(1, 100), st.integers(0, 2**32 - 1), st.sampled_from([16, 32]))
def test_the_measured_norm_is_the_norm_of_the_mean(count: int, seed: int, bits: int) -> None:
    form = form_of(count, 2, 1.5, bits)
    words = np.random.default_rng(seed).integers(0, 2**bits, form.length, dtype=form.word_type)

    assert mean_norm(words, form, 0.7) == pytest.approx(l2_norm(open_mean(words, form, 0.7)), rel=1e-6)


def test_a_format_that_wraps_is_refused_before_any_gate() -> None:
    with pytest.raises(PlanError):
        form_of(4, 20_000, 1.0, 16)


NOISY_VALUES, NOISE = 1202, 0.0633
"""The preset of digits: k values with this noise each, and a signal of norm 0.5 at most."""


def noisy_mean(members: int, form: SumFormat, signal: float, source: np.random.Generator) -> Words:
    """The sum of noised updates that all point the same way, clipped as clients clip them."""
    direction = source.standard_normal(NOISY_VALUES)
    direction *= signal / np.linalg.norm(direction)
    updates = [direction + NOISE * source.standard_normal(NOISY_VALUES) for _ in range(members)]
    metrics = {"loss": 0.0}
    return sum_of(
        [
            prepare_words(update.astype(np.float32), None, form, weight=1.0, metrics=metrics, source=source).words
            for update in updates
        ]
    )


@pytest.mark.parametrize("members", [1, 3, 4, 7])
@pytest.mark.parametrize("signal", [0.0, 0.5])
def test_means_of_noised_updates_pass(members: int, signal: float) -> None:
    source = np.random.default_rng(members)
    clipping_norm = 0.5 + NOISE * (math.sqrt(NOISY_VALUES) + 2.5)
    form = form_of(NOISY_VALUES, 7, clipping_norm, 16)
    for _ in range(100):
        pass_gates(noisy_mean(members, form, signal, source), form, members, 1, NOISE)


@pytest.mark.parametrize("members", [3, 4, 7])
def test_an_attack_of_the_length_of_one_noised_update_does_not(members: int) -> None:
    """Each update may be as long as its noise makes it, but the noise of a mean is shorter, and a lie is not."""
    source = np.random.default_rng(members)
    clipping_norm = 0.5 + NOISE * (math.sqrt(NOISY_VALUES) + 2.5)
    form = form_of(NOISY_VALUES, 7, clipping_norm, 16)
    lie = noisy_mean(members, form, 0.0, source)
    signed_view(lie)[:NOISY_VALUES] = np.round(form.scale * members * clipping_norm / math.sqrt(NOISY_VALUES))
    slots = pass_gates(lie, form, members, 1)
    assert mean_norm(lie, form, slots.weight) == pytest.approx(clipping_norm, rel=0.01)
    with pytest.raises(RemoteProtocolError, match="above the limit"):
        pass_gates(lie, form, members, 1, NOISE)
