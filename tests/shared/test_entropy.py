"""Randomness for privacy: right distributions, new words in every call, the same words for the same key."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shared.codec.quantize import SumFormat, quantize
from shared.errors import LocalProtocolError
from shared.privacy import entropy
from shared.privacy.entropy import SecureSource

KEY = b"0123456789abcdef0123456789abcdef"
FALSE_ALARM = 1e-4
"""Chance of a right generator to fail one of these tests with a random key. The key is fixed: no chance is left."""


def test_uniform_numbers_are_uniform_and_below_one() -> None:
    drawn = SecureSource(KEY).random(out=np.empty(300_000))

    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    assert stats.kstest(drawn, "uniform").pvalue > FALSE_ALARM
    low_bits = (drawn * 2.0**53).astype(np.int64) & 255
    assert stats.chisquare(np.bincount(low_bits, minlength=256)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_normals_are_normal(dtype: type) -> None:
    drawn = np.empty(300_001, dtype=dtype)
    SecureSource(KEY).normals(drawn)

    assert stats.kstest(drawn.astype(np.float64), "norm").pvalue > FALSE_ALARM
    # The same where it matters and a KS test is blind: four tails, binomial with probability 2 sf(x).
    for x in (2.0, 3.0, 4.0, 4.5):
        beyond = int((np.abs(drawn) > x).sum())
        assert stats.binomtest(beyond, drawn.size, 2.0 * stats.norm.sf(x)).pvalue > FALSE_ALARM
    assert abs(stats.kurtosis(drawn.astype(np.float64))) < 4.0 * math.sqrt(24.0 / drawn.size)


def test_the_tests_of_normals_can_fail() -> None:
    drawn = np.empty(300_000)
    SecureSource(KEY).normals(drawn)

    assert stats.kstest(drawn * 1.02, "norm").pvalue < FALSE_ALARM


def test_normals_are_independent_of_their_neighbors() -> None:
    drawn = np.empty(200_000)
    SecureSource(KEY).normals(drawn)
    half = 4096
    # Neighbors, and the two results of one angle, also in their squares, where a wrong radius would show.
    for lag in (1, 2, half, 2 * half):
        for values in (drawn, drawn**2):
            limit = stats.norm.isf(FALSE_ALARM / 2.0) / math.sqrt(drawn.size - lag)
            assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < limit


@pytest.mark.parametrize("rate", [0.001, 0.25, 0.9])
def test_samples_hold_every_record_at_the_rate(rate: float) -> None:
    source = SecureSource(KEY)
    samples = np.array([source.sample(500, rate) for _ in range(400)])

    assert stats.binomtest(int(samples.sum()), samples.size, rate).pvalue > FALSE_ALARM
    # Sizes of Poisson samples vary as a binomial does: neither fixed nor in lumps.
    spread = samples.sum(axis=1).var(ddof=1) / (500 * rate * (1 - rate))
    assert 0.7 < spread < 1.4


def test_rates_of_nought_and_one_are_exact() -> None:
    source = SecureSource(KEY)

    assert not source.sample(1000, 0.0).any()
    assert source.sample(1000, 1.0).all()


@pytest.mark.parametrize("bound", [1, 2, 7, 1000])
def test_integers_are_uniform(bound: int) -> None:
    drawn = SecureSource(KEY).integers(100_000, bound)

    assert drawn.min() >= 0
    assert drawn.max() < bound
    assert stats.chisquare(np.bincount(drawn, minlength=bound)).pvalue > FALSE_ALARM or bound == 1


def test_integers_of_an_incomplete_last_run_are_redrawn() -> None:
    # 2^64 mod (3 * 2^61) = 2^62: without redrawing, the lowest third would come half as often again.
    bound = 3 * 2**61
    drawn = SecureSource(KEY).integers(60_000, bound)

    assert stats.chisquare(np.bincount(drawn // 2**61, minlength=3)).pvalue > FALSE_ALARM


def test_a_key_repeats_itself_and_a_fresh_source_does_not() -> None:
    def draw(source: SecureSource) -> bytes:
        out = np.empty(999)
        source.normals(out)
        return out.tobytes() + source.random(out=np.empty((3, 5))).tobytes() + source.integers(9, 10).tobytes()

    assert draw(SecureSource(KEY)) == draw(SecureSource(KEY))
    assert draw(SecureSource.fresh()) != draw(SecureSource.fresh())


def test_nothing_is_drawn_twice() -> None:
    source = SecureSource(KEY)
    first, second = source.words(50_000), source.words(50_000)

    assert len(set(first.tolist()) | set(second.tolist())) == 100_000


def test_a_long_stream_goes_on_with_new_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SecureSource(KEY).words(4096)
    monkeypatch.setattr(entropy, "_REKEY_BYTES", 8192)
    changed = SecureSource(KEY).words(4096)

    assert (changed[:1024] == whole[:1024]).all()
    assert len(set(changed.tolist()) | set(whole.tolist())) == 4096 + 3072


def test_whole_arrays_are_filled_whatever_their_shape() -> None:
    source = SecureSource(KEY)
    for size in (0, 1, 2, 8191, 8193):
        out = np.full(size, np.nan)
        source.normals(out)
        assert np.isfinite(out).all()
    square = np.full((7, 11), np.nan, dtype=np.float32)
    source.normals(square)
    assert np.isfinite(square).all()
    with pytest.raises(LocalProtocolError):
        source.normals(square.T)
    with pytest.raises(LocalProtocolError):
        source.random(out=np.empty((4, 4)).T)


def test_a_source_serves_stochastic_rounding() -> None:
    form = SumFormat(count=3, bits=32, members=2, clipping_norm=1.0)
    words = np.zeros(form.length, dtype=form.word_type)
    quantize(np.array([0.5, -0.25, 0.0], dtype=np.float32), 1.0, form, SecureSource(KEY), words)

    assert words[:3].view("<i4") / form.scale == pytest.approx([0.5, -0.25, 0.0], abs=1e-8)


def test_what_means_nothing_is_refused() -> None:
    source = SecureSource(KEY)
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(LocalProtocolError):
            source.sample(3, rate)
    for bound in (0, -1, 2**63 + 1):
        with pytest.raises(LocalProtocolError):
            source.integers(3, bound)
    with pytest.raises(LocalProtocolError):
        SecureSource(b"short")
