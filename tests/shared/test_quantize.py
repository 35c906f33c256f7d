"""Sums of words mean what the members sent, and never wrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.summing.secure_sum import add_words
from shared.codec.quantize import (
    Bits,
    SumFormat,
    Words,
    choose_bits,
    clip_factor,
    l2_norm,
    open_mean,
    open_slots,
    quantize,
    read_words,
    signed_view,
    write_slots,
)
from shared.errors import LocalProtocolError, PlanError, RefusalReason, RemoteProtocolError

BITS = st.sampled_from([16, 32])


class Fixed:
    """A source of rounding noise that is always the same number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, *, out: np.ndarray) -> None:
        out[:] = self.value


def form_of(count: int, *, bits: Bits = 32, members: int = 1, clipping_norm: float = 1.0, **bounds: float) -> SumFormat:
    return SumFormat(
        count=count, bits=bits, members=members, clipping_norm=clipping_norm, metric_bounds=tuple(bounds.items())
    )


def encode(
    values: np.ndarray, form: SumFormat, source: object, *, weight: float = 1.0, metrics: dict[str, float] | None = None
) -> Words:
    words: Words = np.empty(form.length, dtype=form.word_type)
    norm = l2_norm(values)
    quantize(values, weight * clip_factor(norm, form.clipping_norm), form, source, words)  # type: ignore[arg-type]
    write_slots(words, form, weight, metrics or {}, norm <= form.clipping_norm)
    return words


@given(BITS, st.integers(1, 40), st.floats(1e-6, 1e6), st.sampled_from([-1.0, 1.0]))
def test_the_largest_possible_sum_does_not_wrap(bits: Bits, members: int, clipping_norm: float, sign: float) -> None:
    form = form_of(1, bits=bits, members=members, clipping_norm=clipping_norm, loss=clipping_norm)
    values = np.array([sign * clipping_norm * 2.0], dtype=np.float32)
    total = np.zeros(form.length, dtype=form.word_type)

    for _ in range(members):
        noise = Fixed(np.nextafter(1.0, 0.0) if sign > 0 else 0.0)
        add_words(total, encode(values, form, noise, metrics={"loss": sign * clipping_norm}))

    slots = open_slots(total, form, members)
    step = members / form.levels
    assert slots.weight == pytest.approx(members, rel=step)
    assert slots.metrics["loss"] == pytest.approx(sign * clipping_norm, rel=2 * step)
    assert open_mean(total, form, slots.weight)[0] == pytest.approx(sign * clipping_norm, rel=2 * step + 1e-6)


@settings(max_examples=50)
@given(BITS, st.integers(1, 9), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_mean_of_a_group_is_within_the_rounding_error(bits: Bits, members: int, count: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    form = form_of(count, bits=bits, members=members, clipping_norm=2.0, loss=10.0)
    total = np.zeros(form.length, dtype=form.word_type)
    weights, updates, losses = [], [], []
    for _ in range(members):
        update = source.standard_normal(count).astype(np.float32)
        update *= np.float32(1.9 / max(1.9, l2_norm(update)))
        weights.append(float(source.uniform(0.2, 1.0)))
        losses.append(float(source.uniform(-10, 10)))
        updates.append(update)
        add_words(total, encode(update, form, source, weight=weights[-1], metrics={"loss": losses[-1]}))

    slots = open_slots(total, form, members)
    mean = open_mean(total, form, slots.weight)

    step = members / (form.levels * 0.2)
    expected = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
    assert slots.weight == pytest.approx(sum(weights), abs=step * members)
    assert slots.metrics["loss"] == pytest.approx(np.average(losses, weights=weights), abs=20 * step)
    assert slots.unclipped_share == 1.0
    assert np.abs(mean - expected).max() <= 4 * step + 1e-6


def test_rounding_is_unbiased() -> None:
    # 20,000 roundings of a value a quarter above an integer: deviation of the mean sqrt(3)/4/sqrt(20000) = 0.0031
    # steps; five of them are exceeded with probability 6e-7. Rounding to nearest would be off by 0.25.
    form = form_of(20_000, bits=16, clipping_norm=1000.0)
    step = 1.0 / form.scale
    values = np.full(form.count, 3.25 * step, dtype=np.float32)

    words = encode(values, form, np.random.default_rng(1))

    got = signed_view(words)[: form.count]
    assert set(np.unique(got)) == {3, 4}
    assert got.mean() == pytest.approx(3.25, abs=5 * 0.0031)


@given(BITS, st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_what_is_opened_lies_in_the_clipping_ball(bits: Bits, raw: list[float], clipping_norm: float) -> None:
    values = np.array(raw, dtype=np.float32)
    form = form_of(len(raw), bits=bits, clipping_norm=clipping_norm)

    words = encode(values, form, Fixed(0.5))
    mean = open_mean(words, form, 1.0)

    rounding = math.sqrt(len(raw)) * 0.5 / form.scale
    assert l2_norm(mean) <= clipping_norm * (1 + 1e-6) + rounding
    assert open_slots(words, form, 1).unclipped_share == float(l2_norm(values) <= clipping_norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.5])
def test_what_clipping_should_have_prevented_stops_the_process(bad: float) -> None:
    form = form_of(3)
    values = np.array([0.0, bad, 0.0], dtype=np.float32)

    with pytest.raises(LocalProtocolError, match="clipping norm"):
        quantize(values, 1.0, form, Fixed(0.5), np.empty(form.length, dtype=form.word_type))  # type: ignore[arg-type]


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=50))
def test_norms_agree_with_exact_sums(raw: list[float]) -> None:
    expected = math.sqrt(math.fsum(float(np.float32(value)) ** 2 for value in raw))

    assert l2_norm(np.array(raw, dtype=np.float32)) == pytest.approx(expected, rel=1e-12)


