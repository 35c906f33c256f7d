"""What does a dishonest client send? For demonstrations and tests only.

Attackers know everything: the honest clients' updates of the round, the coordinates, the clipping norm, how many
attackers there are, and what the gates let through. They do not clip what they send, and round to nearest.

References: Baruch et al., A Little Is Enough: Circumventing Defenses for Distributed Learning (2019);
Xie et al., Fall of Empires: Breaking Byzantine-Tolerant SGD by Inner Product Manipulation (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from coordinator.aggregator.gates import norm_limit
from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector
from shared.codec.quantize import SumFormat, Words, clip_factor, l2_norm, signed_view, write_slots
from shared.errors import SettingsError
from shared.workloads.batches import example_count
from shared.workloads.port import Examples

SIGN_FLIP_FACTOR = -10.0
NOISE_NORM = 10.0
"""Expected norm of the noise, in clipping norms."""
INNER_PRODUCT_FACTOR = 1.0
ALIE_DEVIATIONS_MIN = 1.5
"""With few attackers the paper's formula gives no deviation at all: its attack would be to send the mean."""

RANGE_SHARE = 0.9
"""Of the integers of a whole group: what an attacker takes for itself without making the sum wrap."""

_GATE_MARGIN = 1.0 - 1e-6


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What an attacker knows of a round.

    Args:
        honest: the honest clients' updates, (d,) float32 each, at least one.
        coordinates: (k,) positions that everybody sends, None for all d.
        attackers: f, how many clients attack.
        clipping_norm: C.
        members: n, of the attacker's group.
        norm_max: the largest norm that passes the gate; see `largest_norm`.
    """

    honest: Sequence[FloatVector]
    coordinates: Coordinates | None
    attackers: int
    clipping_norm: float
    members: int
    norm_max: float

    @cached_property
    def sent(self) -> npt.NDArray[np.float32]:
        """What the honest clients send, (clients, k): selected, clipped, not yet rounded."""
        chosen = [self.select(update) for update in self.honest]
        return np.stack([values * np.float32(clip_factor(l2_norm(values), self.clipping_norm)) for values in chosen])

    @cached_property
    def mean(self) -> FloatVector:
        """Mean of `sent`, (k,)."""
        mean: FloatVector = self.sent.mean(axis=0)
        return mean

    def select(self, update: FloatVector) -> FloatVector:
        """The values of an update (d,) that are sent, (k,)."""
        return update if self.coordinates is None else update[self.coordinates]


def forge(attack: str, own: FloatVector, known: Knowledge, source: np.random.Generator) -> FloatVector:
    """Return the values that an attacker sends instead of its update.

    Args:
        attack: one of `MODEL_ATTACKS`.
        own: the update (d,) float32 that it would send if it were honest.
        known: the rest of the round.
        source: randomness of the noise.

    Returns:
        (k,) float32, not clipped.

    Raises:
        SettingsError: there is no such attack.
    """
    if attack not in MODEL_ATTACKS:
        raise SettingsError(f"attack: {attack!r} is none of {', '.join(MODEL_ATTACKS)}")
    return MODEL_ATTACKS[attack](own, known, source)


def sign_flip(own: FloatVector, known: Knowledge, source: np.random.Generator) -> FloatVector:
    """-10 times the honest update, as long as it is."""
    return known.select(own) * np.float32(SIGN_FLIP_FACTOR)


def noise(own: FloatVector, known: Knowledge, source: np.random.Generator) -> FloatVector:
    """Gaussian noise of about ten clipping norms."""
    count = known.sent.shape[1]
    deviation = NOISE_NORM * known.clipping_norm / math.sqrt(count)
    return np.asarray(source.normal(0.0, deviation, count), dtype=np.float32)


def max_norm(own: FloatVector, known: Knowledge, source: np.random.Generator) -> FloatVector:
    """Straight against the honest mean, as far as the gate allows."""
    length = l2_norm(known.mean)
    return known.mean * np.float32(-known.norm_max / length if length else 0.0)


def alie(own: FloatVector, known: Knowledge, source: np.random.Generator) -> FloatVector:
    """The honest mean less z standard deviations of every coordinate, shortened to what the gate lets through.

    z is the largest deviation at which enough honest clients are farther from the mean to make a majority with
    the attackers. Reference: Baruch et al. (2019), algorithm 3.
    """
    deviation = alie_deviations(len(known.honest), known.attackers)
    return _shortened(known.mean - np.float32(deviation) * known.sent.std(axis=0), known.norm_max)


def alie_deviations(honest: int, attackers: int) -> float:
    """Return z of Baruch et al. (2019), equation 3, for n = honest + attackers, but at least 1.5."""
    supporters = (honest + attackers) // 2 + 1 - attackers
    share = (honest - supporters) / honest
    return max(ALIE_DEVIATIONS_MIN, NormalDist().inv_cdf(share)) if 0.0 < share < 1.0 else ALIE_DEVIATIONS_MIN


def inner_product(own: FloatVector, known: Knowledge, source: np.random.Generator) -> FloatVector:
    """The honest mean turned around: as long as an honest mean, so nothing about its length is suspicious.

    Reference: Xie et al. (2020), section 4, with epsilon 1.
    """
    return known.mean * np.float32(-INNER_PRODUCT_FACTOR)


def fill_range(own: FloatVector, known: Knowledge, source: np.random.Generator) -> FloatVector:
    """Straight against the honest mean, as far as the integers of the whole group reach."""
    mean, largest = known.mean, float(np.abs(known.mean).max())
    reach = RANGE_SHARE * known.members * known.clipping_norm
    return mean * np.float32(-reach / largest if largest else 0.0)


Forgery = Callable[[FloatVector, Knowledge, np.random.Generator], FloatVector]

MODEL_ATTACKS: Mapping[str, Forgery] = {
    "sign-flip": sign_flip,
    "noise": noise,
    "max-norm": max_norm,
    "alie": alie,
    "inner-product": inner_product,
    "fill-range": fill_range,
}
DATA_ATTACKS = ("label-flip",)
"""These poison what is trained on (`FlippedLabels`); the update itself is made and sent as an honest one."""
ATTACKS = (*MODEL_ATTACKS, *DATA_ATTACKS)


class FlippedLabels(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A classification data set in which every label y has become classes - 1 - y."""

    def __init__(self, inner: Examples, classes: int) -> None:
        self._inner = inner
        self._classes = classes

    def __len__(self) -> int:
        return example_count(self._inner)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        features, target = self._inner[index]
        return features, self._classes - 1 - target


