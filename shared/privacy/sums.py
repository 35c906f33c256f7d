"""What does client-level privacy put into the sum of a group, and what does that cost a member?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.codec.quantize import NoiseShare
from shared.plan_sections import PrivacyPlan
from shared.privacy.calibration import skellam_variance_for
from shared.privacy.charges import ClientCharge
from shared.privacy.rounding import NormBounds, norm_bounds

STEPS = 2.0**16
"""sC, integer steps of the clipping norm.

Finer ones would save less than a percent of noise, up to 10^8 coordinates; coarser ones leave more room in a word.
"""

ANSWERING = 0.8
"""Least share of a group that must answer: whoever may be missing is one whose noise the others add in advance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientNoise:
    """The numbers of client-level privacy, all of them public.

    Args:
        multiplier: z, standard deviation of the noise of an opened sum's honest members over the clipping norm.
        count: k, values in an update.
    """

    multiplier: float
    count: int

    @classmethod
    def of(cls, privacy: PrivacyPlan, count: int) -> ClientNoise | None:
        """Read a plan's section; None without client-level privacy, or without what it needs."""
        if privacy.level != "client" or privacy.noise_multiplier is None:
            return None
        return cls(multiplier=privacy.noise_multiplier, count=count)

    @classmethod
    def calibrated(cls, epsilon: float, delta: float, *, rounds: int, count: int) -> ClientNoise:
        """The least noise with which so many rounds cost at most epsilon at delta.

        Raises:
            LocalProtocolError: a number is out of range.
        """
        bounds = norm_bounds(STEPS, count)
        variance = skellam_variance_for(epsilon, delta, rounds=rounds, l1=bounds.l1, l2=bounds.l2)
        return cls(multiplier=math.sqrt(variance) / STEPS, count=count)

    @property
    def variance(self) -> float:
        """mu, per coordinate, in squared steps."""
        return (self.multiplier * STEPS) ** 2

    @property
    def bounds(self) -> NormBounds:
        """How long the integers of one client can be."""
        return norm_bounds(STEPS, self.count)

    def share(self, honest: int) -> NoiseShare:
        """What each member adds, so that `honest` of them reach mu."""
        return NoiseShare(steps=STEPS, variance=self.variance / honest)

    def charge(self, honest_max: int) -> ClientCharge:
        """What one masking costs, in groups of which at most `honest_max` members are counted on to add noise."""
        bounds = self.bounds
        return ClientCharge(
            variance=self.variance, variance_alone=self.share(honest_max).variance, l1=bounds.l1, l2=bounds.l2
        )

    def noise_over_signal(self, members: int, honest: int) -> float:
        """Norm of the noise over that of the signal in the mean of a group of which all `members` arrive.

        The signal is taken as if half of all updates pulled the same way at their bound.
        """
        return self.multiplier * math.sqrt(self.count * members / honest) / (0.5 * members)
