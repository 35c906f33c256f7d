"""Noise for a target: enough, not more than needed, and the figures that the presets rest on."""

from __future__ import annotations

import math

import pytest

from shared.errors import LocalProtocolError
from shared.privacy.accountant import epsilon_of
from shared.privacy.calibration import noise_multiplier_for, skellam_variance_for
from shared.privacy.charges import ClientCharge, RecordCharge

DELTA = 1e-4


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 60), (0.1, 200)])
def test_the_noise_multiplier_is_enough_and_hardly_more(epsilon: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier_for(epsilon, DELTA, sampling_rate=rate, steps=steps)

    def cost(noise: float) -> float:
        return epsilon_of([RecordCharge(noise_multiplier=noise, sampling_rate=rate, steps=steps)], DELTA)

    assert cost(sigma) <= epsilon < cost(0.999 * sigma)


def test_golden_noise_multipliers() -> None:
    # dp-accounting 0.6.0: RDP of the full batch gives these; integer orders alone 4.55 and 8.04.
    assert noise_multiplier_for(8.0, DELTA, sampling_rate=1.0, steps=60) == pytest.approx(4.506, abs=2e-3)
    assert noise_multiplier_for(4.0, DELTA, sampling_rate=1.0, steps=60) == pytest.approx(8.035, abs=2e-3)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize(("l1", "l2"), [(1.0, 1.0), (3e3, 1e2), (7e9, 1e8)])
def test_the_skellam_variance_is_enough_and_hardly_more(epsilon: float, l1: float, l2: float) -> None:
    variance = skellam_variance_for(epsilon, DELTA, rounds=30, l1=l1, l2=l2)

    def cost(mu: float) -> float:
        return epsilon_of([ClientCharge(variance=mu, variance_alone=mu, l1=l1, l2=l2)] * 30, DELTA)

    assert cost(variance) <= epsilon < cost(0.999 * variance)


def test_fine_integers_need_the_gaussian_noise() -> None:
    # With ever finer steps Skellam noise becomes Gaussian noise of the same variance.
    sigma = noise_multiplier_for(8.0, DELTA, sampling_rate=1.0, steps=30)
    l2 = 1e8
    mu = skellam_variance_for(8.0, DELTA, rounds=30, l1=l2 * 70.0, l2=l2)

    assert math.sqrt(mu) / l2 == pytest.approx(sigma, rel=0.02), "integer orders alone cost about 1 %"


def test_targets_that_mean_nothing_are_refused() -> None:
    for epsilon in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(LocalProtocolError):
            noise_multiplier_for(epsilon, DELTA, sampling_rate=1.0, steps=60)
    with pytest.raises(LocalProtocolError):
        noise_multiplier_for(8.0, DELTA, sampling_rate=1.0, steps=0)
    with pytest.raises(LocalProtocolError):
        noise_multiplier_for(8.0, 0.0, sampling_rate=1.0, steps=60)
    with pytest.raises(LocalProtocolError):
        skellam_variance_for(8.0, DELTA, rounds=30, l1=0.0, l2=1.0)
