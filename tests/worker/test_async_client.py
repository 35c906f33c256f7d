"""A client in asynchronous mode: its work outlives versions, an update counts once, and the older the less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.codec.quantize import open_mean, open_slots, read_words
from shared.effects import Publish
from shared.wire.group_messages import Roster, Shares
from shared.wire.messages import Offer
from tests.worker.builders import Client, client_plan, notes, only, words_of
from tests.worker.test_client import OF_THREE
from worker.events import (
    DropUpdate,
    GroupMessageArrived,
    LogMoved,
    StopTraining,
    Train,
)
from worker.signs_of_life import Phase
from worker.stored_update import TaskId


def buffered(max_staleness: int = 2, **fields: Any) -> Client:
    return Client(client_plan(round={"mode": "async", "max_staleness": max_staleness, "rounds": 20}, **fields))


def others_step(client: Client) -> list[Any]:
    """A version that is made without us."""
    client.draw(client.offer_of("client-1"))
    effects = client.do(LogMoved())
    client.change()
    return [*effects, *client.do(LogMoved())]


def test_training_goes_on_while_versions_pass_until_it_is_too_stale() -> None:
    client = buffered()
    client.to_training()

    for _ in range(2):
        assert only(StopTraining, others_step(client)) == []
        assert client.phase is Phase.TRAINING
    effects = others_step(client)
    assert len(only(StopTraining, effects)) == 1
    assert [order.task for order in only(Train, effects)] == [TaskId(3, 0)]


def test_the_offer_names_the_version_that_was_trained_on_and_its_head() -> None:
    client = buffered()
    head = client.book.chain.version_head
    order = client.to_training()
    others_step(client)

    (offer,) = client.said(Offer, client.do(client.trained(order)))
    assert (offer.trained_version, offer.trained_head) == (0, head)


def test_an_offer_waits_through_versions_and_void_draws_and_is_dropped_when_too_stale() -> None:
    client = buffered()
    client.to_offered()
    client.draw(client.offer_of("client-1"))
    client.book.void()
    assert only(Publish, client.do(LogMoved())) == []
    for _ in range(2):
        assert only(Publish, others_step(client)) == []
    assert client.phase is Phase.OFFERED

    effects = others_step(client)
    assert len(only(DropUpdate, effects)) == 1
    assert "late" in notes(effects)
    assert [order.task for order in only(Train, effects)] == [TaskId(3, 0)]


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_an_update_counts_less_the_staler_it_is_and_its_weight_does_not(staleness: int) -> None:
    client = buffered(max_staleness=3)
    finished = client.trained(client.to_training())
    client.do(finished)
    for _ in range(staleness):
        others_step(client)
    _, (roster,) = client.draw()

    (words,) = words_of(client, client.do(GroupMessageArrived(roster)))
    form = client.book.plan.sum_format(1, client.book.chain.clipping_norm)
    vector = read_words(words.body, form)
    slots = open_slots(vector, form, 1)
    assert slots.weight == pytest.approx(5 / client.book.plan.weight_records_max, rel=1e-3)
    expected = finished.values[client.book.reader.coordinates] / np.sqrt(1.0 + staleness)
    np.testing.assert_allclose(open_mean(vector, form, slots.weight), expected, atol=2e-3)


def test_after_its_update_left_it_trains_on_the_version_that_comes_of_the_draw() -> None:
    client = buffered()
    client.to_offered()
    others_step(client)
    _, (roster,) = client.draw()

    assert only(Train, client.do(GroupMessageArrived(roster))) == []
    client.change()
    assert [order.task for order in only(Train, client.do(LogMoved()))] == [TaskId(2, 0)]


def test_or_on_the_same_version_if_the_draw_was_void() -> None:
    client = buffered()
    client.to_offered()
    others_step(client)
    _, (roster,) = client.draw()
    client.do(GroupMessageArrived(roster))

    client.book.void()
    assert [order.task for order in only(Train, client.do(LogMoved()))] == [TaskId(1, 1)]


def in_a_group_that_stays_unfinished(client: Client) -> Roster:
    """It has dealt its shares; its update is unspent."""
    client.to_offered()
    roster = client.group_draw()
    assert len(client.said(Shares, client.do(GroupMessageArrived(roster)))) == 1
    return roster


@pytest.mark.parametrize("is_void", [True, False])
def test_a_group_that_ended_without_our_words_leaves_an_update_that_is_offered_with_fresh_keys(is_void: bool) -> None:
    client = buffered(**OF_THREE)
    in_a_group_that_stays_unfinished(client)
    (before,) = client.said(Offer, client.history)
    if is_void:
        client.book.void()
    else:
        client.change()

    (again,) = client.said(Offer, client.do(LogMoved()))
    assert (again.trained_version, again.trained_head) == (before.trained_version, before.trained_head)
    assert again.counter > before.counter
    assert again.keys != before.keys


def test_who_is_told_that_a_draw_took_its_offer_offers_again_once() -> None:
    client = buffered(**OF_THREE)
    client.to_offered()
    (first,) = client.said(Offer, client.history)
    told = client.task(drawn=first.counter)

    (again,) = client.said(Offer, client.do(told))
    assert again.counter > first.counter
    assert client.said(Offer, client.do(told)) == []
    assert client.phase is Phase.OFFERED


def test_an_offer_that_no_draw_took_is_left_alone_by_a_task() -> None:
    client = buffered(**OF_THREE)
    client.to_offered()

    assert client.said(Offer, client.do(client.task(drawn=0))) == []
    assert client.phase is Phase.OFFERED


def test_synchronous_rounds_do_not_mind_what_a_task_says_of_draws() -> None:
    client = Client(client_plan(**OF_THREE))
    client.to_offered()

    assert client.said(Offer, client.do(client.task(drawn=10))) == []


def test_a_restart_offers_the_unspent_update_of_an_earlier_version_again() -> None:
    client = buffered()
    client.to_offered()
    others_step(client)
    client.start()
    effects = client.do(client.task())

    (offer,) = client.said(Offer, effects)
    assert offer.trained_version == 0
    assert only(Train, effects) == []
