"""Who holds which examples, when one data set plays the parts of many clients?

Cuts have to come out the same in every process and in every version of numpy, or clients would share examples with
each other. So the random numbers are those of `RandomState`, whose streams numpy has frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.errors import SettingsError

Indices: TypeAlias = npt.NDArray[np.int64]

RECORDS_MIN = 8
"""Fewest examples that a client of a Dirichlet partition holds."""

_DRAWS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Partition:
    """A way to cut: evenly at random, or with labels skewed by a Dirichlet distribution of concentration `alpha`."""

    kind: Literal["iid", "dirichlet"]
    alpha: float = 0.0


def parse_partition(text: str) -> Partition:
    """Read "iid" or "dirichlet:<alpha>", for example "dirichlet:0.5".

    Raises:
        SettingsError: it is neither.
    """
    kind, _, number = text.partition(":")
    if text == "iid":
        return Partition("iid")
    try:
        alpha = float(number)
    except ValueError:
        alpha = math.nan
    if kind == "dirichlet" and math.isfinite(alpha) and alpha > 0.0:
        return Partition("dirichlet", alpha)
    raise SettingsError(f"partition: {text!r} is neither 'iid' nor 'dirichlet:<alpha>' with a positive alpha")


def cut(labels: Indices, clients: int, partition: Partition, source: np.random.RandomState) -> list[Indices]:
    """Cut the examples with these labels among `clients`; see `iid` and `dirichlet`."""
    if partition.kind == "iid":
        return iid(len(labels), clients, source)
    return dirichlet(labels, clients, partition.alpha, source)


def iid(count: int, clients: int, source: np.random.RandomState) -> list[Indices]:
    """Deal `count` examples at random; sizes differ by one at most.

    Returns:
        For each client its ascending indices; together each of range(count) once.

    Raises:
        SettingsError: there are more clients than examples.
    """
    _require_enough(count, clients, 1)
    order = source.permutation(count).astype(np.int64)
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet(labels: Indices, clients: int, alpha: float, source: np.random.RandomState) -> list[Indices]:
    """Deal each label's examples in proportions drawn from a symmetric Dirichlet distribution.

    Small alpha gives each client few labels; large alpha approaches `iid`. A draw that leaves a client with fewer
    than 8 examples is repeated.

    Args:
        labels: (n,) integers.

    Returns:
        For each client its ascending indices; together each of range(n) once.

    Raises:
        SettingsError: no draw gave every client 8 examples.

    Reference: Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution (2019), section 3.
    """
    _require_enough(len(labels), clients, RECORDS_MIN)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_DRAWS_MAX):
        shares = [source.dirichlet([alpha] * clients) for _ in members]
        bounds = [
            np.floor(np.cumsum(share)[:-1] * len(indices)).astype(np.int64)
            for share, indices in zip(shares, members, strict=True)
        ]
        sizes = sum(
            np.diff(bound, prepend=0, append=len(indices)) for bound, indices in zip(bounds, members, strict=True)
        )
        if np.min(sizes) >= RECORDS_MIN:
            return _deal(members, bounds, clients, source)
    raise SettingsError(
        f"partition: no draw of dirichlet:{alpha:g} gives each of {clients} clients {RECORDS_MIN} of {len(labels)} "
        "examples; choose a larger alpha or fewer clients"
    )


def _deal(members: list[Indices], bounds: list[Indices], clients: int, source: np.random.RandomState) -> list[Indices]:
    hands: list[list[Indices]] = [[] for _ in range(clients)]
    for indices, bound in zip(members, bounds, strict=True):
        for hand, part in zip(hands, np.split(source.permutation(indices), bound), strict=True):
            hand.append(part)
    return [np.sort(np.concatenate(hand)).astype(np.int64) for hand in hands]


def _require_enough(count: int, clients: int, each: int) -> None:
    if clients < 1 or clients * each > count:
        raise SettingsError(f"clients: {count} examples cannot be dealt to {clients} clients with {each} or more each")
