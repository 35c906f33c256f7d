"""What becomes of an update on its way out?

    coordinates -> norm -> clip -> weight -> quantize -> words
    coordinates -> norm -> clip -> quantize within a norm -> noise -> words          where members add noise

Clipping comes last, on the values that are really sent; clip, weight and scale are one factor in one pass. With noise
nothing but the noised values depends on the client's data: all weigh 1, and no bit says whether it was clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector
from shared.codec.positions import encode_positions, largest
from shared.codec.quantize import (
    SumFormat,
    UniformSource,
    Words,
    clip_factor,
    l2_norm,
    quantize,
    signed_view,
    write_slots,
)
from shared.errors import LocalProtocolError, WorkloadError
from shared.plan import Plan
from shared.privacy.entropy import SecureSource
from shared.privacy.rounding import round_within
from shared.privacy.skellam import skellam
from worker.feedback import SentValues, residual_after
from worker.stored_update import StoredUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedUpdate:
    """Words ready to be masked or sent, and what had to be cut on the way, which is to be counted.

    `norm` is the L2 norm of the values before clipping; `clamped` names the metrics that were beyond their bound.
    `residual` (d,) is what error feedback holds back for later, if there is error feedback.
    """

    words: Words
    norm: float
    clipped: bool
    clamped: tuple[str, ...]
    residual: FloatVector | None = None


class Encode(Protocol):
    """How an update becomes words; `prepare_words` is what an honest client does."""

    def __call__(
        self,
        update: FloatVector,
        coordinates: Coordinates | None,
        form: SumFormat,
        *,
        weight: float,
        metrics: Mapping[str, float],
        source: UniformSource,
        damping: float = 1.0,
    ) -> PreparedUpdate:
        """See `prepare_words`."""


def prepare_words(
    update: FloatVector,
    coordinates: Coordinates | None,
    form: SumFormat,
    *,
    weight: float,
    metrics: Mapping[str, float],
    source: UniformSource,
    damping: float = 1.0,
) -> PreparedUpdate:
    """Encode one client's update.

    Args:
        update: (d,) float32, weights after training minus before; read only.
        coordinates: (k,) positions to send, or None for all d.
        form: what the words mean.
        weight: w in (0, 1].
        metrics: at least those that the format has slots for.
        source: randomness of the rounding and of the format's noise.
        damping: a in (0, 1], of the values alone and not of the weight: it makes the group's step shorter.

    Raises:
        WorkloadError: update or metric not finite, or a metric is missing.
        LocalProtocolError: the update does not have the format's size, the weight is out of range or not 1 where there
            is noise, or noise would come from something else than a `SecureSource`.
    """
    if not 0.0 < weight <= 1.0:
        raise LocalProtocolError(f"a weight lies in (0, 1], not {weight}")
    if not math.isfinite(l2_norm(update)):
        raise WorkloadError("workload: the update is not finite; a smaller learning rate or cleaner data would help")
    values = update if coordinates is None else update[coordinates]
    bounded, clamped = _clamp(metrics, form)
    norm = l2_norm(values)
    words: Words = np.empty(form.length, dtype=form.word_type)
    if form.noise is not None:
        damped = values if damping == 1.0 else values * np.float32(damping * clip_factor(norm, form.clipping_norm))
        _write_noised(words, damped, form, weight, source)
        return PreparedUpdate(words=words, norm=norm, clipped=norm > form.clipping_norm, clamped=())
    quantize(values, weight * damping * clip_factor(norm, form.clipping_norm), form, source, words)
    unclipped = norm <= form.clipping_norm
    write_slots(words, form, weight, bounded, unclipped)
    return PreparedUpdate(words=words, norm=norm, clipped=not unclipped, clamped=clamped)


def _write_noised(words: Words, values: FloatVector, form: SumFormat, weight: float, source: UniformSource) -> None:
    """Write integers of bounded norm with this member's share of the noise, and slots that say nothing.

    Integers of 64 bits are cut to the words': additions mod 2**b do not mind.
    """
    if form.noise is None or weight != 1.0 or form.metric_bounds or values.shape != (form.count,):
        raise LocalProtocolError(f"{values.shape} values of weight {weight} cannot be noised as {form}")
    if not isinstance(source, SecureSource):
        raise LocalProtocolError(f"noise of a {type(source).__name__} can be found out: it takes a SecureSource")
    noised = round_within(values, form.scale, form.clipping_norm, source)
    noised += skellam(form.count, form.noise.variance, source)
    np.copyto(signed_view(words)[: form.count], noised, casting="unsafe")
    write_slots(words, form, weight, {}, unclipped=True)


def _clamp(metrics: Mapping[str, float], form: SumFormat) -> tuple[dict[str, float], tuple[str, ...]]:
    bounded: dict[str, float] = {}
    for name, bound in form.metric_bounds:
        value = metrics.get(name)
        if value is None or not math.isfinite(value):
            raise WorkloadError(f"workload: metric {name!r} is {value}; the plan expects a finite number")
        bounded[name] = max(-bound, min(bound, value))
    return bounded, tuple(name for name, value in bounded.items() if value != metrics[name])


def prepare_for_sum(
    update: StoredUpdate,
    plan: Plan,
    coordinates: Coordinates | None,
    form: SumFormat,
    rounding: UniformSource,
    encode: Encode,
    *,
    damping: float = 1.0,
) -> tuple[PreparedUpdate, bytes]:
    """Encode a stored update as its plan asks.

    Args:
        update: under `top_k` its values are those of `worker.feedback.owed`.
        coordinates: the round's, None for all; under `top_k` the update's own are taken instead.
        damping: as `prepare_words`.

    Returns:
        The words, and the bytes that follow them: under `top_k` the positions, with `residual` set; else nothing.

    Raises:
        WorkloadError: the update is not finite, or lacks a metric.
    """
    own = plan.codec.selection == "top_k"
    chosen = largest(update.values, plan.coordinate_count) if own else coordinates
    weight = plan.weight(update.meta.num_examples)
    prepared = encode(
        update.values, chosen, form, weight=weight, metrics=update.meta.metrics, source=rounding, damping=damping
    )
    if not own:
        return prepared, b""
    assert chosen is not None
    sent = SentValues(chosen, prepared.words, prepared.norm, weight * damping)
    residual = residual_after(update.values, sent, form)
    return replace(prepared, residual=residual), encode_positions(chosen, plan.dimension)
