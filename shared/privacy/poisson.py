"""How are Poisson variables of any mean drawn from a cryptographic source, many at once?

    poisson_offsets(count, mean, source)        int64: the variable minus floor(mean)

* From a mean of 10 on: transformed rejection with squeeze (PTRS). A candidate is accepted by its probability, which is
  written in the distance from the mean, so nothing cancels, however large the mean is: the textbook's
  k log(mean) - mean - log k! has lost all its digits at 1e15.
* Below it: the number of tail probabilities above one uniform of 64 bits, from a table that is summed up from its
  small end.

How exact it is. The law is that of the method in exact arithmetic, up to double precision: the logarithms are good to
about 1e-13, and a candidate is one of 2^53, so a single value's probability is off by a factor within 1 ± sqrt(mean)
2^-50 in the bulk: 1e-9 for a standard deviation of a million. Tails beyond 2^-64 are never drawn below a mean of 10.

Reference: W. Hörmann, "The Transformed Rejection Method for Generating Poisson Random Variables", Insurance:
Mathematics and Economics 12, 1993, algorithm PTRS; C. Loader, "Fast and Accurate Computation of Binomial
Probabilities", 2000, for the form of the probabilities.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.errors import LocalProtocolError
from shared.privacy.entropy import Doubles, SecureSource

MEAN_MAX = 2.0**60
"""Beyond it an offset's candidates would be too coarse; words have 32 bits, so noise never comes near."""

_REJECTION_MEAN_MIN = 10.0
_TABLE = 32
"""Counts below it take their probability from the logarithm of the gamma function, the others from its asymptotics."""

_SERIES_MAX = 0.1
_TAIL_MIN = 2.0**-70


def poisson_offsets(count: int, mean: float, source: SecureSource) -> npt.NDArray[np.int64]:
    """Return (count,) int64: independent Poisson variables of this mean, minus floor(mean).

    Raises:
        LocalProtocolError: the mean is negative, not a number, or above MEAN_MAX.
    """
    if not 0.0 <= mean <= MEAN_MAX:
        raise LocalProtocolError(f"no Poisson variables are drawn with mean {mean}")
    if mean < _REJECTION_MEAN_MIN:
        return _by_table(count, mean, source)
    out = np.empty(count, dtype=np.int64)
    missing = np.arange(count)
    while missing.size:
        offsets, accepted = _candidates(missing.size, mean, source)
        out[missing[accepted]] = offsets[accepted]
        missing = missing[~accepted]
    return out


def log_probabilities(offsets: Doubles, mean: float) -> Doubles:
    """Return log P(X = floor(mean) + offset) for X Poisson, float64; -infinity for negative counts. Mean >= 10."""
    whole = math.floor(mean)
    counts = offsets + whole
    distance = (offsets - (mean - whole)) / mean
    large = np.maximum(counts, _TABLE)
    logs = -mean * _divergence(np.maximum(distance, (_TABLE - mean) / mean))
    logs -= 0.5 * np.log(2.0 * math.pi * large)
    inverse = 1.0 / large
    square = inverse * inverse
    logs -= inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)))
    small = np.flatnonzero(counts < _TABLE)
    if small.size:
        table = [k * math.log(mean) - mean - math.lgamma(k + 1.0) for k in range(_TABLE)]
        logs[small] = np.array([*table, -math.inf])[np.where(counts[small] < 0.0, _TABLE, counts[small]).astype(int)]
    return logs


def _candidates(count: int, mean: float, source: SecureSource) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return `count` candidates of algorithm PTRS as offsets from floor(mean), and which of them are accepted."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2.0)
    words = source.words(2 * count)
    u = ((words[:count].view("<i8") >> 11) + 0.5) * 2.0**-53
    v = ((words[count:] >> 12) + 0.5) * 2.0**-52
    margin = 0.5 - np.abs(u)
    offsets = np.floor((2.0 * a / margin + b) * u + (mean - math.floor(mean)) + 0.43)
    accepted = (margin >= 0.07) & (v <= squeeze)
    open_ = np.flatnonzero(~accepted & ~((margin < 0.013) & (v > margin)))
    if open_.size:
        height = np.log(v[open_] * inverse_alpha / (a / np.square(margin[open_]) + b))
        accepted[open_] = height <= log_probabilities(offsets[open_], mean)
    return np.where(accepted, offsets, 0.0).astype(np.int64), accepted


def _divergence(x: Doubles) -> Doubles:
    """Return (1 + x) log(1 + x) - x for x > -1, to full relative precision also near 0."""
    # With r = x / (2 + x): log(1 + x) = 2 (r + r³/3 + r⁵/5 + ...), and the two terms of first order cancel by hand.
    r = x / (2.0 + x)
    square = r * r
    tail = np.zeros_like(r)
    for power in (15, 13, 11, 9, 7, 5, 3):
        tail = tail * square + 1.0 / power
    near = 2.0 * square * (1.0 + (1.0 + r) * r * tail) / (1.0 - r)
    return np.where(np.abs(x) < _SERIES_MAX, near, (1.0 + x) * np.log1p(x) - x)


def _by_table(count: int, mean: float, source: SecureSource) -> npt.NDArray[np.int64]:
    """Count the tail probabilities P(X > 0), P(X > 1), ... above a uniform number: as many as X says."""
    tails = _tails(mean)
    uniform = (source.words(count) + 0.5) * 2.0**-64
    found = len(tails) - np.searchsorted(tails, uniform, side="right")
    return found.astype(np.int64) - math.floor(mean)


@lru_cache(maxsize=64)
def _tails(mean: float) -> Doubles:
    """Return P(X > k) for k = 0, 1, ... down to 2^-70, in ascending order."""
    if mean == 0.0:
        return np.empty(0)
    probabilities = [math.exp(-mean)]
    while len(probabilities) <= mean or probabilities[-1] > _TAIL_MIN:
        probabilities.append(probabilities[-1] * mean / len(probabilities))
    return np.cumsum(probabilities[:0:-1])
