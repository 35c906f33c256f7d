"""Partitions deal every example once, the same way everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import SettingsError
from shared.workloads.partition import RECORDS_MIN, Partition, cut, dirichlet, iid, parse_partition

LABELS = np.repeat(np.arange(10), 144)


def source(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


def assert_dealt(shares: list[np.ndarray], count: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(count))
    assert all(np.array_equal(share, np.sort(share)) for share in shares)


def digest(shares: list[np.ndarray]) -> str:
    return hashlib.sha256(b"|".join(share.astype("<i8").tobytes() for share in shares)).hexdigest()[:16]


@settings(max_examples=50)
@given(st.integers(1, 300), st.data(), st.integers(0, 2**32 - 1))
def test_iid_deals_everything_in_equal_shares(count: int, data: st.DataObject, seed: int) -> None:
    clients = data.draw(st.integers(1, count))

    shares = iid(count, clients, source(seed))

    assert_dealt(shares, count)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(max_examples=30)
@given(st.integers(1, 25), st.sampled_from([0.1, 0.5, 1.0, 100.0]), st.integers(0, 2**32 - 1))
def test_dirichlet_deals_everything_and_leaves_nobody_short(clients: int, alpha: float, seed: int) -> None:
    shares = dirichlet(LABELS, clients, alpha, source(seed))

    assert len(shares) == clients
    assert_dealt(shares, len(LABELS))
    assert min(map(len, shares)) >= RECORDS_MIN


def test_small_alpha_skews_labels_and_large_alpha_does_not() -> None:
    def largest_label_share(alpha: float) -> float:
        shares = dirichlet(LABELS, 20, alpha, source(0))
        return float(np.mean([np.bincount(LABELS[share]).max() / len(share) for share in shares]))

    assert largest_label_share(0.1) > 0.5
    assert largest_label_share(1000.0) < 0.2


def test_a_seed_gives_the_same_partition_in_every_version_of_numpy() -> None:
    # Made by this code with numpy 2.4; RandomState's streams are frozen since numpy 1.17. A change here would give
    # running federations other shares.
    assert digest(iid(1440, 20, source(0))) == "e4df268cb830d40a"
    assert digest(dirichlet(LABELS, 20, 0.5, source(0))) == "7f8544341bd53adb"


def test_seeds_give_different_partitions() -> None:
    assert len({digest(dirichlet(LABELS, 5, 1.0, source(seed))) for seed in range(5)}) == 5


def test_names_of_partitions() -> None:
    assert parse_partition("iid") == Partition("iid")
    assert parse_partition("dirichlet:0.5") == Partition("dirichlet", 0.5)
    assert digest(cut(LABELS, 4, Partition("iid"), source(1))) == digest(iid(1440, 4, source(1)))
    assert digest(cut(LABELS, 4, Partition("dirichlet", 2.0), source(1))) == digest(
        dirichlet(LABELS, 4, 2.0, source(1))
    )


@pytest.mark.parametrize("alpha", ["", ":", ":x", ":0", ":-1", ":inf", ":nan"])
def test_a_dirichlet_without_a_positive_alpha_is_refused(alpha: str) -> None:
    with pytest.raises(SettingsError, match=r"^partition: .*positive alpha"):
        parse_partition(f"dirichlet{alpha}")


@pytest.mark.parametrize("text", ["", "IID", "iid:1", "uniform"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^partition: .*iid.*dirichlet"):
        parse_partition(text)


def test_too_many_clients_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"^clients:"):
        iid(3, 4, source(0))
    with pytest.raises(SettingsError, match=r"^clients:"):
        iid(3, 0, source(0))
    with pytest.raises(SettingsError, match=r"^clients:"):
        dirichlet(LABELS[:39], 5, 1.0, source(0))


def test_a_partition_that_hardly_exists_ends_in_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^partition: .*larger alpha or fewer clients"):
        dirichlet(LABELS, 150, 0.05, source(0))
