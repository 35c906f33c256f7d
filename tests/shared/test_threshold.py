"""The threshold is the smallest number that keeps two answers of one group apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.threshold import threshold
from shared.errors import PlanError


def test_one_colluder_is_stood_with_these_dropouts() -> None:
    tolerated = {members: members - threshold(members, 1) for members in range(3, 9)}

    assert tolerated == {3: 0, 4: 1, 5: 1, 6: 2, 7: 2, 8: 3}


@given(st.integers(2, 200), st.integers(0, 60), st.integers(0, 100))
def test_it_is_the_smallest_that_holds_all_conditions(members: int, colluders: int, percent: int) -> None:
    def holds(t: int) -> bool:
        return 2 * t > members + colluders and t - colluders >= 2 and 100 * t >= percent * members

    sound = [t for t in range(members + 1) if holds(t)]
    if sound:
        assert threshold(members, colluders, percent / 100) == sound[0]
    else:
        with pytest.raises(PlanError, match="max_colluders"):
            threshold(members, colluders, percent / 100)


def test_small_groups() -> None:
    assert threshold(1, 0) == 1
    assert threshold(1, 0, 0.8) == 1
    assert threshold(2, 0) == 2
    for members, colluders in ((1, 1), (2, 1), (3, 2)):
        with pytest.raises(PlanError, match="colluders"):
            threshold(members, colluders)


def test_noise_shares_need_four_fifths() -> None:
    assert [threshold(members, 1, 0.8) for members in (5, 8, 10, 16)] == [4, 7, 8, 13]
    assert threshold(25, 0, 0.56) == 14


@pytest.mark.parametrize(("members", "colluders", "fraction"), [(0, 0, 0.0), (4, -1, 0.0), (4, 1, 1.1), (4, 1, -0.1)])
def test_numbers_out_of_range_are_refused(members: int, colluders: int, fraction: float) -> None:
    with pytest.raises(PlanError):
        threshold(members, colluders, fraction)