def test_norms_of_vectors_longer_than_a_block() -> None:
    values = np.random.default_rng(0).standard_normal(100_001).astype(np.float32)

    assert l2_norm(values) == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-12)
    values[-1] = np.nan
    assert math.isnan(l2_norm(values))


def test_vectors_longer_than_a_block_keep_their_order() -> None:
    form = form_of(70_000, clipping_norm=1e4)
    values = np.linspace(-1.0, 1.0, form.count, dtype=np.float32)

    words = encode(values, form, np.random.default_rng(0))
    out = np.empty(form.count, dtype=np.float32)

    assert open_mean(words, form, 1.0, out) is out
    assert np.abs(out - values).max() <= 2.0 / form.scale + 1e-7


def test_a_tiny_weight_does_not_vanish() -> None:
    form = form_of(1, bits=16)

    words = encode(np.zeros(1, dtype=np.float32), form, Fixed(0.0), weight=1e-9)

    assert open_slots(words, form, 1).weight > 0.0


def test_bits_follow_the_rounding_noise() -> None:
    assert choose_bits(961, 1) == 16
    assert choose_bits(100_000, 1) == 16
    assert choose_bits(100_000, 13) == 32
    assert choose_bits(25_000_000, 1) == 32
    assert choose_bits(10, 40_000) == 32


def test_a_sum_that_could_wrap_is_refused() -> None:
    form_of(1, bits=16, members=16_383)
    with pytest.raises(PlanError, match="bits"):
        form_of(1, bits=16, members=16_384)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"clipping_norm": 0.0}, "clipping_norm"),
        ({"clipping_norm": math.inf}, "clipping_norm"),
        ({"metric_bounds": (("loss", -1.0),)}, "loss"),
        ({"bits": 8}, "bits"),
        ({"members": 0}, "members"),
    ],
)
def test_a_format_that_means_nothing_is_refused(fields: dict[str, object], named: str) -> None:
    sound: dict[str, object] = {"count": 1, "bits": 16, "members": 1, "clipping_norm": 1.0}

    with pytest.raises(PlanError, match=named):
        SumFormat(**{**sound, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 3, 11, 13, 16])
def test_bytes_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        read_words(bytes(size), form_of(1))
    assert refusal.value.reason is RefusalReason.WRONG_SIZE


def test_words_are_read_in_place_and_as_little_endian() -> None:
    buffer = bytearray(b"\x01\x00\x00\x00\xff\xff\xff\xff\x01\x00\x00\x00")

    words = read_words(memoryview(buffer), form_of(1))
    buffer[0] = 2

    assert signed_view(words).tolist() == [2, -1, 1]


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        ("weight", 0),
        ("weight", -5),
        ("weight", 2**31 - 1),
        ("loss", 2**31 - 1),
        ("loss", -(2**31)),
        ("low word", 2**31 - 1),
        ("bit", 3),
        ("bit", -1),
    ],
)
def test_slots_beyond_what_honest_members_reach_are_refused(slot: str, value: int) -> None:
    form = form_of(2, members=3, loss=4.0)
    words = np.zeros(form.length, dtype=form.word_type)
    for _ in range(2):
        add_words(words, encode(np.zeros(2, dtype=np.float32), form, Fixed(0.0), metrics={"loss": 4.0}))
    assert open_slots(words, form, 2).metrics == {"loss": pytest.approx(4.0)}

    signed_view(words)[{"weight": 2, "loss": 3, "low word": 4, "bit": 5}[slot]] = value

    with pytest.raises(RemoteProtocolError) as refusal:
        open_slots(words, form, 2)
    assert refusal.value.reason is RefusalReason.OUT_OF_RANGE


def test_words_add_modulo_their_width_in_any_order() -> None:
    source = np.random.default_rng(0)
    parts = [source.integers(0, 2**16, 50, dtype=np.uint16) for _ in range(5)]
    expected = (np.sum([part.astype(np.int64) for part in parts], axis=0) % 2**16).astype(np.uint16)

    for order in (parts, parts[::-1]):
        total = np.zeros(50, dtype=np.uint16)
        for part in order:
            add_words(total, part)
        assert np.array_equal(total, expected)

    with pytest.raises(LocalProtocolError):
        add_words(np.zeros(50, dtype=np.uint32), parts[0])
    with pytest.raises(LocalProtocolError):
        add_words(np.zeros(49, dtype=np.uint16), parts[0])
