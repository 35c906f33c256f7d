"""Who holds which examples, when one data set plays the parts of many clients?

Cuts have to come out the same in every process and in every version of numpy, or clients would share examples with
each other. So the random numbers are those of `RandomState`, whose streams numpy has frozen.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.errors import SettingsError

Indices: TypeAlias = npt.NDArray[np.int64]
Features: TypeAlias = npt.NDArray[np.float32]

RECORDS_MIN = 8
"""Fewest examples that a client of a Dirichlet or quantity partition holds."""

PARTITIONS = "iid, dirichlet:ALPHA, labels:COUNT, quantity:ALPHA or features:NOISE"
"""The forms that `parse_partition` reads."""

_DRAWS_MAX = 1000

Kind: TypeAlias = Literal["iid", "dirichlet", "labels", "quantity", "features"]


@dataclass(frozen=True, slots=True)
class Partition:
    """A way to cut, with its one number: see `dirichlet`, `labels`, `quantity`, `add_noise`; "iid" has none."""

    kind: Kind
    number: float = 0.0


def parse_partition(text: str) -> Partition:
    """Read one of the forms in `PARTITIONS`, for example "dirichlet:0.5" or "labels:2".

    Raises:
        SettingsError: it is none of them, or its number is not what the form needs.
    """
    if text == "iid":
        return Partition("iid")
    kind, _, number = text.partition(":")
    match kind:
        case "labels":
            if re.fullmatch("[1-9][0-9]{0,8}", number) is None:
                raise SettingsError(f"partition: {text!r} needs how many labels a client holds, an integer from 1")
            return Partition("labels", int(number))
        case "dirichlet" | "quantity" | "features":
            return Partition(kind, _positive(text, number, "noise" if kind == "features" else "alpha"))
    raise SettingsError(f"partition: {text!r} is none of {PARTITIONS}")


def cut(targets: Indices, clients: int, partition: Partition, source: np.random.RandomState) -> list[Indices]:
    """Cut the examples with these labels among `clients`; "features" deals as "iid" and adds noise later."""
    match partition.kind:
        case "dirichlet":
            return dirichlet(targets, clients, partition.number, source)
        case "labels":
            return labels(targets, clients, int(partition.number), source)
        case "quantity":
            return quantity(len(targets), clients, partition.number, source)
        case "iid" | "features":
            return iid(len(targets), clients, source)


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


def dirichlet(targets: Indices, clients: int, alpha: float, source: np.random.RandomState) -> list[Indices]:
    """Deal each label's examples in proportions drawn from a symmetric Dirichlet distribution.

    Small alpha gives each client few labels; large alpha approaches `iid`. A draw that leaves a client with fewer
    than 8 examples is repeated.

    Args:
        targets: (n,) integers.

    Returns:
        For each client its ascending indices; together each of range(n) once.

    Raises:
        SettingsError: no draw gave every client 8 examples.

    Reference: Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution (2019), section 3.
    """
    _require_enough(len(targets), clients, RECORDS_MIN)
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    for _ in range(_DRAWS_MAX):
        bounds = [_bound(source.dirichlet([alpha] * clients), len(indices)) for indices in members]
        sizes = sum(_sizes(bound, len(indices)) for bound, indices in zip(bounds, members, strict=True))
        if np.min(sizes) >= RECORDS_MIN:
            return _deal(members, bounds, clients, source)
    raise _no_draw("dirichlet", alpha, clients, len(targets))


def labels(targets: Indices, clients: int, count: int, source: np.random.RandomState) -> list[Indices]:
    """Give each client exactly `count` labels, and each label's examples in equal parts to the clients that hold it.

    Clients choose in turn among the labels that the fewest hold so far, so the numbers of holders differ by one at
    most and no example is left over.

    Args:
        targets: (n,) integers.

    Returns:
        For each client its ascending indices; together each of range(n) once.

    Raises:
        SettingsError: there are fewer labels than `count`, a label would be nobody's, or a holder would get none.

    Reference: Li, Diao, Chen and He, Federated Learning on Non-IID Data Silos: An Experimental Study (2022),
    section 4.1, quantity-based label imbalance (#C = count).
    """
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    if not len(members) / clients <= count <= len(members):
        raise SettingsError(
            f"partition: labels:{count} cannot share out {len(members)} labels among {clients} clients; choose "
            f"{math.ceil(len(members) / clients)} to {len(members)}, so that every label is somebody's"
        )
    holders: list[list[int]] = [[] for _ in members]
    for client in range(clients):
        held = np.array([len(own) for own in holders])
        for label in np.lexsort((source.permutation(len(members)), held))[:count]:
            holders[label].append(client)
    hands: list[list[Indices]] = [[] for _ in range(clients)]
    for indices, own in zip(members, holders, strict=True):
        _require_enough(len(indices), len(own), 1)
        for client, part in zip(own, np.array_split(source.permutation(indices), len(own)), strict=True):
            hands[client].append(part)
    return _sorted(hands)


def quantity(count: int, clients: int, alpha: float, source: np.random.RandomState) -> list[Indices]:
    """Deal at random, as `iid`, but with sizes drawn from a symmetric Dirichlet distribution.

    A draw that leaves a client with fewer than 8 examples is repeated.

    Returns:
        For each client its ascending indices; together each of range(count) once.

    Raises:
        SettingsError: no draw gave every client 8 examples.

    Reference: Li, Diao, Chen and He (2022), as above, section 4.3, quantity skew.
    """
    _require_enough(count, clients, RECORDS_MIN)
    for _ in range(_DRAWS_MAX):
        bound = _bound(source.dirichlet([alpha] * clients), count)
        if np.min(_sizes(bound, count)) >= RECORDS_MIN:
            return [np.sort(part) for part in np.split(source.permutation(count).astype(np.int64), bound)]
    raise _no_draw("quantity", alpha, clients, count)


def add_noise(features: Features, client: int, clients: int, noise: float, seed: int) -> Features:
    """Return what client number `client` of `clients` (from 1) sees: Gaussian noise of variance noise·client/clients.

    Each client's noise is its own and the same in every process; the last client's is the strongest.

    Args:
        features: (n, ...) float32, not changed.
        noise: a variance, in the features' own unit squared.

    Reference: Li, Diao, Chen and He (2022), as above, section 4.2, noise-based feature imbalance.
    """
    source = np.random.RandomState([seed, client])
    deviation = math.sqrt(noise * client / clients)
    return (features + deviation * source.standard_normal(features.shape)).astype(np.float32)


def _positive(text: str, number: str, meaning: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0.0):
        raise SettingsError(f"partition: {text!r} needs a positive {meaning}; the forms are {PARTITIONS}")
    return value


def _bound(shares: npt.NDArray[np.float64], count: int) -> Indices:
    """Where to split `count` examples into these shares."""
    return np.floor(np.cumsum(shares)[:-1] * count).astype(np.int64)


def _sizes(bound: Indices, count: int) -> Indices:
    return np.diff(bound, prepend=0, append=count)


def _no_draw(kind: str, alpha: float, clients: int, count: int) -> SettingsError:
    return SettingsError(
        f"partition: no draw of {kind}:{alpha:g} gives each of {clients} clients {RECORDS_MIN} of {count} "
        "examples; choose a larger alpha or fewer clients"
    )


def _deal(members: list[Indices], bounds: list[Indices], clients: int, source: np.random.RandomState) -> list[Indices]:
    hands: list[list[Indices]] = [[] for _ in range(clients)]
    for indices, bound in zip(members, bounds, strict=True):
        for hand, part in zip(hands, np.split(source.permutation(indices), bound), strict=True):
            hand.append(part)
    return _sorted(hands)


def _sorted(hands: list[list[Indices]]) -> list[Indices]:
    return [np.sort(np.concatenate(hand)).astype(np.int64) for hand in hands]


def _require_enough(count: int, clients: int, each: int) -> None:
    if clients < 1 or clients * each > count:
        raise SettingsError(f"clients: {count} examples cannot be dealt to {clients} clients with {each} or more each")
