"""The odds of more attacked groups than can be trimmed, against counting every case."""

from __future__ import annotations

from itertools import combinations

import pytest

from shared.attack_odds import attack_odds
from shared.crypto.draw import cut_groups


@pytest.mark.parametrize("clients", [3, 7, 9])
@pytest.mark.parametrize("group_size", [1, 2, 4])
@pytest.mark.parametrize("attackers", [0, 1, 2, 3])
@pytest.mark.parametrize("trim", [0, 1, 2])
def test_the_odds_are_those_of_counting_every_case(clients: int, group_size: int, attackers: int, trim: int) -> None:
    groups = [set(group) for group in cut_groups(clients, group_size)]
    cases = [set(chosen) for chosen in combinations(range(clients), attackers)]
    harmful = sum(sum(bool(group & case) for group in groups) > trim for case in cases)

    assert attack_odds(clients, group_size, attackers, trim) == pytest.approx(harmful / len(cases))


def test_groups_of_one_are_attacked_by_one_attacker_each() -> None:
    assert [attack_odds(20, 1, attackers, 2) for attackers in (1, 2, 3)] == [0.0, 0.0, 1.0]


def test_ten_thousand_clients_are_counted_too() -> None:
    assert 0.0 < attack_odds(10_000, 8, 5, 4) < 1.0
