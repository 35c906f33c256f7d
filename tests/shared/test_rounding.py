"""Integers of a known norm: never longer than accounted, whatever comes in, and right on average."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import LocalProtocolError
from shared.privacy.entropy import SecureSource
from shared.privacy.rounding import BETA, ROUNDINGS_MAX, norm_bounds, round_within

SAFE = settings(derandomize=True, max_examples=200, deadline=None)


class Adversary:
    """Randomness that rounds every value up, as far as a uniform number of [0, 1) can."""

    def __init__(self) -> None:
        self.draws = 0

    def random(self, *, out: npt.NDArray[np.float64]) -> None:
        self.draws += 1
        out.fill(1.0 - 2.0**-53)


def squared_norm(integers: npt.NDArray[np.int64]) -> int:
    """Exact: Python's integers neither round nor wrap."""
    return sum(value * value for value in integers.tolist())


finite = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-3.0, 3.0)


@SAFE
@given(
    st.lists(finite, min_size=1, max_size=60),
    st.floats(1e-3, 1e8),
    st.floats(1e-3, 1e3),
    st.binary(min_size=32, max_size=32),
    st.booleans(),
)
def test_the_integer_norms_never_exceed_their_bounds(
    values: list[float], scale: float, clipping_norm: float, key: bytes, hostile: bool
) -> None:
    bounds = norm_bounds(scale * clipping_norm, len(values))
    source = Adversary() if hostile else SecureSource(key)

    integers = round_within(np.array(values), scale, clipping_norm, source)

    assert squared_norm(integers) <= bounds.l2**2
    assert int(np.abs(integers).sum()) <= bounds.l1 * (1 + 1e-12)


@pytest.mark.parametrize("magnitude", [0.0, 5e-324, 1e-300, 1.0, 1e38, 1.7e308])
@pytest.mark.parametrize("count", [1, 7, 50_000])
def test_tiny_and_huge_values_keep_the_bound(magnitude: float, count: int) -> None:
    source = SecureSource(b"r" * 32)
    for values in (np.full(count, magnitude), np.where(np.arange(count) % 2, -magnitude, magnitude)):
        integers = round_within(values, 40.0, 1.0, source)

        assert squared_norm(integers) <= norm_bounds(40.0, count).l2 ** 2


def test_unlucky_rounding_is_done_again_and_ends() -> None:
    source = Adversary()
    values = np.full(10_000, 1e-9)

    assert (round_within(values, 1.0, 1.0, source) == 0).all(), "rounded toward zero at last"
    assert source.draws == ROUNDINGS_MAX


def test_the_bound_bites_and_at_most_the_stated_share_is_thrown_away() -> None:
    class Counting(SecureSource):
        draws = 0

        def random(self, *, out: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            self.draws += 1
            return super().random(out=out)

    source = Counting(b"c" * 32)
    for _ in range(300):
        round_within(np.full(400, 0.025), 20.0, 0.5, source)
    # Each of k = 400 values is rounded from 0.5: squared norms are binomial, mean 200 and standard deviation 10.
    assert norm_bounds(10.0, 400).l2 ** 2 == pytest.approx(100.0 + 100.0 + 20.0)
    # Two in a hundred are longer.
    assert 300 < source.draws < 300 / (1.0 - BETA)


def test_rounding_is_right_on_average() -> None:
    source = SecureSource(b"m" * 32)
    values = np.array([0.3, -0.45, 0.0, 0.6001, -0.2])
    mean = np.mean([round_within(values, 10.0, 1.0, source, beta=1e-6) for _ in range(4000)], axis=0)

    # Standard error at most 0.5 / sqrt(4000) = 0.008: 5 of them.
    assert mean == pytest.approx(10.0 * values, abs=0.04)


def test_what_is_clipped_keeps_its_direction() -> None:
    integers = round_within(np.array([3e5, -4e5], dtype=np.float32), 1e6, 1.0, SecureSource(b"d" * 32))

    assert integers.tolist() == pytest.approx([6e5, -8e5], abs=2.0)


def test_golden_bounds() -> None:
    # s C = 100, k = 400, beta = exp(-1/2): 10000 + 100 + 1 * (100 + 10) = 10210 < 120²; l1 = 20 sqrt(10210).
    bounds = norm_bounds(100.0, 400)
    assert bounds.l2 == pytest.approx(math.sqrt(10210.0))
    assert bounds.l1 == pytest.approx(20.0 * math.sqrt(10210.0))
    # One coordinate and a tiny beta: (s C + 1)² = 9 is smaller, and integers have |v| <= v².
    assert norm_bounds(2.0, 1, beta=1e-30).l2 == pytest.approx(3.0)
    assert norm_bounds(0.01, 100).l1 == pytest.approx(norm_bounds(0.01, 100).l2 ** 2)


def test_what_means_nothing_is_refused() -> None:
    source = SecureSource(b"n" * 32)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(LocalProtocolError):
            round_within(np.array([1.0, bad]), 1.0, 1.0, source)
    for scaled, count, beta in [(0.0, 1, 0.5), (math.nan, 1, 0.5), (2.0**53, 1, 0.5), (1.0, 0, 0.5), (1.0, 1, 1.0)]:
        with pytest.raises(LocalProtocolError):
            norm_bounds(scaled, count, beta)
