"""The scheduler in asynchronous mode: offers wait across versions, and nobody is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.events import GroupGivenUp, Tick
from shared.effects import Settle
from shared.errors import RefusalReason
from shared.wire.messages import ClientState
from tests.coordinator.builders import notes, only
from tests.coordinator.test_rounds import DEADLINE_S, Office, draws, summed


def office(clients: int = 6, **fields: Any) -> Office:
    return Office(clients, **{"mode": "async", "pool_size": 2, "max_staleness": 2, "cooldown": 1, **fields})


def drawn_in(effects: Any) -> list[str]:
    (made,) = draws(effects)
    return sorted(made.clients)


def next_version(one: Office, now: float = 2.0) -> list[Any]:
    return list(one.handle(one.change(), now))


def test_a_draw_takes_a_full_pool_at_once_and_waits_for_nobody() -> None:
    one = office()
    first, second = one.clients[:2]

    assert draws(one.offers([first], 1.0)) == []
    assert drawn_in(one.offers([second], 1.0)) == [first, second]


def test_an_offer_that_came_too_late_for_a_draw_waits_for_the_next_version() -> None:
    one = office()
    first, second, third, fourth = one.clients[:4]
    one.read_back(one.offers([first, second], 1.0), 1.0)
    late = one.desk.offer(third)
    assert only(Settle, one.handle(late, 1.5)) == []

    head = one.desk.chain.version_head
    assert notes(next_version(one)) == []
    assert drawn_in(one.offers([fourth], 3.0)) == [third, fourth]
    assert one.desk.chain.head_of(0) == head


def test_an_update_of_an_earlier_version_is_taken_and_a_stale_one_turned_away() -> None:
    one = office()
    head = one.desk.chain.version_head
    for version in range(3):
        one.read_back(one.offers(one.clients[:2], 1.0, counter=version + 1), 1.0)
        next_version(one)
        old = one.desk.offer(one.clients[3], version=0, head=head, counter=version + 1)
        effects = one.handle(old, 2.5)
        if version < 2:
            assert notes(effects) == []
        else:
            assert notes(effects) == [f"refused {RefusalReason.LATE}"]
            assert only(Settle, effects) == [Settle(old.receipt)]
        one.handle(one.desk.status(one.clients[3], ClientState.DRAINING), 2.5)
        one.join([one.clients[3]], 2.5)


def test_an_offer_that_grew_too_stale_in_the_pool_is_settled_and_counted() -> None:
    one = office(max_staleness=0)
    one.read_back(one.offers(one.clients[:2], 1.0), 1.0)
    waiting = one.desk.offer(one.clients[2])
    one.handle(waiting, 1.5)

    effects = next_version(one)
    assert Settle(waiting.receipt) in effects
    assert "refused late" in notes(effects)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 0, "head": b"x" * 32}, RefusalReason.WRONG_PARENT),
        ({"version": 1, "head": b"x" * 32}, RefusalReason.WRONG_PARENT),
        ({"version": 3}, RefusalReason.OUT_OF_RANGE),
    ],
)
def test_an_offer_of_a_model_that_our_log_does_not_hold(fields: dict[str, Any], reason: RefusalReason) -> None:
    one = office()
    one.read_back(one.offers(one.clients[:2], 1.0), 1.0)
    next_version(one)

    assert notes(one.handle(one.desk.offer(one.clients[3], **fields), 3.0)) == [f"refused {reason}"]


def test_after_a_draw_those_who_were_not_heard_are_told_that_it_took_their_offer() -> None:
    one = office()
    first, second = one.clients[:2]
    one.read_back(one.offers([first, second], 1.0, counter=7), 1.0)

    tasks = one.tasks(one.handle(one.void(), 2.0))
    assert [(task.client, task.drawn, task.attempt) for task in tasks] == [(first, 7, 1), (second, 7, 1)]
    # The others' offers were not drawn: nothing is said to them.
    assert one.tasks(next_draw_and_change(one)) == []


def next_draw_and_change(one: Office) -> list[Any]:
    """A draw whose members are all heard, and its step."""
    effects = one.offers(one.clients[2:4], 3.0)
    (made,) = draws(effects)
    one.read_back(effects, 3.0)
    for group in range(made.groups):
        one.handle(summed(made.entry, made.clients[group : group + 1], group=group), 3.5)
    return next_version(one, 4.0)


def test_offers_that_wait_survive_a_void_draw() -> None:
    one = office()
    one.read_back(one.offers(one.clients[:2], 1.0), 1.0)
    waiting = one.desk.offer(one.clients[2])
    one.handle(waiting, 1.5)

    assert Settle(waiting.receipt) not in one.handle(one.void(), 2.0)
    assert drawn_in(one.offers([one.clients[3]], 3.0)) == one.clients[2:4]


def test_a_client_rests_after_its_update_counted_but_not_after_a_void_draw() -> None:
    one = office(cooldown=2)
    pair = one.clients[:2]
    one.read_back(one.offers(pair, 1.0), 1.0)
    one.handle(one.void(), 2.0)
    effects = one.offers(pair, 3.0, counter=2)
    assert drawn_in(effects) == pair

    one.read_back(effects, 3.0)
    next_version(one, 4.0)
    assert draws(one.offers(pair, 5.0, counter=3)) == []
    effects = one.offers(one.clients[2:4], 5.0)
    assert drawn_in(effects) == one.clients[2:4]
    one.read_back(effects, 5.0)
    assert drawn_in(next_version(one, 6.0)) == pair


def test_nobody_is_lost_at_the_deadline_and_it_is_said_once_that_there_are_too_few() -> None:
    one = office(pool_size=4)
    one.offers(one.clients[:3], 1.0)

    told = [note for now in (1.0, 2.0, 3.0) for note in notes(one.handle(Tick(), now * DEADLINE_S))]
    assert told == ["waiting_for_clients"]
    assert one.scheduler.live == frozenset(one.clients)
    assert drawn_in(one.offers([one.clients[3]], 4 * DEADLINE_S)) == one.clients[:4]


def test_the_offer_of_a_client_that_fell_silent_is_not_drawn_until_it_is_heard() -> None:
    one = office()
    gone, *others = one.clients[:3]
    one.offers([gone], 1.0)
    one.handle(GroupGivenUp(draw=bytes(32), group=0, silent=(gone,), blamed=(), reason="test"), 1.0)

    assert draws(one.offers(others[:1], 2.0)) == []
    assert drawn_in(one.join([gone], 3.0)) == sorted([gone, others[0]])
