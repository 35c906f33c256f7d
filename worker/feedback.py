"""What does a client still owe the model? The error feedback of top-k selection.

A client sends its k largest values only; what it did not send is remembered, and added to its next update:

    total = update + residual                      what could be sent
    sent  = round(clip(total at its k largest))    what is sent, as the receiver reads it
    residual <- 0.9 * (total - clipped off - sent), shortened to a norm of at most 10 C

At the k positions only the error of rounding remains: what clipping removed is dropped, or an update that is always
too long would pile up for ever. Decay and bound forget what has become stale, since the model moves on meanwhile. An
update that nobody asked for in time was not sent at all, so all of it is owed.

Reference: Seide et al., 1-Bit Stochastic Gradient Descent (2014); Stich, Cordonnier and Jaggi, Sparsified SGD with
Memory (2018), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector
from shared.codec.quantize import SumFormat, Words, clip_factor, l2_norm, signed_view
from shared.plan import Plan

RESIDUAL_DECAY = 0.9
RESIDUAL_NORM_MAX = 10.0
"""In units of the round's clipping norm C: far above what is measured, so it binds only when something diverges."""


@dataclass(frozen=True, slots=True)
class SentValues:
    """What left of an update: `words` at the positions `coordinates`, of values with this norm before clipping."""

    coordinates: Coordinates
    words: Words
    norm: float
    weight: float


def owed(update: FloatVector, residual: FloatVector | None) -> FloatVector:
    """Return update + residual, (d,) float32; the update itself if nothing is owed, or only that of another model."""
    return update if residual is None or residual.shape != update.shape else update + residual


def residual_after(total: FloatVector, sent: SentValues, form: SumFormat) -> FloatVector:
    """What is owed when some of `total` (d,) has left; (d,) float32, read-only."""
    left = total.copy()
    values = signed_view(sent.words)[: form.count] / (form.scale * sent.weight)
    left[sent.coordinates] *= np.float32(clip_factor(sent.norm, form.clipping_norm))
    left[sent.coordinates] -= values.astype(np.float32)
    return _faded(left, form.clipping_norm)


def residual_unsent(total: FloatVector, clipping_norm: float) -> FloatVector:
    """What is owed when none of `total` (d,) has left; (d,) float32, read-only."""
    return _faded(total.copy(), clipping_norm)


def _faded(left: FloatVector, clipping_norm: float) -> FloatVector:
    norm = RESIDUAL_DECAY * l2_norm(left)
    if math.isfinite(norm):
        left *= np.float32(RESIDUAL_DECAY * clip_factor(norm, RESIDUAL_NORM_MAX * clipping_norm))
    else:
        left[:] = 0.0  # a sum that overflowed says nothing about the data any more
    left.flags.writeable = False
    return left


class Feedback:
    """What one client owes, from round to round; does nothing unless the plan says `top_k`.

    `next` is what will be owed once the words that are being made have left.
    """

    def __init__(self, residual: FloatVector | None) -> None:
        self.residual = residual
        self.next: FloatVector | None = None

    def total(self, update: FloatVector, plan: Plan) -> FloatVector:
        """What could be sent now."""
        return owed(update, self.residual) if plan.codec.selection == "top_k" else update

    def has_left(self) -> None:
        """The words have left."""
        if self.next is not None:
            self.residual, self.next = self.next, None

    def expire(self, update: FloatVector, plan: Plan, clipping_norm: float) -> FloatVector | None:
        """Nobody asked for this update in time; returns what is owed now, None if nothing is kept."""
        if plan.codec.selection != "top_k":
            return None
        self.residual = residual_unsent(owed(update, self.residual), clipping_norm)
        return self.residual
