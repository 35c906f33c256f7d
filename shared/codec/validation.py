"""How do clients' own validation figures ride in a sum, so that it says their mean and spread and nobody's figure?

For a metric m with the bound B on its absolute value, a client fills these metric slots behind its update::

    validation_m          m
    validation_m_share    1 if it measured m, 0 if it could not
    validation_m_square   m²

They are slots like any other (`shared.codec.quantize`): times the client's weight, clamped to a bound, rounded. A
client that measured nothing adds zeros, and the mean is taken over the weight of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_PREFIX = "validation_"
_SHARE, _SQUARE = "_share", "_square"
_SHARE_MIN = 1e-4
"""Below this share of the weight it is rounding and not a client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Weighted mean and standard deviation between clients; `share` of the clients' weight measured it, in (0, 1]."""

    mean: float
    deviation: float
    share: float


def validation_slots(bounds: Mapping[str, float]) -> dict[str, float]:
    """Return the slots for these metrics, by name and bound; `bounds` are on the metrics' absolute values."""
    slots: dict[str, float] = {}
    for metric, bound in bounds.items():
        name = _PREFIX + metric
        slots |= {name: bound, name + _SHARE: 1.0, name + _SQUARE: bound * bound}
    return slots


def validated_metrics(slots: Mapping[str, float]) -> tuple[str, ...]:
    """Return the metrics that slots of these names are for, sorted."""
    names = (name for name in slots if name.startswith(_PREFIX) and name.endswith(_SHARE))
    return tuple(sorted(name.removeprefix(_PREFIX).removesuffix(_SHARE) for name in names))


def slot_values(measured: Mapping[str, float], slots: Mapping[str, float]) -> dict[str, float]:
    """Return what one client writes, one value for every validation slot.

    Args:
        measured: its figures; one that is absent or not finite (an area under the curve of a single class) counts as
            not measured. One beyond its bound is left as it is, for whoever writes the slots to clamp and count.
        slots: name and bound of all metric slots.
    """
    values: dict[str, float] = {}
    for metric in validated_metrics(slots):
        name, value = _PREFIX + metric, measured.get(metric, math.nan)
        known = math.isfinite(value)
        bound = slots[name]
        square = max(-bound, min(bound, value)) ** 2 if known else 0.0
        values |= {name: value if known else 0.0, name + _SHARE: float(known), name + _SQUARE: square}
    return values


def beyond_bounds(means: Mapping[str, float], bounds: Mapping[str, float], slack: float) -> str:
    """Return the first metric of which these are no clients' figures, empty if they may be.

    Whoever measured nothing has added zeros: a figure and its square are within their bounds for the share that
    measured it, and no mean square is below the square of the mean (both over that share).

    Args:
        means: for each slot its mean, weighted by the clients' weights, over the clients of one sum.
        bounds: for each slot the bound on its absolute value.
        slack: what rounding may add to a mean, in units of its slot's bound.
    """
    for metric in validated_metrics(bounds):
        name = _PREFIX + metric
        share = means[name + _SHARE] + slack
        mean, square = abs(means[name]) / bounds[name], means[name + _SQUARE] / bounds[name + _SQUARE]
        if share < 0.0 or max(mean, square) > share + slack:
            return metric
        if square < -slack or max(0.0, mean - slack) ** 2 > (share + slack) * (square + slack):
            return metric
    return ""


def read_spreads(means: Mapping[str, float]) -> dict[str, Spread]:
    """Return mean and spread of every metric that anybody measured.

    Args:
        means: for each slot its mean, weighted by the clients' weights, over all clients in the sums.
    """
    spreads: dict[str, Spread] = {}
    for metric in validated_metrics(means):
        name = _PREFIX + metric
        share = means[name + _SHARE]
        if share < _SHARE_MIN:
            continue
        mean = means[name] / share
        square = means[name + _SQUARE] / share
        # Rounding may bring equal figures below zero.
        deviation = math.sqrt(max(0.0, square - mean * mean))
        spreads[metric] = Spread(mean=mean, deviation=deviation, share=min(1.0, share))
    return spreads


def is_validation_slot(name: str) -> bool:
    """Whether a metric slot is one of these and not about training."""
    return name.startswith(_PREFIX)
