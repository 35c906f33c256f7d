"""A group whose members all answer."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.events import GroupSummed
from tests.protocol.circle import Circle


@pytest.mark.parametrize("members", [3, 4, 5, 8])
def test_the_sum_of_all_is_opened_to_the_last_bit(members: int) -> None:
    circle = Circle(members)
    circle.start()
    circle.run()
    (result,) = circle.results
    assert isinstance(result, GroupSummed)
    assert (result.arrived, result.dropped, result.blamed) == (circle.clients, (), ())
    np.testing.assert_array_equal(result.words, circle.plain_sum(circle.clients))
