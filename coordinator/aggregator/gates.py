"""Which group sums may be counted?

The gates drop what no group of honest members can send: a sum of the wrong size, with a weight, bit or metric outside
its possible range, lighter than any member is, or with a mean longer than clipping allows. (A sum that is not finite
cannot arrive: words are integers.) Each bound is one that honest groups cannot pass, whatever their data and however
their rounding falls; so what a gate drops is an attack or a fault. With noise in every update the norm is bounded for
nearly all of them: the noise of a mean is smaller than that of an update, by a known amount. Noise that members add
after clipping has a known variance, and none of a million million honest groups is dropped for it.

A gate cannot tell a short lie from the truth. What it does is to bound how far one group can pull; the robust rule
behind it (`coordinator.aggregator.mixing`, `coordinator.aggregator.robust`) does the rest.
"""

from __future__ import annotations

import math

import numpy as np

from shared.codec.quantize import BLOCK, SlotSums, SumFormat, Words, open_slots, signed_view
from shared.codec.validation import beyond_bounds
from shared.errors import RefusalReason, RemoteProtocolError

NORM_SLACK = 1.02
"""Over the clipping norm: far more than all floating-point arithmetic on the way can add."""

NOISY_NORM_SLACK = 1.05
SIGNAL_SHARE_MIN = 0.3
NOISE_DEVIATIONS = 2.5
"""The noisy norm's limit, see `norm_limit`."""

ADDED_DEVIATIONS = 8.0
"""Deviations of the noise's norm, of 1 nu each, that are left to noise added after clipping; see `norm_limit`."""


def pass_gates(words: Words, form: SumFormat, arrived: int, records_max: int, noise: float = 0.0) -> SlotSums:
    """Open the slots of a group sum that an honest group can have sent.

    Args:
        words: (length,) sum of the members' words mod 2**b.
        form: what they mean.
        arrived: how many members' words are in the sum, 1 to `form.members`.
        records_max: n_max, the number of records that counts as weight 1.
        noise: nu, standard deviation of the noise in every client's values, before they are clipped.

    Raises:
        RemoteProtocolError: it cannot be an honest group's; the reason is `wrong_size` or `out_of_range`, and the
            detail names what was measured and its limit.

    One pass over the words, at most 256 KiB beside them.
    """
    if words.shape != (form.length,) or words.dtype != form.word_type:
        detail = f"{words.dtype} words of shape {words.shape} instead of {form.length} of {form.word_type}"
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, detail)
    slots = open_slots(words, form, arrived)
    lightest = weight_floor(form, arrived, records_max)
    if slots.weight < lightest:
        detail = f"weight sum {slots.weight:.3g} of {arrived} members, who weigh {lightest:.3g} at least"
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, detail)
    rounding = arrived / (slots.weight * form.weight_scale * form.metric_radix)
    lied = beyond_bounds(slots.metrics, dict(form.metric_bounds), rounding)
    if lied:
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"{lied!r} of more or fewer members than measured it")
    norm, limit = mean_norm(words, form, slots.weight), norm_limit(form, arrived, slots.weight, noise)
    if not norm <= limit:
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"norm {norm:.3g} above the limit {limit:.3g}")
    return slots


def norm_limit(form: SumFormat, arrived: int, weight: float, noise: float = 0.0) -> float:
    """Return the largest norm that the mean of an honest group can have: 1.02 * C + rounding error.

    With noise it is the norm that nearly no honest mean exceeds. C has to allow for the noise of one update, whose norm
    is about nu * sqrt(k), while the mean of m has 1/sqrt(m) of that. So what C leaves to the signal is taken apart from
    the noise, and the noise of a mean is added again, with 2.5 * nu / sqrt(m) for its deviation (3.5 of its standard
    deviations) and 5 % of slack. C follows the clients' norms, so the signal's part is not known to be less than 0.3 C.

    Member i sends integers z_i = s * w_i * u_i + e_i with norm(u_i) <= C, s the scale of the values, and every
    abs(e_ij) <= 1, so norm(e_i) <= sqrt(k). Its weight slot holds an integer above v * w_i - 1/2, v the scale of
    weights. With V the integer sum of m members' weight slots, sum(w_i) <= (V + m/2) / v, and as s = v / C,

        norm(mean) = norm(sum z_i) / (s * V / v) <= C * (1 + m * (1/2 + sqrt(k)) / V).

    This holds for every outcome of the rounding, not with high probability, and so it is generous to light groups,
    whose rounding weighs more. `weight_floor` bounds how light a group can make itself to get there.

    Noise that the format says members add to clipped values comes on top of the limit L without noise. The norm of a
    vector plus m members' noise, nu per value of their mean, has a mean of at most sqrt(L² + k nu²), and changes by
    no more than the noise does; so it is above that by x nu with a probability of at most exp(-x²/2) (Gaussian
    concentration; shares of Skellam noise have variances of thousands of steps and more): 1e-14 for x = 8.

    Args:
        form: what the words mean.
        arrived: m.
        weight: V / v, as `open_slots` returns it; positive.
        noise: nu.
    """
    weight_word = weight * form.weight_scale
    rounding = arrived * (0.5 / weight_word + math.sqrt(form.count) / (form.scale * form.clipping_norm * weight))
    if not noise:
        limit = form.clipping_norm * (NORM_SLACK + rounding)
        if form.noise is None:
            return limit
        added = math.sqrt(arrived * form.noise.variance) / (form.scale * weight)
        return math.hypot(limit, added * math.sqrt(form.count)) + ADDED_DEVIATIONS * added
    square, whole = form.clipping_norm**2, noise * noise * form.count
    signal = max(square - whole, SIGNAL_SHARE_MIN**2 * square)
    reach = NOISY_NORM_SLACK * math.sqrt(signal + whole / arrived) + NOISE_DEVIATIONS * noise / math.sqrt(arrived)
    return reach + form.clipping_norm * rounding


def weight_floor(form: SumFormat, arrived: int, records_max: int) -> float:
    """Return the smallest weight sum of `arrived` members with one record each, n_max = `records_max`.

    Without it an attacker would claim the weight of next to nothing, for the norm gate's allowance for rounding
    grows with 1/weight.
    """
    one_record = max(1, round(1 / records_max * form.weight_scale))
    # Half an integer below, so that the division back into a float cannot decide.
    return (arrived * one_record - 0.5) / form.weight_scale


def mean_norm(words: Words, form: SumFormat, weight: float) -> float:
    """Return the L2 norm of `open_mean(words, form, weight)` without making that vector."""
    signed = signed_view(words)[: form.count]
    total = 0.0
    block = np.empty(min(BLOCK, form.count), dtype=np.float64)
    for start in range(0, form.count, BLOCK):
        part = block[: min(BLOCK, form.count - start)]
        np.copyto(part, signed[start : start + BLOCK])
        np.multiply(part, part, out=part)
        total += float(part.sum())
    return math.sqrt(total) / (form.scale * weight)
