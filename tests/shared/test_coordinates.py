"""Everybody selects the same coordinates, and the server scales them right."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import coordinates
from shared.codec.coordinates import coordinate_count, coordinates_digest, random_seed, rescale, select_coordinates
from shared.errors import LocalProtocolError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "coordinates.json").read_text(encoding="utf-8"))


def slow_reference(seed: bytes, dimension: int, count: int) -> list[int]:
    """Sort all (word, position) pairs as Python integers."""
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(8 * dimension))
    words = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(dimension)]
    return sorted(sorted(range(dimension), key=lambda i: (words[i], i))[:count])


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['count']}-of-{case['dimension']}")
def test_golden_vectors(case: dict[str, object]) -> None:
    dimension, count = int(str(case["dimension"])), int(str(case["count"]))

    selected = select_coordinates(bytes.fromhex(str(case["seed"])), dimension, count)

    assert coordinates_digest(selected, dimension).hex() == case["digest"]
    if "coordinates" in case:
        assert selected.tolist() == case["coordinates"]


@settings(max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 400), st.data())
def test_agrees_with_sorting_everything(seed: bytes, dimension: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, dimension))

    selected = select_coordinates(seed, dimension, count)

    assert selected.dtype == np.int64
    assert selected.tolist() == slow_reference(seed, dimension, count)


def test_the_threshold_decides_the_work_but_not_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = bytes(range(32))
    expected = select_coordinates(seed, 50_000, 500).tolist()

    for threshold in (0, 2**50, 2**64 - 1):
        monkeypatch.setattr(coordinates, "_threshold", lambda *_, fixed=threshold: fixed)
        assert select_coordinates(seed, 50_000, 500).tolist() == expected


def test_of_equal_words_the_lower_position_wins() -> None:
    words = np.array([7, 3, 7, 7, 1, 7], dtype=np.uint64)
    positions = np.array([10, 20, 30, 40, 50, 60], dtype=np.int64)

    assert coordinates._smallest(positions, words, 4).tolist() == [10, 20, 30, 50]


def test_every_coordinate_is_equally_likely() -> None:
    # 400 selections of 30 out of 100: each position is chosen 120 times on average with deviation 9.2. A fair
    # selection leaves 6 deviations for one of 100 positions with probability 2e-7.
    counts = np.zeros(100)
    for version in range(400):
        counts[select_coordinates(random_seed(version.to_bytes(32, "big"), "test"), 100, 30)] += 1

    assert np.abs(counts - 120).max() < 6 * 9.2


def test_memory_grows_with_the_selection_and_not_with_the_model() -> None:
    tracemalloc.start()
    try:
        select_coordinates(bytes(32), 4_000_000, 4_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 4 * 2**20  # all words at once would take 32 MB


@pytest.mark.parametrize(("seed", "dimension", "count"), [(bytes(16), 10, 1), (bytes(32), 10, 0), (bytes(32), 10, 11)])
def test_what_cannot_be_selected_is_refused(seed: bytes, dimension: int, count: int) -> None:
    with pytest.raises(LocalProtocolError):
        select_coordinates(seed, dimension, count)


def test_seeds_depend_on_entry_and_purpose() -> None:
    seeds = {random_seed(entry, purpose) for entry in (b"a" * 32, b"b" * 32) for purpose in ("draw", "coordinates")}

    assert len(seeds) == 4
    assert {len(seed) for seed in seeds} == {32}


def test_digests_tell_selections_and_dimensions_apart() -> None:
    selected = np.array([1, 5], dtype=np.int64)

    digests = {coordinates_digest(selected, 10), coordinates_digest(selected, 11), coordinates_digest(selected[:1], 10)}

    assert len(digests) == 3


def test_count_follows_density_but_is_never_zero() -> None:
    assert coordinate_count(1_000_000, 0.1) == 100_000
    assert coordinate_count(9610, 1.0) == 9610
    assert coordinate_count(5, 0.01) == 1
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(LocalProtocolError):
            coordinate_count(10, density)


def test_rescaling_makes_up_for_density_up_to_ten() -> None:
    assert rescale(1000, 1000) == 1.0
    assert rescale(9610, 961) == 10.0
    assert rescale(1000, 250) == 4.0
    assert rescale(1000, 10) == 10.0
