"""What does Skellam noise cost, and how is it drawn? Integer noise whose shares add up to a noise of the same kind.

    share_variance(mu, threshold, colluders)       what each member adds, so that the honest ones reach mu
    skellam_curve(mu, l1, l2)                      Renyi curve of a sum that holds noise of variance mu per coordinate
    skellam(count, variance, source)               draws, int64

A Skellam variable of variance mu is the difference of two Poisson variables of mean mu/2. Sums of independent ones are
Skellam again and their variances add up: t - c honest shares of mu/(t - c) make exactly the noise that is accounted.

The curve is, for integer orders and sensitivities that no coordinate of which exceeds mu,

    D(alpha) <= alpha l2² / (2 mu) + min( ((2 alpha - 1) l2² + 6 l1) / (4 mu²), 3 l1 / (2 mu) ).

A test holds it against the exact divergence.

Reference: N. Agarwal, P. Kairouz, Z. Liu, "The Skellam Mechanism for Differentially Private Federated Learning",
NeurIPS 2021, corollary 4.1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.errors import LocalProtocolError
from shared.privacy.entropy import SecureSource
from shared.privacy.poisson import poisson_offsets
from shared.privacy.renyi import ORDERS, Curve

_INTEGER_ORDERS = np.floor(ORDERS) == ORDERS


def share_variance(variance: float, threshold: int, colluders: int) -> float:
    """Return the variance mu/(t - c) of each member's share of noise.

    A sum opens with at least `threshold` members, of which at most `colluders` leave their noise out.

    Raises:
        LocalProtocolError: no honest member would be left, or the variance is negative.
    """
    if not (variance >= 0.0 and 0 <= colluders < threshold):
        raise LocalProtocolError(f"variance {variance} has no shares for t = {threshold}, c = {colluders}")
    return variance / (threshold - colluders)


def skellam_curve(variance: float, l1: float, l2: float) -> Curve:
    """Return the Renyi curve of integers with Skellam noise of `variance` (mu) added to each coordinate.

    Args:
        variance: mu, in squared integer steps.
        l1: bound on the L1 norm of what one client adds.
        l2: bound on its L2 norm.

    Returns:
        (len(ORDERS),) float64: infinity at fractional orders, and everywhere if mu is below the largest coordinate
        that the norms allow, where the theorem says nothing.

    Raises:
        LocalProtocolError: a number is negative or not a number.
    """
    if not (variance >= 0.0 and l1 >= 0.0 and l2 >= 0.0):
        raise LocalProtocolError(f"no Skellam mechanism has variance {variance} and sensitivities {l1}, {l2}")
    curve = np.full(len(ORDERS), np.inf)
    largest = min(l1, l2)
    if largest == 0.0:
        curve[:] = 0.0
    elif largest <= variance:
        orders = ORDERS[_INTEGER_ORDERS]
        squared = l2 * l2
        correction = np.minimum(
            ((2.0 * orders - 1.0) * squared + 6.0 * l1) / variance / variance / 4.0, 1.5 * l1 / variance
        )
        curve[_INTEGER_ORDERS] = orders * squared / (2.0 * variance) + correction
    return curve


def skellam(count: int, variance: float, source: SecureSource) -> npt.NDArray[np.int64]:
    """Return (count,) int64: independent Skellam variables of mean 0, as differences of Poisson ones.

    `shared.privacy.poisson` says how exact they are. The large common part of the two is never formed.

    Raises:
        LocalProtocolError: the variance is negative, not a number, or above 2^61.
    """
    half = variance / 2.0
    return poisson_offsets(count, half, source) - poisson_offsets(count, half, source)
