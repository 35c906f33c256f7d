"""What clients have spent at most, from who was drawn how often."""

from __future__ import annotations

import pytest

from coordinator.status.spending import Spending
from shared.privacy.accountant import epsilon_of
from tests.builders import tiny_plan
from tests.shared.test_plan_privacy import SOUND


def spent(updates: int) -> float:
    plan = tiny_plan(**SOUND)
    charge = plan.charge_of_run()
    assert charge is not None
    return epsilon_of([charge] * updates, 1e-4)


def test_without_privacy_there_is_nothing_to_tell() -> None:
    spending = Spending(tiny_plan())
    spending.drawn(["a", "b"])
    assert spending.figures() == {"epsilon_max": None, "epsilon_mean": None}


def test_every_draw_costs_those_who_were_in_it() -> None:
    spending = Spending(tiny_plan(**SOUND))
    assert spending.figures() == {"epsilon_max": None, "epsilon_mean": None}
    for clients in (["a", "b"], ["a", "b"], ["a"]):
        spending.drawn(clients)
    assert spending.figures() == {"epsilon_max": spent(3), "epsilon_mean": (spent(3) + spent(2)) / 2}


def test_of_an_earlier_session_it_is_known_that_everybody_may_have_been_there() -> None:
    spending = Spending(tiny_plan(**SOUND))
    spending.continue_from(10, {})
    spending.drawn(["a"])
    assert spending.figures()["epsilon_max"] == pytest.approx(spent(11), rel=1e-12)
