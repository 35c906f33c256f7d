"""Dishonest clients in a whole federation: what the gates and the robust rule make of them."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.demo.attacker import Attacker
from deploy.demo.attacks import ATTACKS
from deploy.demo.options import DemoOptions
from deploy.demo.report import Run
from shared.errors import SettingsError
from shared.workloads.digits import Digits
from tests.simulated import notes_of

FEDERATION = {"clients": 8, "processes": 1, "partition": "iid", "attackers": 1, "group_size": 1}


def simulate(**options: Any) -> dict[str, Any]:
    run = Run("memory", "in-process")
    for note in notes_of(DemoOptions(**FEDERATION | options)):
        run.hear(note.event, note.fields)
    return run.report()


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_runs_and_no_honest_group_is_rejected(attack: str) -> None:
    report = simulate(attack=attack, rounds=2)

    assert report["final"]["model_version"] == 2
    assert report["final"]["honest_groups_rejected"] == 0
    assert [attacker["id"] for attacker in report["attackers"]] == ["client-001"]
    # These do not care whether they are found out.
    expected = 2 if attack in ("sign-flip", "noise", "fill-range") else 0
    assert report["attackers"][0]["rejected"] == expected
    assert [one["groups_rejected"] for one in report["rounds"]] == [expected // 2] * 2


def test_labels_are_flipped_where_the_coordinator_has_no_data_too() -> None:
    class Blind(Digits):
        def evaluation_data(self) -> None:  # type: ignore[override]
            return None

    workload = Blind(partition="iid", clients=2)
    poisoned = Attacker("label-flip", ("client-001",), ["client-002"], 0).poison(workload)
    own, flipped = workload.client_data("client-001", None), poisoned.client_data("client-001", None)
    assert all(int(flipped[place][1]) == 9 - int(own[place][1]) for place in range(20))


def test_what_the_rule_and_the_gates_prevent() -> None:
    robust = simulate(rounds=10, density=1.0)
    control = simulate(rounds=10, density=1.0, robust="mean", gates="off")

    assert robust["final"]["accuracy"] > 0.8
    assert control["final"]["accuracy"] < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attackers": 8}, "attackers: must be 0 to 7, not 8"),
        ({"attack": "bribery"}, "attack: must be one of sign-flip, .*, not 'bribery'"),
        ({"attackers": 0, "attack": "noise"}, "attack has no effect without attackers; add --attackers K"),
        ({"gates": "maybe"}, "gates: must be on or off, not 'maybe'"),
        ({"drop": 7}, "drop: must be 0 to 6, not 7"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DemoOptions(**FEDERATION | options)
