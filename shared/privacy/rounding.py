"""How does a clipped vector become integers whose norm is known, so that integer noise can hide them?

    bounds = norm_bounds(scale * clipping_norm, count)              l1 and l2, for the accountant
    integers = round_within(values, scale, clipping_norm, source)   never longer than they say

Stochastic rounding is unbiased and may lengthen a vector, by up to sqrt(k) if luck is bad. Privacy is paid for the
longest possible result, so unlucky roundings are thrown away and done again until

    l2² = min( (sC + sqrt k)², s²C² + k/4 + sqrt(2 ln(1/beta)) (sC + sqrt(k)/2) )

holds. A rounding meets it with probability >= 1 - beta, whatever the vector. After ROUNDINGS_MAX of them, which honest
randomness does not reach in the age of the universe, the vector is rounded toward zero, which never lengthens it.

Integers have |v| <= v², and k of them |v|_1 <= sqrt(k) |v|_2, so l1 = min(sqrt(k) l2, l2²).

Reference: P. Kairouz, Z. Liu, T. Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation", ICML 2021, algorithm 1 and its analysis of conditional rounding (without the rotation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.codec.quantize import UniformSource
from shared.errors import LocalProtocolError

BETA = math.exp(-0.5)
"""At most this share of roundings is thrown away; the paper's choice. A smaller one costs noise, a larger one bias."""

ROUNDINGS_MAX = 200

_MARGIN = 2.0**-33
"""Relative room that clipping and checking leave for adding up a million squares in double precision."""

_SCALED_NORM_MAX = 2.0**52


@dataclass(frozen=True, slots=True)
class NormBounds:
    """How long the integers of one client can be: Delta_1 and Delta_2, in integer steps."""

    l1: float
    l2: float


def norm_bounds(scaled_norm: float, count: int, beta: float = BETA) -> NormBounds:
    """Return what `round_within` enforces.

    Args:
        scaled_norm: sC, the clipping norm in integer steps.
        count: k, coordinates.
        beta: in (0, 1), how often a rounding may be thrown away.

    Raises:
        LocalProtocolError: a number is out of range.
    """
    if not (0.0 < scaled_norm <= _SCALED_NORM_MAX and count >= 1 and 0.0 < beta < 1.0):
        raise LocalProtocolError(f"no integers of norm {scaled_norm} over {count} coordinates (beta {beta})")
    always = (scaled_norm + math.sqrt(count)) ** 2
    mostly = (
        scaled_norm**2 + count / 4.0 + math.sqrt(2.0 * math.log(1.0 / beta)) * (scaled_norm + math.sqrt(count) / 2.0)
    )
    squared = min(always, mostly)
    l2 = math.sqrt(squared)
    return NormBounds(l1=min(math.sqrt(count) * l2, squared), l2=l2)


def round_within(
    values: npt.NDArray[np.floating], scale: float, clipping_norm: float, source: UniformSource, beta: float = BETA
) -> npt.NDArray[np.int64]:
    """Clip a vector to `clipping_norm` and round `scale` times it, within `norm_bounds(scale * clipping_norm, k)`.

    Args:
        values: (k,) finite floats of any size.
        scale: s, integer steps per unit.
        clipping_norm: C.
        source: of cryptographic quality where the result is to be private.
        beta: as the bounds were computed with.

    Returns:
        (k,) int64.

    Raises:
        LocalProtocolError: a value is not finite, or a number is out of range.
    """
    bounds = norm_bounds(scale * clipping_norm, values.size, beta)
    limit = bounds.l2 * bounds.l2 * (1.0 - _MARGIN)
    scaled = _clipped(values, scale, clipping_norm)
    uniform = np.empty_like(scaled)
    for _ in range(ROUNDINGS_MAX):
        source.random(out=uniform)
        uniform += scaled
        np.floor(uniform, out=uniform)
        if float(np.dot(uniform, uniform)) <= limit:
            return uniform.astype(np.int64)
    return np.trunc(scaled).astype(np.int64)


def _clipped(values: npt.NDArray[np.floating], scale: float, clipping_norm: float) -> npt.NDArray[np.float64]:
    """Return `scale` times the clipped vector, in float64; squares of huge values do not overflow on the way."""
    exact = values.astype(np.float64)
    largest = float(np.abs(exact).max())
    if not math.isfinite(largest):
        raise LocalProtocolError("a value to be rounded is not finite")
    if largest == 0.0:
        return exact
    exact /= largest
    unit_norm = math.sqrt(float(np.dot(exact, exact)))
    exact *= scale * min(largest, clipping_norm * (1.0 - _MARGIN) / unit_norm)
    return exact
