"""The Skellam bound beside the exact divergence, and the sampler beside its law."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from shared.errors import LocalProtocolError
from shared.privacy.entropy import SecureSource
from shared.privacy.poisson import log_probabilities, poisson_offsets
from shared.privacy.renyi import ORDERS
from shared.privacy.skellam import share_variance, skellam, skellam_curve

FALSE_ALARM = 1e-4
"""Chance of a right sampler to fail one of these tests with a random key. The key is fixed, so none fails by chance."""


def log_pmf(mu: float, largest: int) -> npt.NDArray[np.float64]:
    """log P(|X| = 0 .. largest) for X ~ Skellam of variance mu, from exp(-mu) I_k(mu) by downward recurrence."""
    ratios = np.zeros(largest + 1)
    ratio = 0.0
    for k in range(largest + 60 + int(mu), 0, -1):
        ratio = 1.0 / (2.0 * k / mu + ratio)
        if k <= largest:
            ratios[k] = math.log(ratio)
    return math.log(special.ive(0, mu)) + np.cumsum(ratios)


def exact_divergence(mu: float, shift: int, order: int) -> float:
    """Renyi divergence of Skellam noise around `shift` from the same around 0, by summing over the integers."""
    reach = int(15.0 * math.sqrt(mu)) + (order + 2) * shift + 60
    logs = log_pmf(mu, reach + shift)
    points = np.arange(-reach, reach + 1)
    terms = order * logs[np.abs(points - shift)] + (1 - order) * logs[np.abs(points)]
    return float(special.logsumexp(terms)) / (order - 1)


def bound(mu: float, l1: float, l2: float, order: int) -> float:
    return float(skellam_curve(mu, l1, l2)[np.flatnonzero(order == ORDERS)[0]])


@pytest.mark.parametrize("mu", [1.0, 3.5, 20.0, 150.0, 2000.0])
@pytest.mark.parametrize("order", [2, 3, 5, 16, 64])
def test_the_bound_is_never_below_the_exact_divergence(mu: float, order: int) -> None:
    shifts = {1, 2, int(math.sqrt(mu)), int(mu / 2), int(mu)} - {0}
    for shift in sorted(shift for shift in shifts if shift * order <= 4000 and shift <= mu):
        exact = exact_divergence(mu, shift, order)

        assert bound(mu, shift, shift, order) >= exact
        if order * shift <= mu / 50:
            assert bound(mu, shift, shift, order) <= 1.1 * exact + 1e-12, "and close where noise is ample"


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=12), st.sampled_from([2, 4, 9]), st.floats(25.0, 400.0))
def test_the_bound_holds_for_vectors(shifts: list[int], order: int, mu: float) -> None:
    vector = np.array(shifts, dtype=float)
    exact = math.fsum(exact_divergence(mu, abs(shift), order) for shift in shifts if shift)

    assert bound(mu, float(np.abs(vector).sum()), float(np.linalg.norm(vector)), order) >= exact - 1e-12


def test_where_the_theorem_says_nothing_the_curve_is_infinite() -> None:
    curve = skellam_curve(100.0, 50.0, 10.0)

    assert np.isfinite(curve[np.floor(ORDERS) == ORDERS]).all()
    assert np.isinf(curve[np.floor(ORDERS) != ORDERS]).all()
    assert np.isinf(skellam_curve(9.0, 50.0, 10.0)).all()
    assert (skellam_curve(1.0, 0.0, 0.0) == 0.0).all()


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(0, 39), st.floats(0.0, 1e18))
def test_any_honest_members_of_an_opened_sum_reach_mu(threshold: int, colluders: int, mu: float) -> None:
    if colluders >= threshold:
        with pytest.raises(LocalProtocolError):
            share_variance(mu, threshold, colluders)
        return
    share = share_variance(mu, threshold, colluders)
    for opened in range(threshold, threshold + 3):
        assert (opened - colluders) * share >= mu * (1 - 1e-15)


def test_shares_of_honest_members_add_up_to_the_accounted_noise() -> None:
    source, mu, count = SecureSource(b"s" * 32), 30.0, 60_000
    total = sum(skellam(count, share_variance(mu, 4, 1), source) for _ in range(3))

    assert chi_square(np.asarray(total), mu) > FALSE_ALARM


def chi_square(drawn: npt.NDArray[np.int64], mu: float) -> float:
    """p-value of draws against the Skellam pmf, in cells of at least 20 expected draws."""
    low, high = (int(x) for x in stats.skellam.ppf([1e-9, 1 - 1e-9], mu / 2, mu / 2))
    points = np.arange(low, high + 1)
    pmf = np.exp(log_pmf(mu, max(-low, high))[np.abs(points)])
    cells = np.minimum(np.cumsum(pmf) * drawn.size // 20, drawn.size // 20 - 1).astype(int)
    _, cells = np.unique(cells, return_inverse=True)
    expected = np.bincount(cells, weights=pmf)
    observed = np.bincount(cells[np.clip(drawn, low, high) - low], minlength=len(expected))
    keep = expected * drawn.size >= 20
    keep[np.argmax(expected)] = True
    expected, observed = (np.append(part[keep], part[~keep].sum()) for part in (expected, observed))
    used = expected > 0
    return float(stats.chisquare(observed[used], expected[used] / expected.sum() * drawn.size).pvalue)


@pytest.mark.parametrize("mu", [0.05, 1.0, 8.0, 19.9, 20.1, 75.5, 3000.0])
def test_the_sampler_follows_the_pmf(mu: float) -> None:
    drawn = skellam(200_000, mu, SecureSource(b"k" * 32))

    assert chi_square(drawn, mu) > FALSE_ALARM


def test_the_chi_square_test_can_fail() -> None:
    drawn = skellam(200_000, 75.5, SecureSource(b"k" * 32))

    assert chi_square(drawn, 77.5) < FALSE_ALARM
    assert chi_square(drawn + (drawn > 20), 75.5) < FALSE_ALARM


@pytest.mark.parametrize("mu", [1e6, 1e12, 1e17])
def test_for_huge_variances_the_sampler_follows_the_normal_limit(mu: float) -> None:
    drawn = skellam(200_000, mu, SecureSource(b"h" * 32))

    assert stats.kstest(drawn / math.sqrt(mu), "norm").pvalue > FALSE_ALARM
    assert len(set((drawn % 1024).tolist())) == 1024, "low bits are random, too"


@pytest.mark.parametrize("mean", [0.3, 4.0, 9.99, 10.0, 31.9, 400.0])
def test_poisson_offsets_follow_the_poisson_law(mean: float) -> None:
    drawn = poisson_offsets(100_000, mean, SecureSource(b"p" * 32)) + math.floor(mean)
    points = np.arange(int(stats.poisson.ppf(1e-3, mean)), int(stats.poisson.ppf(1 - 1e-3, mean)) + 1)
    expected = np.append(stats.poisson.pmf(points, mean), 0.0)
    expected[-1] = 1.0 - expected.sum()
    observed = np.array([*((drawn == point).sum() for point in points), 0])
    observed[-1] = drawn.size - observed.sum()

    assert drawn.min() >= 0
    assert stats.chisquare(observed, expected * drawn.size).pvalue > FALSE_ALARM


@pytest.mark.parametrize("mean", [10.0, 47.25, 1e4, 1e9 + 0.5, 1e15])
def test_probabilities_lose_no_digits_however_large_the_mean(mean: float) -> None:
    whole = math.floor(mean)
    offsets = np.array([x * math.sqrt(mean) for x in (-3.0, -1.0, 0.0, 0.5, 2.0, 8.0)]).round()
    with mpmath.workdps(60):
        exact = [
            float((whole + k) * mpmath.log(mean) - mpmath.mpf(mean) - mpmath.loggamma(whole + int(k) + 1))
            for k in map(int, offsets)
        ]

    assert log_probabilities(offsets, mean) == pytest.approx(exact, abs=2e-13, rel=2e-14)
    assert log_probabilities(np.array([-whole - 1.0]), mean)[0] == -math.inf


def test_sampling_repeats_with_its_key_and_refuses_what_means_nothing() -> None:
    first, second = (skellam(100, 50.0, SecureSource(b"k" * 32)) for _ in range(2))

    assert (first == second).all()
    assert (first != skellam(100, 50.0, SecureSource(b"l" * 32))).any()
    assert (skellam(10, 0.0, SecureSource(b"k" * 32)) == 0).all()
    for variance in (-1.0, math.nan, math.inf):
        with pytest.raises(LocalProtocolError):
            skellam(1, variance, SecureSource(b"k" * 32))
