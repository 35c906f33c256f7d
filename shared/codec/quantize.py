"""How does an update travel as integers that can be added, and what does a sum of them say?

A client sends one vector of words mod 2**b::

    [ w * update (k) | w | w * metric (2 words) ... | 1 if norm <= C else 0 ]

with w in (0, 1]. Each kind of slot has its own scale, chosen so that the sum over all n members of a group stays
inside the signed range: nothing wraps, and nothing is clipped behind anybody's back. The members' words are added mod
2**b (`coordinator.summing.secure_sum`); `open_slots` and `open_mean` read the sum.

A metric is an integer of two digits, high * radix + low, a word each: the steps of one word are too coarse for what is
worked out from means, as a deviation is from a mean and a mean square (`shared.codec.validation`).

Where members add integer noise (`NoiseShare`), values have a coarser, fixed scale, which leaves room for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.codec.flatten import FloatVector
from shared.errors import LocalProtocolError, PlanError, RefusalReason, RemoteProtocolError

Bits: TypeAlias = Literal[16, 32]
Words: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

BLOCK = 32 * 1024
"""Elements handled at a time: three float64 blocks of 256 KiB fit the second-level cache."""

METRIC_WORDS = 2
"""Words of a metric: high and low."""

_ROUNDING_SHARE_MAX = 0.05
_WORD_TYPES: dict[int, np.dtype[Any]] = {16: np.dtype("<u2"), 32: np.dtype("<u4")}
SignedWords: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.int32]


NOISE_REACH = 6.0
"""Standard deviations of a sum's noise that have room in its words; beyond (2e-9 of values) one may wrap."""


