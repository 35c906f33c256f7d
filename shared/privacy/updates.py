"""What does DP-SGD put into a client's update?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.plan_sections import PrivacyPlan, TrainingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordNoise:
    """The numbers of record-level privacy, all of them public.

    Args:
        multiplier: sigma, standard deviation of the noise over `gradient_norm`.
        gradient_norm: S', the L2 norm that one record's gradient is clipped to on the coordinates that training moves.
        sampling_rate: q, the chance of a record to be in a step.
        steps: how many of them.
        records: q * n_bar, by which the noised sum of a step is divided.
        rate: the learning rate.
    """

    multiplier: float
    gradient_norm: float
    sampling_rate: float
    steps: int
    records: float
    rate: float

    @classmethod
    def of(cls, privacy: PrivacyPlan, training: TrainingPlan, share: float) -> RecordNoise | None:
        """Read a sound plan's sections; None without record-level privacy, or without what it needs.

        Args:
            privacy: the level and its parameters.
            training: plain SGD.
            share: of the coordinates that training moves, k/d. A gradient has sqrt(k/d) of its norm there, so the clip
                is lowered by that, and the noise with it.
        """
        rate = training.optimizer.options.get("lr")
        multiplier, nominal = privacy.noise_multiplier, privacy.nominal_records
        if privacy.level != "record" or multiplier is None or nominal is None or not isinstance(rate, int | float):
            return None
        sampling_rate = privacy.sampling_rate or 1.0
        return cls(
            multiplier=multiplier,
            gradient_norm=(privacy.sample_clipping_norm or 1.0) * math.sqrt(share),
            sampling_rate=sampling_rate,
            steps=privacy.local_steps or 1,
            records=sampling_rate * nominal,
            rate=float(rate),
        )

    @property
    def gradient_deviation(self) -> float:
        """Standard deviation of the noise in one step's sum of gradients, per coordinate."""
        return self.multiplier * self.gradient_norm

    @property
    def deviation(self) -> float:
        """nu, standard deviation of the noise in the whole update, per coordinate."""
        return self.rate * self.gradient_deviation / self.records * math.sqrt(self.steps)

    def update_norm(self, count: int) -> float:
        """The L2 norm that nearly every update of `count` sent values stays below.

        Half of all gradients aligned at their bound, and the noise, whose norm is nu * sqrt(count) give or take
        0.7 * nu.
        """
        signal = 0.5 * self.rate * self.gradient_norm * self.steps
        return signal + self.deviation * (math.sqrt(count) + 2.5)

    def noise_over_signal(self, count: int, clients: int) -> float:
        """Norm of the noise over that of the signal in the mean of `clients` updates of `count` sent values.

        The signal is taken as if half of all gradients pulled the same way at their bound: less is left of it later.
        """
        return self.deviation * math.sqrt(count / clients) / (0.5 * self.rate * self.gradient_norm * self.steps)