def encode_unclipped(values: FloatVector, form: SumFormat, *, weight: float, metrics: Mapping[str, float]) -> Words:
    """Write words without clipping: a value beyond most of the group's range of integers becomes its limit.

    (If the sum wrapped, the attack would be another one than was meant.) The bit says "clipped", which
    drives the clipping norm up.

    Args:
        values: (k,) float32, finite.
        form: what the words mean.
        weight: w in (0, 1], what the attacker claims.
        metrics: what it claims to have measured; beyond a bound they become the bound.

    Returns:
        (length,) words.
    """
    words: Words = np.empty(form.length, dtype=form.word_type)
    reach = RANGE_SHARE * form.levels
    scaled = np.rint(values.astype(np.float64) * (weight * form.scale))
    signed_view(words)[: form.count] = np.clip(scaled, -reach, reach)
    claimed = {name: max(-bound, min(bound, metrics[name])) for name, bound in form.metric_bounds}
    write_slots(words, form, weight, claimed, unclipped=False)
    return words


def largest_norm(form: SumFormat, weight: float) -> float:
    """Return how long one member's values may be to pass the norm gate of its group after `encode_unclipped`.

    In a group of one that is exact. In a larger one the others are taken to weigh as much and to send nothing: what
    they do send points away from an attack on the mean, and shortens it.
    """
    word = max(1, round(weight * form.weight_scale)) * form.members
    total = word / form.weight_scale
    limit = norm_limit(form, form.members, total) * total * form.scale  # in steps of values
    return (limit - math.sqrt(form.count) / 2.0) / (weight * form.scale) * _GATE_MARGIN


def _shortened(values: FloatVector, norm_max: float) -> FloatVector:
    return values * np.float32(clip_factor(l2_norm(values), norm_max))
