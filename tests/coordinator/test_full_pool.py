"""Asynchronous mode's rule of the draw: when the pool is full, who rests, and when rest ends early."""

from __future__ import annotations

import random
from typing import Any

import pytest

from coordinator.scheduler.full_pool import FullPool, cooldown, pool_size
from shared.plan import Plan
from tests.builders import tiny_plan

NAMES = [f"client-{number}" for number in range(100)]


def buffered(group_size: int = 1, trim: int = 0, **fields: Any) -> Plan:
    aggregation = {"rule": "trimmed-mean", "trim": trim}
    return tiny_plan(round={"mode": "async", **fields}, aggregation=aggregation, group_size=group_size)


@pytest.mark.parametrize(
    ("plan", "live", "size", "rest"),
    [
        (buffered(), 100, 17, 2),
        (buffered(), 96, 16, 3),
        (buffered(group_size=4, trim=1), 20, 12, 1),
        (buffered(group_size=4, trim=1), 100, 17, 2),
        (buffered(), 1, 1, 1),
        (buffered(pool_size=5), 100, 5, 10),
        (buffered(pool_size=5, cooldown=4), 100, 5, 4),
    ],
)
def test_pool_and_cooldown_follow_the_live_clients_unless_they_are_set(
    plan: Plan, live: int, size: int, rest: int
) -> None:
    assert (pool_size(plan, live), cooldown(plan, live)) == (size, rest)


def test_a_full_pool_is_drawn_whole() -> None:
    rule = FullPool(buffered(pool_size=3))

    assert rule.chosen(NAMES[:2], NAMES, 0) == frozenset()
    assert rule.chosen(NAMES[:3], NAMES, 0) == frozenset(NAMES[:3])
    assert rule.chosen(NAMES[:5], NAMES, 0) == frozenset(NAMES[:5])


def test_fewer_live_clients_than_the_pool_holds_are_all_waited_for() -> None:
    rule = FullPool(buffered(pool_size=10))

    assert rule.chosen(NAMES[:3], NAMES[:4], 0) == frozenset()
    assert rule.chosen(NAMES[:4], NAMES[:4], 0) == frozenset(NAMES[:4])


def test_but_never_fewer_than_a_draw_needs() -> None:
    rule = FullPool(buffered(group_size=4, trim=1))

    assert rule.chosen(NAMES[:11], NAMES[:11], 0) == frozenset()
    assert rule.chosen(NAMES[:12], NAMES[:12], 0) == frozenset(NAMES[:12])


def test_who_counted_rests_for_so_many_versions() -> None:
    rule = FullPool(buffered(pool_size=2, cooldown=3))
    rule.counted(NAMES[:2], 5)

    for version in (6, 7):
        assert rule.chosen(NAMES[:3], NAMES, version) == frozenset()
        assert rule.chosen(NAMES[:4], NAMES, version) == frozenset(NAMES[2:4])
    assert rule.chosen(NAMES[:2], NAMES, 8) == frozenset(NAMES[:2])


def test_rest_ends_when_nobody_else_could_fill_the_pool() -> None:
    rule = FullPool(buffered(pool_size=3, cooldown=9))
    rule.counted(NAMES[:3], 0)

    # The fourth still trains: the pool waits for it.
    assert rule.chosen(NAMES[:3], NAMES[:4], 1) == frozenset()
    assert rule.chosen(NAMES[:4], NAMES[:4], 1) == frozenset(NAMES[:4])
    # One who rests may train meanwhile; that makes no difference.
    assert rule.chosen(NAMES[1:4], NAMES[:4], 1) == frozenset(NAMES[1:4])


def share_of(attackers: int, rest: int, draws: int = 200) -> float:
    """The share of all slots that clients fill who offer again at once, while the others take turns at random."""
    rule, dice = FullPool(buffered(pool_size=16, cooldown=rest)), random.Random(1)
    fast, others = set(NAMES[:attackers]), NAMES[attackers:]
    waiting, slots, filled = set(fast), 0, 0
    for version in range(draws):
        while not (drawn := rule.chosen(waiting, NAMES, version)):
            waiting.add(dice.choice(others))
        slots, filled = slots + len(drawn), filled + len(drawn & fast)
        rule.counted(drawn, version)
        waiting = waiting - drawn | fast
    return filled / slots


def test_whoever_offers_at_once_fills_no_more_slots_than_the_cooldown_leaves() -> None:
    assert share_of(attackers=4, rest=3) <= 0.084
    # Without a cooldown they would be in every draw.
    assert share_of(attackers=4, rest=1) == 4 / 16
