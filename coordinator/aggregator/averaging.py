"""Which weights are evaluated and kept: a moving average over the model's versions."""

from __future__ import annotations

import numpy as np

from shared.codec.flatten import FloatVector


class WeightAverage:
    """An exponential moving average of versions, without the pull of a starting value.

    Version i of t weighs decay^(t-i), and the weights add up to 1: the first version alone is itself, as in Adam's bias
    correction, and the untrained model counts for nothing. A decay of 0 is the newest version, and takes no memory.

    Reference: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992); Kingma and Ba, Adam
    (2015), section 3, for the correction.
    """

    def __init__(self, decay: float) -> None:
        """
        Args:
            decay: 0 <= decay < 1.
        """
        self._decay = decay
        self._left = 1.0
        self.weights: FloatVector | None = None
        """float32 (d,), a new array for every version; None before the first."""

    def add(self, weights: FloatVector) -> None:
        """Take the next version into account; `weights` is float32 (d,) and not changed."""
        self._left *= self._decay
        if self.weights is None or not self._decay:
            self.weights = weights
            return
        share = np.float32((1.0 - self._decay) / (1.0 - self._left))
        moved = weights - self.weights
        moved *= share
        moved += self.weights
        self.weights = moved
