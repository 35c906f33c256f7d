"""Partitions deal every example once, the same way everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import SettingsError
from shared.workloads.partition import (
    PARTITIONS,
    RECORDS_MIN,
    Partition,
    add_noise,
    cut,
    dirichlet,
    iid,
    labels,
    parse_partition,
    quantity,
)

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


@settings(max_examples=50)
@given(st.integers(1, 30), st.data(), st.integers(0, 2**32 - 1))
def test_labels_gives_every_client_so_many_and_every_label_equally_many_holders(
    clients: int, data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(-(-10 // clients), 10))

    shares = labels(LABELS, clients, count, source(seed))

    assert len(shares) == clients
    assert_dealt(shares, len(LABELS))
    assert {len(np.unique(LABELS[share])) for share in shares} == {count}
    holders = np.bincount(np.concatenate([np.unique(LABELS[share]) for share in shares]), minlength=10)
    assert holders.max() - holders.min() <= 1
    for label in range(10):
        parts = [size for share in shares if (size := np.count_nonzero(LABELS[share] == label))]
        assert max(parts) - min(parts) <= 1


def test_labels_mixes_who_shares_labels_with_whom() -> None:
    pairs = {tuple(np.unique(LABELS[share])) for share in labels(LABELS, 40, 2, source(0))}

    assert len(pairs) > 15


@settings(max_examples=30)
@given(st.integers(1, 20), st.sampled_from([0.5, 1.0, 100.0]), st.integers(0, 2**32 - 1))
def test_quantity_deals_everything_and_leaves_nobody_short(clients: int, alpha: float, seed: int) -> None:
    shares = quantity(1440, clients, alpha, source(seed))

    assert len(shares) == clients
    assert_dealt(shares, 1440)
    assert min(map(len, shares)) >= RECORDS_MIN


def test_quantity_skews_sizes_and_not_labels() -> None:
    def ratio(alpha: float) -> float:
        sizes = [len(share) for share in quantity(1440, 10, alpha, source(0))]
        return max(sizes) / min(sizes)

    assert ratio(0.5) > 5.0
    assert ratio(10_000.0) < 1.2
    largest = max(quantity(1440, 10, 0.5, source(0)), key=len)
    assert np.bincount(LABELS[largest]).max() < 0.2 * len(largest)


def test_noise_grows_with_the_clients_number() -> None:
    clean = np.full((500, 40), 0.5, dtype=np.float32)

    noises = [add_noise(clean, client, 4, 0.36, 7) - clean for client in (1, 2, 3, 4)]

    assert [noise.dtype for noise in noises] == [np.float32] * 4
    # 20,000 values: the estimate of a variance is off by 1 % (one standard deviation); 5 % is 5 of these.
    assert [float(noise.var()) for noise in noises] == pytest.approx([0.09, 0.18, 0.27, 0.36], rel=0.05)
    assert all(abs(float(noise.mean())) < 0.03 for noise in noises)
    assert np.all(clean == 0.5)


def test_noise_is_a_clients_own_and_always_the_same() -> None:
    clean = np.zeros((3, 5), dtype=np.float32)

    assert np.array_equal(add_noise(clean, 2, 4, 1.0, 7), add_noise(clean, 2, 4, 1.0, 7))
    for client, seed in ((3, 7), (2, 8)):
        other = add_noise(clean, client, 4, 4 * 0.5 / client, seed)  # as strong as client 2's
        assert not np.allclose(other, add_noise(clean, 2, 4, 1.0, 7))


def test_a_seed_gives_the_same_partition_in_every_version_of_numpy() -> None:
    # Made by this code with numpy 2.4; RandomState's streams are frozen since numpy 1.17. A change here would give
    # running federations other shares.
    assert digest(iid(1440, 20, source(0))) == "e4df268cb830d40a"
    assert digest(dirichlet(LABELS, 20, 0.5, source(0))) == "7f8544341bd53adb"
    assert digest(labels(LABELS, 20, 2, source(0))) == "41edfed98fa3308a"
    assert digest(quantity(1440, 20, 0.5, source(0))) == "cd5e705819be4000"
    # numpy.random.RandomState([7, 2]).standard_normal(3) * sqrt(2 / 4), by hand:
    assert add_noise(np.zeros((1, 3), np.float32), 2, 4, 1.0, 7)[0].tolist() == pytest.approx(
        [-0.5600177, 0.3269673, 0.3721240], rel=1e-5
    )


def test_seeds_give_different_partitions() -> None:
    assert len({digest(dirichlet(LABELS, 5, 1.0, source(seed))) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("text", "partition", "shares"),
    [
        ("iid", Partition("iid"), iid(1440, 5, source(1))),
        ("dirichlet:0.5", Partition("dirichlet", 0.5), dirichlet(LABELS, 5, 0.5, source(1))),
        ("labels:2", Partition("labels", 2), labels(LABELS, 5, 2, source(1))),
        ("quantity:2", Partition("quantity", 2.0), quantity(1440, 5, 2.0, source(1))),
        ("features:0.1", Partition("features", 0.1), iid(1440, 5, source(1))),
    ],
)
def test_names_of_partitions(text: str, partition: Partition, shares: list[np.ndarray]) -> None:
    assert parse_partition(text) == partition
    assert digest(cut(LABELS, 5, partition, source(1))) == digest(shares)
    assert text.partition(":")[0] in PARTITIONS


@pytest.mark.parametrize("number", ["", ":", ":x", ":0", ":-1", ":inf", ":nan"])
def test_a_number_that_means_nothing_is_refused(number: str) -> None:
    for kind, needed in (
        ("dirichlet", "positive alpha"),
        ("quantity", "positive alpha"),
        ("features", "positive noise"),
        ("labels", "an integer from 1"),
    ):
        with pytest.raises(SettingsError, match=rf"^partition: '{kind}{number}' needs .*{needed}"):
            parse_partition(kind + number)


@pytest.mark.parametrize("text", ["", "IID", "iid:1", "uniform", "labels:2.5", "labels:-2", "labels:²"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=f"^partition: '{text}'"):
        parse_partition(text)


@pytest.mark.parametrize(("clients", "count", "choice"), [(4, 2, "3 to 10"), (20, 11, "1 to 10")])
def test_labels_that_cannot_be_shared_out_are_refused(clients: int, count: int, choice: str) -> None:
    with pytest.raises(SettingsError, match=rf"^partition: labels:{count} .*{clients} clients; choose {choice}"):
        labels(LABELS, clients, count, source(0))


def test_too_many_clients_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"^clients:"):
        iid(3, 4, source(0))
    with pytest.raises(SettingsError, match=r"^clients:"):
        iid(3, 0, source(0))
    with pytest.raises(SettingsError, match=r"^clients:"):
        dirichlet(LABELS[:39], 5, 1.0, source(0))
    with pytest.raises(SettingsError, match=r"^clients:"):
        quantity(39, 5, 1.0, source(0))
    with pytest.raises(SettingsError, match=r"^clients:"):
        labels(LABELS, 1000, 2, source(0))


def test_a_partition_that_hardly_exists_ends_in_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^partition: .*larger alpha or fewer clients"):
        dirichlet(LABELS, 150, 0.05, source(0))
    with pytest.raises(SettingsError, match=r"^partition: .*quantity:0.05 .*larger alpha or fewer clients"):
        quantity(1440, 150, 0.05, source(0))
