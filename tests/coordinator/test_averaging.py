"""The moving average of the versions is the sum that its docstring says."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.aggregator.averaging import WeightAverage


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_weighted_sum_of_all_versions(decay: float) -> None:
    source = np.random.default_rng(1)
    versions = [source.normal(size=7).astype(np.float32) for _ in range(40)]
    average = WeightAverage(decay)
    for count, version in enumerate(versions, 1):
        average.add(version)
        shares = np.array([decay ** (count - index) for index in range(1, count + 1)])
        expected = np.average(np.array(versions[:count], np.float64), axis=0, weights=shares)
        assert average.weights is not None
        assert average.weights.dtype == np.float32
        np.testing.assert_allclose(average.weights, expected, atol=2e-6)


def test_without_decay_it_is_the_newest_version_itself() -> None:
    average = WeightAverage(0.0)
    assert average.weights is None
    for version in (np.ones(3, np.float32), np.zeros(3, np.float32)):
        average.add(version)
        assert average.weights is version


def test_no_version_and_no_average_given_out_is_changed() -> None:
    average, given = WeightAverage(0.5), []
    versions = [np.full(3, value, np.float32) for value in (1, 2, 3)]
    for version in versions:
        average.add(version)
        assert average.weights is not None
        given.append((average.weights, average.weights.copy()))

    assert [version[0] for version in versions] == [1, 2, 3]
    assert all(np.array_equal(array, copy) for array, copy in given)
