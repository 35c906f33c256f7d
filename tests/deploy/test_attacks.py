"""Each attack is what its name says, and reaches the coordinator as it was meant."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from coordinator.aggregator.gates import mean_norm, norm_limit, pass_gates
from deploy.demo.attacks import (
    ATTACKS,
    DATA_ATTACKS,
    MODEL_ATTACKS,
    RANGE_SHARE,
    FlippedLabels,
    Knowledge,
    alie_deviations,
    encode_unclipped,
    forge,
    largest_norm,
)
from shared.codec.quantize import SumFormat, l2_norm, open_mean, open_slots, signed_view
from shared.errors import RemoteProtocolError, SettingsError
from shared.workloads.batches import batches

DIMENSION = 40
COORDINATES = np.arange(0, DIMENSION, 2)
CLIPPING_NORM = 2.0


def known_round(honest: int = 10, attackers: int = 2, length: float = 1.0) -> tuple[np.ndarray, Knowledge]:
    """An attacker's own update, and the round that it knows; the first honest update is longer than C."""
    source = np.random.default_rng(3)
    updates = (source.standard_normal((honest, DIMENSION)) * 0.1 + 0.05).astype(np.float32) * np.float32(length)
    updates[0] *= 100.0
    own = source.standard_normal(DIMENSION).astype(np.float32)
    known = Knowledge(
        honest=list(updates),
        coordinates=COORDINATES,
        attackers=attackers,
        clipping_norm=CLIPPING_NORM,
        members=1,
        norm_max=2.1,
    )
    return own, known


def forged(attack: str, own: np.ndarray, known: Knowledge) -> np.ndarray:
    values = forge(attack, own, known, np.random.default_rng(0))
    assert values.shape == (len(COORDINATES),)
    assert values.dtype == np.float32
    return values


def test_attackers_see_what_honest_clients_send() -> None:
    _, known = known_round()

    assert l2_norm(known.sent[0]) == pytest.approx(CLIPPING_NORM)
    assert known.sent[1].tolist() == known.honest[1][COORDINATES].tolist()


def test_sign_flip_is_ten_times_the_own_update_turned_around_and_not_clipped() -> None:
    own, known = known_round()

    values = forged("sign-flip", own, known)

    assert values == pytest.approx(-10.0 * own[COORDINATES])
    assert l2_norm(values) > 10 * CLIPPING_NORM


def test_noise_is_long_and_has_no_direction() -> None:
    _, known = known_round()
    wide = Knowledge(
        honest=[np.zeros(10_000, dtype=np.float32)],
        coordinates=None,
        attackers=1,
        clipping_norm=CLIPPING_NORM,
        members=1,
        norm_max=2.1,
    )

    values = forge("noise", np.zeros(10_000, dtype=np.float32), wide, np.random.default_rng(0))

    assert l2_norm(values) == pytest.approx(10 * CLIPPING_NORM, rel=0.05)
    assert abs(float(values.mean())) < 4 * float(values.std()) / 100
    assert forged("noise", np.zeros(DIMENSION, dtype=np.float32), known).tolist() != [0.0] * len(COORDINATES)


def test_max_norm_points_against_the_mean_at_full_length() -> None:
    own, known = known_round()
    mean = known.sent.astype(np.float64).mean(axis=0)

    values = forged("max-norm", own, known)

    assert values == pytest.approx(-mean / np.linalg.norm(mean) * 2.1, rel=1e-5)


def test_alie_is_the_mean_less_a_few_deviations_within_the_gate() -> None:
    own, known = known_round(length=0.01)
    sent = known.sent.astype(np.float64)
    exact = sent.mean(axis=0) - 1.5 * sent.std(axis=0)

    assert forged("alie", own, known) == pytest.approx(exact * min(1.0, 2.1 / np.linalg.norm(exact)), rel=1e-4)
    assert l2_norm(forged("alie", own, replace(known, norm_max=0.1))) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("honest", "attackers", "expected"),
    # n = 50, m = 24: s = 26 - 24 = 2 and (50 - 24 - 2) / (50 - 24) = 24/26, whose quantile is 1.43 (Baruch et al.,
    # section 3.3, give the same steps); n = 50, m = 25 has s = 1: 24/25, 1.75. Few attackers: the least.
    [(26, 24, 1.5), (25, 25, 1.7507), (22, 2, 1.5), (5, 20, 1.5)],
)
def test_deviations_of_alie(honest: int, attackers: int, expected: float) -> None:
    assert alie_deviations(honest, attackers) == pytest.approx(expected, abs=1e-4)


