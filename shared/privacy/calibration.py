"""How much noise does a privacy target need? Bisection over the accountant, so that both always agree.

noise_multiplier_for(8.0, 1e-4, sampling_rate=1.0, steps=60)       sigma of DP-SGD
skellam_variance_for(8.0, 1e-4, rounds=60, l1=..., l2=...)         mu of an opened sum
"""

from __future__ import annotations

import math
from collections.abc import Callable

from shared.errors import LocalProtocolError
from shared.privacy.renyi import epsilon_at, gaussian_curve
from shared.privacy.skellam import skellam_curve

_PRECISION = 1e-4
"""How far above the smallest sufficient noise an answer may lie, relatively. It never lies below."""

_NOISE_MIN = 1e-3
_NOISE_MAX = 1e9


def noise_multiplier_for(epsilon: float, delta: float, *, sampling_rate: float, steps: int) -> float:
    """Return the smallest noise multiplier sigma with which DP-SGD costs at most epsilon at delta.

    Args:
        epsilon: positive.
        delta: in (0, 1).
        sampling_rate: q in (0, 1]; 1 is the full batch.
        steps: in all rounds together, at least 1.

    Raises:
        LocalProtocolError: a number is out of range.
    """
    _check(epsilon, steps)

    def cost(sigma: float) -> float:
        return epsilon_at(steps * gaussian_curve(sigma, sampling_rate), delta)

    return _least(lambda sigma: cost(sigma) <= epsilon)


def skellam_variance_for(epsilon: float, delta: float, *, rounds: int, l1: float, l2: float) -> float:
    """Return the smallest variance mu with which `rounds` noised sums cost a client at most epsilon at delta.

    Args:
        epsilon: positive.
        delta: in (0, 1).
        rounds: maskings of the client, at least 1.
        l1: bound on the L1 norm of the client's integers (`shared.privacy.rounding.norm_bounds`).
        l2: bound on their L2 norm, positive.

    Returns:
        mu per coordinate, in squared integer steps: what the honest members of an opened sum add together.

    Raises:
        LocalProtocolError: a number is out of range.
    """
    _check(epsilon, rounds)
    if not (l1 > 0.0 and l2 > 0.0):
        raise LocalProtocolError(f"norm bounds are positive, not {l1} and {l2}")

    def cost(ratio: float) -> float:
        return epsilon_at(rounds * skellam_curve((ratio * l2) ** 2, l1, l2), delta)

    ratio = _least(lambda ratio: cost(ratio) <= epsilon)
    return (ratio * l2) ** 2


def _check(epsilon: float, releases: int) -> None:
    """Refuse a target that means nothing."""
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise LocalProtocolError(f"epsilon: a positive number, not {epsilon}")
    if releases < 1:
        raise LocalProtocolError(f"noise is for at least one release, not {releases}")


def _least(enough: Callable[[float], bool]) -> float:
    """Return the smallest noise that is enough, up to `_PRECISION`; `enough` is false below some noise, true above."""
    low, high = _NOISE_MIN, 1.0
    while not enough(high):
        low, high = high, 2.0 * high
        if high > _NOISE_MAX:
            raise LocalProtocolError("no noise reaches this target: fewer releases, or a larger epsilon or delta")
    while high - low > _PRECISION * high:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