class UniformSource(Protocol):
    """Where rounding takes its randomness: `numpy.random.Generator`, or a generator with its `random`."""

    def random(self, *, out: npt.NDArray[np.float64]) -> Any:
        """Fill `out` with uniform numbers of [0, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseShare:
    """Integer noise that each member adds to each of its values.

    `steps` is how many integers the clipping norm has (sC), `variance` the noise's, in squared integers.
    """

    steps: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SumFormat:
    """What a group's words mean. Both sides compute it themselves from plan, log and roster.

    Args:
        count: k, number of update values.
        bits: b, width of a word.
        members: n, length of the roster (not how many arrived).
        clipping_norm: C, the L2 bound of a client's values.
        metric_bounds: for each metric slot its name and the bound on its absolute value, in the order of the slots.
        noise: what each member adds, if anything.

    Raises:
        PlanError: a sum of `members` such vectors could wrap, or a number is out of range.
    """

    count: int
    bits: Bits
    members: int
    clipping_norm: float
    metric_bounds: tuple[tuple[str, float], ...] = ()
    noise: NoiseShare | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or self.members < 1:
            raise PlanError(f"a group sum needs coordinates and members, not {self.count} and {self.members}")
        if self.bits not in _WORD_TYPES:
            raise PlanError(f"bits: words of 16 or 32 bits exist, not of {self.bits}")
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0.0):
            raise PlanError(f"clipping_norm: must be a positive number, not {self.clipping_norm}")
        for name, bound in self.metric_bounds:
            if not (math.isfinite(bound) and bound > 0.0):
                raise PlanError(f"metric_bounds: the bound of {name!r} must be a positive number, not {bound}")
        if self.levels < self.members:
            raise PlanError(
                f"bits: a sum of {self.members} members does not fit {self.bits} bits; set bits = 32 or smaller groups"
            )
        if self.noise is not None:
            reach = self.members * self.noise.steps + NOISE_REACH * math.sqrt(self.members * self.noise.variance)
            if not reach <= self.levels:
                raise PlanError(
                    f"bits: {self.members} members and {NOISE_REACH:g} standard deviations of their noise reach "
                    f"{reach:.3g}, words of {self.bits} bits {self.levels:.3g}; use smaller groups, or less noise"
                )

    @property
    def length(self) -> int:
        """Words per client: k values, the weight, two for each metric, the bit."""
        return self.count + 2 + METRIC_WORDS * len(self.metric_bounds)

    @property
    def levels(self) -> int:
        """Positive integers that all members together may use: 2**(b-1) - 1, less one per member for rounding up."""
        return int(2 ** (self.bits - 1)) - 1 - self.members

    @property
    def scale(self) -> float:
        """Integers per unit of w * update."""
        if self.noise is not None:
            return self.noise.steps / self.clipping_norm
        return scale_for(self.bits, self.members, self.clipping_norm)

    @property
    def value_max(self) -> float:
        """What no value of one member exceeds on average, so that no sum wraps: C, or with noise what has room."""
        return self.clipping_norm if self.noise is None else self.levels / (self.members * self.scale)

    @property
    def weight_scale(self) -> float:
        """Integers per unit of weight."""
        return scale_for(self.bits, self.members, 1.0)

    @property
    def metric_radix(self) -> int:
        """What a metric's high word counts in, even: its low word, up to half of this, may use a member's levels.

        No more than 2**16, so that float64 is exact.
        """
        return min(2 * (self.levels // self.members), 2**16)

    @property
    def word_type(self) -> np.dtype[Any]:
        """Unsigned little-endian integers of b bits."""
        return _WORD_TYPES[self.bits]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSums:
    """What the slots behind the update say of a group: total weight, weighted metric means, share of unclipped."""

    weight: float
    metrics: Mapping[str, float]
    unclipped_share: float


def choose_bits(count: int, members_max: int) -> Bits:
    """Return 16, or 32 where 16 would let rounding noise exceed 5 % of the clipping norm.

    A sum of n stochastically rounded vectors of k coordinates has a rounding error of norm about sqrt(k/6) steps of
    n * C / 2**15 each at full weight; 32 is also what is left when the members do not fit 16 bits.
    """
    too_coarse = math.sqrt(count / 6.0) * members_max / 2.0**15 > _ROUNDING_SHARE_MAX
    return 32 if too_coarse else 16


def scale_for(bits: int, members: int, bound: float) -> float:
    """Return (2**(b-1) - 1 - n) / (n * bound): integers per unit for n summands of absolute value <= bound.

    The -n leaves room for every member's rounding up, so the largest possible sum is exactly 2**(b-1) - 1.
    """
    return float(2 ** (bits - 1) - 1 - members) / (members * bound)


def signed_view(words: Words) -> SignedWords:
    """View words mod 2**b as signed integers: those above 2**(b-1) - 1 are the negative ones."""
    signed: SignedWords = words.view(np.dtype(f"<i{words.itemsize}"))
    return signed


def l2_norm(values: FloatVector) -> float:
    """Return the Euclidean norm of (k,) float32, added up in float64 block by block. Not finite if any value is not."""
    total = 0.0
    block = np.empty(min(BLOCK, len(values)), dtype=np.float64)
    for start in range(0, len(values), BLOCK):
        part = block[: min(BLOCK, len(values) - start)]
        np.copyto(part, values[start : start + BLOCK])
        np.multiply(part, part, out=part)
        total += float(part.sum())
    return math.sqrt(total)


def clip_factor(norm: float, clipping_norm: float) -> float:
    """Return min(1, C / norm), the factor that brings a vector of this norm into the ball of radius C."""
    return 1.0 if norm <= clipping_norm else clipping_norm / norm


def quantize(values: FloatVector, factor: float, form: SumFormat, source: UniformSource, words: Words) -> None:
    """Write the words of `factor * values` into the first k slots of `words`, by stochastic rounding.

    `factor` carries weight and clipping, so no clipped copy of the vector exists. Rounding is unbiased: x becomes
    floor(x * scale + u), u uniform in [0, 1).

    Args:
        values: (k,) float32, finite.
        factor: w * min(1, C / norm).
        words: (length,) of `form.word_type`, written in place.

    Raises:
        LocalProtocolError: a value is beyond the clipping norm, or not finite. After clipping that cannot happen.
    """
    if values.shape != (form.count,) or words.shape != (form.length,) or words.dtype != form.word_type:
        raise LocalProtocolError(f"quantize: {values.shape} values and {words.shape} words do not fit {form}")
    signed = signed_view(words)
    multiplier = factor * form.scale
    limit = form.levels / form.members + 1.0
    noise = np.empty(min(BLOCK, form.count), dtype=np.float64)
    block = np.empty_like(noise)
    for start in range(0, form.count, BLOCK):
        size = min(BLOCK, form.count - start)
        part = block[:size]
        np.multiply(values[start : start + size], multiplier, out=part, dtype=np.float64)
        source.random(out=noise[:size])
        part += noise[:size]
        np.floor(part, out=part)
        if not (part.max() <= limit and part.min() >= -limit):
            raise LocalProtocolError("quantize: a value lies beyond the clipping norm or is not finite")
        np.copyto(signed[start : start + size], part, casting="unsafe")


def write_slots(words: Words, form: SumFormat, weight: float, metrics: Mapping[str, float], unclipped: bool) -> None:
    """Write weight, metrics (each already within its bound) and bit behind the update, rounded to nearest.

    A weight never rounds to zero: a client whose update counts has a weight. Metrics count by the rounded weight, so a
    sum of equal ones has exactly their mean.
    """
    signed, radix = signed_view(words), form.metric_radix
    weight_word = max(1, round(weight * form.weight_scale))
    signed[form.count] = weight_word
    for place, (name, bound) in enumerate(form.metric_bounds):
        high, low = divmod(round(metrics[name] / bound * weight_word * radix) + radix // 2, radix)
        at = form.count + 1 + METRIC_WORDS * place
        signed[at], signed[at + 1] = high, low - radix // 2
    signed[-1] = int(unclipped)


def read_words(buffer: bytes | memoryview, form: SumFormat) -> Words:
    """View received bytes as (length,) words without a copy; read-only if the buffer is.

    Raises:
        RemoteProtocolError: the buffer has another size.
    """
    size = memoryview(buffer).nbytes
    expected = form.length * form.word_type.itemsize
    if size != expected:
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"{size} bytes of words instead of {expected}")
    return np.frombuffer(buffer, dtype=form.word_type)


def open_slots(words: Words, form: SumFormat, arrived: int) -> SlotSums:
    """Read what stands behind the update in the sum of `arrived` members' words.

    Raises:
        RemoteProtocolError: a sum is outside what that many honest members can reach.
    """
    signed, radix = signed_view(words), form.metric_radix
    weight_word, bits_word = int(signed[form.count]), int(signed[-1])
    share_max = form.levels / form.members + 1.0
    if not 0 < weight_word <= arrived * share_max:
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"weight sum {weight_word} of {arrived} members")
    if not 0 <= bits_word <= arrived:
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"{bits_word} bits of {arrived} members")
    weight = weight_word / form.weight_scale
    metrics: dict[str, float] = {}
    for place, (name, bound) in enumerate(form.metric_bounds):
        at = form.count + 1 + METRIC_WORDS * place
        low = int(signed[at + 1])
        total = int(signed[at]) * radix + low
        # It was multiplied by the weight as well; rounding adds half of one for a member.
        if abs(total) > weight_word * radix + arrived or abs(low) > arrived * (radix // 2):
            raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"sum of metric {name!r} of {arrived} members")
        metrics[name] = total / (weight_word * radix) * bound
    return SlotSums(weight=weight, metrics=metrics, unclipped_share=bits_word / arrived)


def open_mean(words: Words, form: SumFormat, weight: float, out: FloatVector | None = None) -> FloatVector:
    """Return the weighted mean update sum(w * u) / sum(w) of a group.

    Args:
        words: (length,) sum of the members' words mod 2**b.
        weight: `open_slots(...).weight`, positive.
        out: (k,) float32 to fill; allocated if None. It may not overlap `words`.

    Returns:
        (k,) float32.
    """
    if words.shape != (form.length,):
        raise LocalProtocolError(f"{words.shape} words do not fit {form}")
    if out is None:
        out = np.empty(form.count, dtype=np.float32)
    signed = signed_view(words)[: form.count]
    factor = 1.0 / (form.scale * weight)
    block = np.empty(min(BLOCK, form.count), dtype=np.float64)
    for start in range(0, form.count, BLOCK):
        part = block[: min(BLOCK, form.count - start)]
        np.multiply(signed[start : start + BLOCK], factor, out=part, dtype=np.float64)
        np.copyto(out[start : start + BLOCK], part, casting="same_kind")
    return out


def spread(words: Words, form: SumFormat, positions: npt.NDArray[np.int64], dimension: int) -> tuple[Words, SumFormat]:
    """Put values that belong at `positions` into words over all `dimension` coordinates, zero everywhere else.

    Args:
        words: (length,) a group's words.
        form: what they mean.
        positions: (k,) distinct, below `dimension`.
        dimension: d.

    Returns:
        (d + slots,) words, and what these mean.
    """
    whole = replace(form, count=dimension)
    result: Words = np.zeros(whole.length, dtype=whole.word_type)
    result[positions] = words[: form.count]
    result[dimension:] = words[form.count :]
    return result, whole