def test_inner_product_manipulation_turns_the_mean_around() -> None:
    own, known = known_round()

    assert forged("inner-product", own, known) == pytest.approx(-known.sent.astype(np.float64).mean(axis=0), rel=1e-4)


@pytest.mark.parametrize("attack", sorted(MODEL_ATTACKS))
def test_nothing_known_is_overwritten_and_zeros_do_no_harm(attack: str) -> None:
    own, known = known_round()
    before = [update.copy() for update in known.honest]
    zeros = Knowledge(
        honest=[np.zeros(DIMENSION, dtype=np.float32)] * 3,
        coordinates=None,
        attackers=1,
        clipping_norm=1.0,
        members=1,
        norm_max=1.0,
    )

    forged(attack, own, known)

    assert all((left == right).all() for left, right in zip(before, known.honest, strict=True))
    assert np.isfinite(forge(attack, np.zeros(DIMENSION, dtype=np.float32), zeros, np.random.default_rng(0))).all()


def test_an_attack_that_is_not_one_is_refused() -> None:
    own, known = known_round()

    assert set(ATTACKS) == {"sign-flip", "noise", "max-norm", "alie", "inner-product", "fill-range", "label-flip"}
    for name in ("sign_flip", *DATA_ATTACKS):
        with pytest.raises(SettingsError, match="sign-flip"):
            forge(name, own, known, np.random.default_rng(0))


def test_flipped_labels_keep_the_features() -> None:
    features, labels = torch.arange(20.0).reshape(10, 2), torch.arange(10)

    flipped = FlippedLabels(TensorDataset(features, labels), classes=10)
    seen = list(batches(flipped, 4, torch.Generator().manual_seed(0)))

    assert len(flipped) == 10
    assert torch.equal(torch.cat([one for one, _ in seen])[:, 0] / 2, 9.0 - torch.cat([label for _, label in seen]))


def form_of(count: int, bits: int = 16, members: int = 1, clipping_norm: float = CLIPPING_NORM) -> SumFormat:
    return SumFormat(
        count=count,
        bits=bits,  # type: ignore[arg-type]
        members=members,
        clipping_norm=clipping_norm,
        metric_bounds=(("loss", 3.0),),
    )


def test_words_carry_an_unclipped_vector() -> None:
    form = form_of(3)
    values = np.array([1.5, -1.5, 0.5], dtype=np.float32)  # longer than C, no coordinate beyond it

    words = encode_unclipped(values, form, weight=0.5, metrics={"loss": 99.0})

    slots = open_slots(words, form, 1)
    assert open_mean(words, form, slots.weight) == pytest.approx(values, abs=1e-3)
    assert slots.weight == pytest.approx(0.5, abs=1e-4)
    assert slots.metrics["loss"] == pytest.approx(3.0, abs=1e-3)
    assert slots.unclipped_share == 0.0
    with pytest.raises(RemoteProtocolError, match="norm"):
        pass_gates(words, form, 1, 100)


@pytest.mark.parametrize("members", [1, 4])
def test_words_saturate_where_they_would_wrap(members: int) -> None:
    form = form_of(4, members=members)
    values = np.array([1e30, -1e30, 3.0, 0.0], dtype=np.float32)

    signed = signed_view(encode_unclipped(values, form, weight=1.0, metrics={"loss": 0.0}))[:4]

    reach = int(RANGE_SHARE * form.levels)
    assert signed.tolist() == [reach, -reach, min(reach, round(3.0 * form.scale)), 0]


@settings(max_examples=150, derandomize=True)
@given(
    st.integers(1, 2000),
    st.sampled_from([16, 32]),
    st.floats(0.005, 1.0),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32 - 1),
)
def test_the_largest_norm_passes_the_gate_with_little_to_spare(
    count: int, bits: int, weight: float, clipping_norm: float, seed: int
) -> None:
    form = form_of(count, bits, clipping_norm=clipping_norm)
    # Spread over many coordinates or, if there are few, within what one integer holds.
    values = np.random.default_rng(seed).uniform(0.5, 1.0, count).astype(np.float32)
    values *= np.float32(largest_norm(form, weight) / l2_norm(values))

    words = encode_unclipped(values, form, weight=weight, metrics={"loss": 0.0})

    slots = pass_gates(words, form, 1, 200)
    steps = 1.0 / (form.scale * slots.weight)
    if count > 9:
        limit = norm_limit(form, 1, slots.weight)
        assert mean_norm(words, form, slots.weight) > (1.0 - 2e-6) * limit - 1.1 * math.sqrt(count) * steps
