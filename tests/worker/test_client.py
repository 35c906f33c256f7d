"""One client's life: every phase, every event, and what must hold over any order of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec.positions import decode_positions
from shared.codec.quantize import open_mean, open_slots, read_words
from shared.effects import Note, Publish, Settle
from shared.errors import RefusalReason
from shared.privacy.accountant import epsilon_of
from shared.rounds import ground_of, transcript_of
from shared.wire.group_messages import Agreement, Reveal, Roster, Shares
from shared.wire.messages import ClientState, Offer
from tests.worker.builders import CLIENT, METRICS, PRIVATE, Client, D, client_plan, notes, only, statuses, words_of
from worker.client import OFFER_REPEAT_S
from worker.events import (
    CounterRaised,
    Drain,
    DropUpdate,
    Event,
    FollowLog,
    GroupMessageArrived,
    HandOver,
    Leave,
    LogMoved,
    Mismatch,
    RaiseCounter,
    SaveUpdate,
    SpendUpdate,
    StopTraining,
    Tick,
    Train,
    TrainingFailed,
    TrainingFinished,
    UpdateSaved,
    UpdateSpent,
)
from worker.member import ANSWERS_MAX
from worker.policy import Policy, PrivacyBudget
from worker.signs_of_life import STATUS_DEBOUNCE_S, STATUS_INTERVAL_S, Phase
from worker.stored_update import TaskId, UpdateId

PHASES = tuple(Phase)
AFTER_TRAINING = (Phase.SAVING, Phase.OFFERING, Phase.OFFERED, Phase.SHARING, Phase.SPENDING)
STANDING = (Phase.MISMATCH, Phase.OBJECTING, Phase.EXHAUSTED, Phase.DRAINED, Phase.RELEASED, Phase.LEFT)
Leaving = type[Drain | HandOver | Leave]
LEAVING: dict[Leaving, Phase] = {Drain: Phase.DRAINED, HandOver: Phase.RELEASED, Leave: Phase.LEFT}
# One that is handed over stays in the federation: the round waits for it.
FAREWELL: dict[Leaving, list[ClientState]] = {
    Drain: [ClientState.DRAINING],
    HandOver: [],
    Leave: [ClientState.LEAVING],
}
ALONE = Policy(allow_groups_of_one=True, min_members=1, min_summed=1)
OF_THREE: dict[str, Any] = {"group_size": 3, "max_colluders": 1}


def client_for(phase: Phase) -> Client:
    """A client whose plan and policy have this phase."""
    if phase in (Phase.CHARGING, Phase.EXHAUSTED):
        budget = PrivacyBudget(epsilon=0.01 if phase is Phase.EXHAUSTED else 100.0)
        return Client(client_plan(**PRIVATE), policy=ALONE.model_copy(update={"privacy_budget": budget}))
    return Client(client_plan(**OF_THREE) if phase is Phase.SHARING else None)


def to_phase(client: Client, phase: Phase) -> list[Any]:
    if phase in (Phase.MISMATCH, Phase.OBJECTING):
        client.do(Mismatch("no", by_policy=phase is Phase.OBJECTING))
        return []
    for leave, gone in LEAVING.items():
        if phase is gone:
            client.do(leave(at_once=True))
            return []
    return client.to(phase)


# ── a round ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_round_from_the_task_to_the_words() -> None:
    client = Client()
    effects = client.handle(client.task(snapshot_offset=7))
    assert only(FollowLog, effects) == [FollowLog(7)]
    assert len(only(Settle, effects)) == 1
    (order,) = only(Train, effects)
    assert order.task == TaskId(0, 0)
    assert order.weights is client.book.reader.weights

    finished = client.trained(effects)
    (save,) = only(SaveUpdate, client.handle(finished))
    assert save.values is finished.values
    assert (save.meta.task, save.meta.trained_head, save.meta.num_examples) == (
        TaskId(0, 0), client.book.chain.version_head, 5,
    )  # fmt: skip
    (offer,) = client.said(Offer, client.disk([save]))
    assert (offer.attempt, offer.trained_version, offer.trained_head) == (0, 0, client.book.chain.version_head)
    assert (offer.counter, offer.worker) == (client.state.counter, "w-0")

    _, (roster,) = client.draw()
    effects = client.handle(GroupMessageArrived(roster))
    assert only(Publish, effects) == []
    assert only(SpendUpdate, effects) == [SpendUpdate(UpdateId(1))]
    effects = client.disk(effects)
    (words,) = words_of(client, effects)
    ground = ground_of(client.book.reader, roster.draw)
    assert words.transcript == transcript_of(ground, roster.draw, 0, roster.group)
    (publish,) = only(Publish, effects)
    assert (publish.exchange, publish.routing_key, publish.persistent) == ("test.up", "reply.stage-1.site-0", False)

    form = client.book.plan.sum_format(1, client.book.chain.clipping_norm)
    vector = read_words(words.body, form)
    slots = open_slots(vector, form, 1)
    assert slots.weight == pytest.approx(5 / client.book.plan.weight_records_max, rel=1e-3)
    assert slots.metrics["loss"] == pytest.approx(METRICS["loss"], rel=1e-2)
    expected = finished.values[client.book.reader.coordinates]
    np.testing.assert_allclose(open_mean(vector, form, slots.weight), expected, atol=2e-3)

    client.change()
    effects = client.do(LogMoved())
    assert [order.task for order in only(Train, effects)] == [TaskId(1, 0)]


@pytest.mark.parametrize("selection", ["random", "restricted"])
def test_only_restricted_training_is_told_the_rounds_coordinates(selection: str) -> None:
    client = Client(client_plan(codec={"selection": selection, "density": 0.5}))
    (order,) = only(Train, client.handle(client.task()))
    coordinates = client.book.reader.coordinates
    assert coordinates is not None
    assert order.coordinates is (coordinates if selection == "restricted" else None)


TOP_K = {"selection": "top_k", "density": 0.25, "bits": 32, "clipping_norm": 4.0}


def test_with_top_k_the_largest_values_leave_with_their_positions_and_the_rest_stays_owed() -> None:
    client = Client(client_plan(codec=TOP_K))
    plan, form = client.book.plan, client.book.plan.sum_format(1, 4.0)
    effects, _ = client.to_in_group()
    (words,) = words_of(client, effects)
    (spend,) = only(SpendUpdate, client.history)
    update = only(SaveUpdate, client.history)[0].values

    body = memoryview(words.body)
    vector = read_words(body[: -plan.positions_bytes], form)
    positions = decode_positions(body[-plan.positions_bytes :], plan.dimension, 2)
    assert positions.tolist() == sorted(np.argsort(-np.abs(update), kind="stable")[:2].tolist())
    weight = open_slots(vector, form, 1).weight
    np.testing.assert_allclose(open_mean(vector, form, weight), update[positions], atol=1e-6)
    owed = 0.9 * update
    owed[positions] = 0
    np.testing.assert_allclose(spend.residual, owed, atol=1e-6)
    assert np.array_equal(client.state.residual(), spend.residual)

    # The next update is late: nothing of it has left, so all of it is owed, also by the process that comes after.
    client.change()
    late = client.trained(client.do(LogMoved()))
    client.do(late)
    client.book.step(np.ones(D, np.float32))
    (drop,) = only(DropUpdate, client.do(LogMoved()))
    np.testing.assert_allclose(drop.residual, 0.9 * (owed + late.values), atol=1e-6)
    client.start()
    assert client.state.unspent() is None
    assert np.array_equal(client.state.residual(), drop.residual)


def test_after_the_last_round_nothing_is_trained() -> None:
    client = Client(client_plan(round={"rounds": 1}))
    client.to_in_group()
    client.change()

    assert only(Train, client.do(LogMoved())) == []
    assert client.phase is Phase.IDLE


def test_with_a_cohort_only_a_task_for_the_present_round_trains() -> None:
    client = Client(client_plan(round={"rounds": 9, "cohort_size": 1}))
    client.to_in_group()
    client.change()
    assert only(Train, client.do(LogMoved())) == []

    assert [order.task for order in only(Train, client.do(client.task()))] == [TaskId(1, 0)]
    assert only(Train, client.do(client.task())) == []


def test_nothing_is_trained_while_a_draw_is_open() -> None:
    client = Client()
    client.to_idle()
    assert only(Train, client.history) == []

    client.book.void()
    assert [order.task for order in only(Train, client.do(LogMoved()))] == [TaskId(0, 1)]


def test_a_log_that_is_still_being_read_trains_nothing_old() -> None:
    client = Client()
    assert only(Train, client.do(client.task(version=2))) == []
    client.book.step(np.ones(D, np.float32))
    assert only(Train, client.do(LogMoved())) == []

    client.book.step(np.ones(D, np.float32))
    assert [order.task for order in only(Train, client.do(LogMoved()))] == [TaskId(2, 0)]


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fields",
    [
        {"values": np.full(D, np.nan, np.float32)},
        {"values": np.full(D, np.inf, np.float32)},
        {"metrics": {}},
        {"metrics": {"loss": float("nan")}},
    ],
)
def test_an_update_that_can_never_be_sent_fails_before_any_group_waits_for_it(fields: dict[str, Any]) -> None:
    client = Client()
    effects = client.handle(client.trained(client.to_training(), **fields))

    assert only(SaveUpdate, effects) == []
    assert notes(effects) == ["training_failed"]
    (status,) = statuses(client, effects)
    assert status.state is ClientState.TRAINING_FAILED
    assert ("finite" in status.reason) is True


def test_a_failed_run_is_told_once_and_the_next_version_is_tried() -> None:
    client = Client()
    client.to_training()
    effects = client.handle(TrainingFailed(TaskId(0, 0), "disk full"))
    assert [(s.state, s.reason) for s in statuses(client, effects)] == [(ClientState.TRAINING_FAILED, "disk full")]
    assert only(Train, [*client.do(client.task()), *client.do(LogMoved())]) == []

    client.book.step(np.ones(D, np.float32))
    assert [order.task for order in only(Train, client.do(LogMoved()))] == [TaskId(1, 0)]
    assert [s.state for s in statuses(client, client.handle(Tick(), STATUS_DEBOUNCE_S))] == [ClientState.TRAINING]


def test_the_detail_of_a_failure_stays_in_the_workers_log() -> None:
    client = Client()
    client.to_training()
    effects = client.handle(TrainingFailed(TaskId(0, 0), "KeyError", "KeyError: 'Doe'"))

    assert [status.reason for status in statuses(client, effects)] == ["KeyError"]
    assert [note.fields["reason"] for note in only(Note, effects)] == ["KeyError: 'Doe'"]


@pytest.mark.parametrize("outcome", ["finished", "failed"])
def test_the_end_of_an_old_run_means_nothing(outcome: str) -> None:
    client = Client()
    old = client.trained(client.to_training())
    client.book.step(np.ones(D, np.float32))
    effects = client.do(LogMoved())
    assert [type(effect) for effect in effects[:2]] == [StopTraining, Train]

    event = old if outcome == "finished" else TrainingFailed(old.task, "no")
    assert client.handle(event) == ()
    assert client.phase is Phase.TRAINING


def test_a_result_whose_version_passed_unseen_is_dropped() -> None:
    client = Client()
    finished = client.trained(client.to_training())
    client.book.step(np.ones(D, np.float32))

    effects = client.do(finished)
    assert only(SaveUpdate, effects) == []
    assert [order.task for order in only(Train, effects)] == [TaskId(1, 0)]


def test_a_void_while_training_changes_only_the_attempt_that_is_offered() -> None:
    client = Client()
    effects = client.to_training()
    client.book.draw()
    client.book.void()
    assert only(StopTraining, client.do(LogMoved())) == []

    (offer,) = client.said(Offer, client.do(client.trained(effects)))
    assert offer.attempt == 1


# ── offers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_offer_leaves_again_after_a_while() -> None:
    client = Client()
    offers = only(Publish, client.to_offered())

    assert client.said(Offer, client.handle(Tick(), OFFER_REPEAT_S - 1)) == []
    again = [p for p in only(Publish, client.handle(Tick(), OFFER_REPEAT_S)) if p in offers]
    assert len(again) == 1


def test_after_a_void_the_update_is_offered_again_under_a_raised_counter() -> None:
    client = Client()
    (first,) = client.said(Offer, client.to_offered())
    client.draw()
    assert client.do(LogMoved()) == []
    client.book.void()

    effects = client.handle(LogMoved())
    assert only(RaiseCounter, effects) == [RaiseCounter()]
    (again,) = client.said(Offer, client.disk(effects))
    assert (again.attempt, again.counter) == (1, first.counter + 1)
    assert again.nonce != first.nonce
    assert client.state.unspent() is not None


@pytest.mark.parametrize("phase", AFTER_TRAINING)
def test_an_update_whose_version_passed_is_dropped_unspent_and_nothing_of_it_leaves(phase: Phase) -> None:
    client = client_for(phase)
    undone = to_phase(client, phase)
    if client.book.chain.draw is None:
        client.book.draw()
    client.change()

    effects = client.handle(LogMoved())
    effects += tuple(client.disk(undone))
    assert notes(effects).count("late") == 1
    assert len(only(DropUpdate, effects)) == 1
    assert words_of(client, effects) == []
    assert client.said(Offer, effects) == []
    assert client.phase is Phase.TRAINING
    assert [order.task for order in only(Train, effects)] == [TaskId(1, 0)]
    # The counter never falls behind the disk's.
    assert client.said(Offer, client.do(client.trained(effects)))[0].counter == client.state.counter


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.FAILED, Phase.IN_GROUP, Phase.TRAINING])
def test_the_next_version_is_trained_from_every_phase(phase: Phase) -> None:
    client = client_for(phase)
    to_phase(client, phase)
    if client.book.chain.draw is None:
        client.book.draw()
    client.change()

    effects = client.do(LogMoved())
    assert [order.task for order in only(Train, effects)] == [TaskId(1, 0)]
    assert len(only(StopTraining, effects)) == (phase is Phase.TRAINING)


@pytest.mark.parametrize(
    ("phase", "after"),
    [
        (Phase.IDLE, Phase.TRAINING),
        (Phase.FAILED, Phase.TRAINING),
        (Phase.IN_GROUP, Phase.TRAINING),
        (Phase.TRAINING, Phase.TRAINING),
        (Phase.OFFERED, Phase.OFFERING),
        (Phase.SHARING, Phase.OFFERING),
        (Phase.SPENDING, Phase.TRAINING),
        (Phase.WAITING, Phase.WAITING),
        (Phase.MISMATCH, Phase.MISMATCH),
        (Phase.OBJECTING, Phase.OBJECTING),
        (Phase.DRAINED, Phase.DRAINED),
        (Phase.RELEASED, Phase.RELEASED),
        (Phase.LEFT, Phase.LEFT),
    ],
)
def test_a_void_draw_in_every_phase(phase: Phase, after: Phase) -> None:
    client = client_for(phase)
    undone = to_phase(client, phase)
    if client.book.chain.draw is None:
        client.book.draw()
        client.do(LogMoved())
    client.book.void()

    effects = [*client.handle(LogMoved()), *client.disk(undone)]
    assert words_of(client, effects) == []
    assert client.phase is after
    expected = [TaskId(0, 1)] if after is Phase.TRAINING and phase is not Phase.TRAINING else []
    assert [order.task for order in only(Train, effects)] == expected


# ── rosters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_roster_faster_than_the_draws_entry_is_held() -> None:
    client = Client()
    client.to_offered()
    entry, (roster,) = client.draft_draw()
    assert client.do(GroupMessageArrived(roster)) == []
    assert client.phase is Phase.OFFERED

    client.book.write(*entry.frames())
    assert len(words_of(client, client.do(LogMoved()))) == 1


def test_a_held_roster_outlives_another_draw() -> None:
    client = Client()
    client.to_offered()
    other = client.draft_draw()[1][0].model_copy(update={"draw": b"x" * 32})
    client.do(GroupMessageArrived(other))
    client.draw(client.offer_of("client-1"))

    assert client.do(LogMoved()) == []
    assert client.phase is Phase.OFFERED


def test_the_same_roster_is_answered_with_the_same_bytes_wherever_it_asks_for_them() -> None:
    client = Client()
    first, roster = client.to_in_group()

    again = client.handle(GroupMessageArrived(roster))
    assert only(Publish, again) == only(Publish, first)
    (elsewhere,) = only(Publish, client.handle(GroupMessageArrived(roster.model_copy(update={"stage": "stage-2"}))))
    assert elsewhere.frame == only(Publish, first)[0].frame
    assert elsewhere.routing_key == "reply.stage-2.site-0"


def test_a_roster_that_repeats_before_the_disk_is_done_sends_nothing() -> None:
    client = Client()
    _, roster = client.to_spending()

    assert client.handle(GroupMessageArrived(roster)) == ()


def changed(roster: Roster, **fields: Any) -> Roster:
    """The roster with a few fields of its group replaced."""
    return roster.model_copy(update={"group": roster.group.model_copy(update=fields)})


FORGERIES: dict[str, tuple[Callable[[Roster], Roster], RefusalReason]] = {
    "another version": (lambda r: r.model_copy(update={"version": 1}), RefusalReason.WRONG_PARENT),
    "another number of groups": (lambda r: r.model_copy(update={"groups": 5}), RefusalReason.WRONG_PARENT),
    "another place in the draw": (lambda r: changed(r, index=1), RefusalReason.NOT_ALLOWED),
    "a place outside the draw": (lambda r: changed(r, index=9), RefusalReason.MALFORMED),
    "no path": (lambda r: changed(r, path=()), RefusalReason.MALFORMED),
    "another path": (lambda r: changed(r, path=(b"x" * 32,) * len(r.group.path)), RefusalReason.NOT_ALLOWED),
    "two members": (lambda r: changed(r, members=r.group.members * 2), RefusalReason.OUT_OF_RANGE),
    "another offer": (
        lambda r: changed(r, members=(r.group.members[0].model_copy(update={"offer": b"x" * 200}),)),
        RefusalReason.NOT_ALLOWED,
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_roster_that_does_not_hold_is_refused_and_nothing_is_spent(name: str) -> None:
    forge, reason = FORGERIES[name]
    client = Client()
    client.to_offered()
    _, rosters = client.draw(client.offer_frame(), client.offer_of("client-1"))

    effects = client.do(GroupMessageArrived(forge(rosters[0])))
    assert notes(effects) == [f"refused {reason}"]
    assert client.phase is Phase.OFFERED
    assert client.state.unspent() is not None
    assert len(words_of(client, client.do(GroupMessageArrived(rosters[0])))) == 1


def test_a_genuine_group_of_another_client_or_of_an_older_offer_is_refused() -> None:
    client = Client()
    client.to_offering()
    old_offer = client.offer_frame()
    client.do(CounterRaised(client.state.next_counter()))
    _, (theirs, ours) = client.draw(client.offer_of("client-1"), old_offer)

    assert notes(client.do(GroupMessageArrived(theirs))) == [f"refused {RefusalReason.NOT_ALLOWED}"]
    assert notes(client.do(GroupMessageArrived(ours))) == [f"refused {RefusalReason.STALE}"]
    assert client.phase is Phase.OFFERED


def test_another_group_of_the_same_draw_gets_the_words_of_the_first_and_in_the_end_nothing() -> None:
    client = Client()
    client.to_offered()
    _, (first, second) = client.draw(client.offer_frame(), client.offer_frame())
    answered = only(Publish, client.do(GroupMessageArrived(first)))

    for number in range(ANSWERS_MAX + 2):
        effects = client.do(GroupMessageArrived(second))
        assert notes(effects) == [f"refused {RefusalReason.NOT_ALLOWED}"]
        assert only(Publish, effects) == (answered if number < ANSWERS_MAX else [])


@pytest.mark.parametrize(
    "phase", [Phase.IDLE, Phase.TRAINING, Phase.FAILED, Phase.MISMATCH, Phase.OBJECTING, *LEAVING.values()]
)
def test_without_an_open_offer_no_roster_counts(phase: Phase) -> None:
    client = client_for(phase)
    to_phase(client, phase)
    if client.book.chain.draw is not None:
        client.book.void()
    _, (roster,) = client.draw(client.offer_of(CLIENT))

    effects = client.do(GroupMessageArrived(roster))
    assert f"refused {RefusalReason.STALE}" in notes(effects)
    assert only(SpendUpdate, effects) == words_of(client, effects) == []


# ── groups of three ─────────────────────────────────────────────────────────────────────────────────────────────────


def of_three() -> Client:
    return client_for(Phase.SHARING)


def test_a_round_in_a_group_of_three_from_the_roster_to_the_shares() -> None:
    client = of_three()
    dealt, roster = client.to_sharing()
    assert [type(message) for message in client.open(dealt)] == [Shares]
    assert client.state.unspent() is not None

    effects = client.handle(GroupMessageArrived(client.participants(roster)))
    assert only(Publish, effects) == []
    assert (client.phase, len(only(SpendUpdate, effects))) == (Phase.SPENDING, 1)
    (words,) = words_of(client, client.disk(effects))
    assert (client.phase, client.state.unspent()) == (Phase.IN_GROUP, None)

    (agreement,) = client.said(Agreement, client.do(GroupMessageArrived(client.arrived(words))))
    (reveal,) = client.said(Reveal, client.do(GroupMessageArrived(client.unmask(agreement))))
    assert len(reveal.shares) == 3 * 33
    client.change()
    assert [order.task for order in only(Train, client.do(LogMoved()))] == [TaskId(1, 0)]


def test_after_a_void_draw_what_was_shared_is_offered_again_with_fresh_keys() -> None:
    client = of_three()
    client.to_sharing()
    (first,) = client.said(Offer, client.history)
    client.book.void()

    (again,) = client.said(Offer, client.do(LogMoved()))
    assert client.phase is Phase.OFFERED
    assert (again.attempt, again.trained_head) == (1, first.trained_head)
    assert again.counter > first.counter
    assert first.keys is not None
    assert again.keys is not None
    assert not {again.keys.sealing, again.keys.masking} & {first.keys.sealing, first.keys.masking}


def test_a_void_draw_after_the_words_offers_nothing_again() -> None:
    client = of_three()
    client.to_in_group()
    client.book.void()

    effects = client.do(LogMoved())
    assert client.said(Offer, effects) == []
    assert [order.task for order in only(Train, effects)] == [TaskId(0, 1)]


def test_too_few_participants_get_no_words_and_the_update_stays() -> None:
    client = of_three()
    _, roster = client.to_sharing()

    effects = client.do(GroupMessageArrived(client.participants(roster, places=(0, 1))))
    assert notes(effects) == [f"refused {RefusalReason.POLICY}"]
    assert client.phase is Phase.SHARING
    assert client.state.unspent() is not None


@pytest.mark.parametrize("leave", LEAVING)
def test_a_leaving_client_stays_until_its_group_can_end_without_it(leave: Leaving) -> None:
    client = of_three()
    _, roster = client.to_sharing()
    client.do(leave())
    words = words_of(client, client.do(GroupMessageArrived(client.participants(roster))))[0]
    assert client.phase is Phase.IN_GROUP
    (agreement,) = client.said(Agreement, client.do(GroupMessageArrived(client.arrived(words))))
    assert client.phase is Phase.IN_GROUP

    assert len(client.said(Reveal, client.do(GroupMessageArrived(client.unmask(agreement))))) == 1
    assert client.phase is LEAVING[leave]


@pytest.mark.parametrize("end", ["change", "void"])
@pytest.mark.parametrize("phase", [Phase.SHARING, Phase.IN_GROUP])
def test_a_draining_client_leaves_with_the_end_of_its_draw(phase: Phase, end: str) -> None:
    client = of_three()
    client.to(phase)
    client.do(Drain())
    assert client.phase is phase

    getattr(client if end == "change" else client.book, end)()
    assert client.said(Offer, client.do(LogMoved())) == []
    assert client.phase is Phase.DRAINED


# ── restarts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unspent_update_is_offered_again_after_a_restart() -> None:
    client = Client()
    (before,) = client.said(Offer, client.to_offered())
    client.start()
    effects = client.do(client.task())

    assert only(Train, effects) == []
    (after,) = client.said(Offer, effects)
    assert after.counter == before.counter + 1
    _, (roster,) = client.draw()
    assert len(words_of(client, client.do(GroupMessageArrived(roster)))) == 1


def test_an_unspent_update_waits_until_the_log_has_been_read_up_to_its_version() -> None:
    client = Client()
    client.book.step(np.ones(D, np.float32))
    client.book.step(np.ones(D, np.float32))
    client.to_offered()
    stream, task = list(client.book.stream), client.task()
    # The new process reads the log from its beginning, and looks at it after every message.
    reader = client.book.reader = client.federation.reader()
    client.start()
    client.do(task)
    for offset, body in enumerate(stream):
        reader.feed(offset, body)
        effects = client.do(LogMoved())
        assert only(DropUpdate, effects) == []
        assert only(Train, effects) == []
        assert len(client.said(Offer, effects)) == (offset == len(stream) - 1)

    assert client.phase is Phase.OFFERED
    assert client.state.unspent() is not None


def test_a_spent_update_is_never_sent_again() -> None:
    client = Client()
    _, roster = client.to_in_group()
    client.start()
    effects = client.do(client.task())
    assert notes(client.do(GroupMessageArrived(roster))) == [f"refused {RefusalReason.STALE}"]
    assert client.said(Offer, effects) == []
    assert only(Train, effects) == []

    client.book.void()
    assert [order.task for order in only(Train, client.do(LogMoved()))] == [TaskId(0, 1)]


# ── leaving ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", [p for p in PHASES if p not in LEAVING.values()])
@pytest.mark.parametrize("leave", LEAVING)
def test_leaving_in_every_phase(phase: Phase, leave: Leaving) -> None:
    client = client_for(phase)
    undone = to_phase(client, phase)

    effects = client.handle(leave())
    waits = phase in (Phase.OFFERED, Phase.SHARING, Phase.SPENDING)
    assert client.phase is (phase if waits else LEAVING[leave])
    assert len(only(StopTraining, effects)) == (phase is Phase.TRAINING)
    if not waits:
        assert [s.state for s in statuses(client, effects)] == FAREWELL[leave]
    following = client.disk(undone)
    assert client.said(Offer, following) == []
    if phase is Phase.SPENDING:
        assert len(words_of(client, following)) == 1
        assert client.phase is LEAVING[leave]
    assert only(Train, [*client.do(LogMoved()), *client.do(client.task())]) == []


@pytest.mark.parametrize(("then", "gone"), [(Leave, Phase.LEFT), (Drain, Phase.RELEASED), (HandOver, Phase.RELEASED)])
def test_one_that_is_to_be_handed_over_says_that_it_leaves_if_it_is_taken_out(then: Leaving, gone: Phase) -> None:
    client = Client()
    client.to_offered()
    client.do(HandOver())
    client.do(then())
    _, (roster,) = client.draw()

    effects = client.do(GroupMessageArrived(roster))
    assert client.phase is gone
    assert [s.state for s in statuses(client, effects)] == FAREWELL[Leave if then is Leave else HandOver]


def test_an_offered_client_leaves_after_its_group() -> None:
    client = Client()
    client.to_offered()
    client.do(Drain())
    _, (roster,) = client.draw()

    effects = client.do(GroupMessageArrived(roster))
    assert len(words_of(client, effects)) == 1
    assert client.phase is Phase.DRAINED


@pytest.mark.parametrize("end", ["change", "void"])
def test_an_offered_client_that_was_not_drawn_leaves_when_the_round_is_over(end: str) -> None:
    client = Client()
    client.to_offered()
    client.draw(client.offer_of("client-1"))
    client.do(Drain())
    assert client.phase is Phase.OFFERED

    getattr(client if end == "change" else client.book, end)()
    client.do(LogMoved())
    assert client.phase is Phase.DRAINED
    assert (client.state.unspent() is None) == (end == "change")


@pytest.mark.parametrize("phase", [p for p in PHASES if p not in LEAVING.values()])
@pytest.mark.parametrize("leave", LEAVING)
def test_leaving_at_once_is_for_good(phase: Phase, leave: Leaving) -> None:
    client = client_for(phase)
    undone = to_phase(client, phase)
    client.handle(leave(at_once=True))
    assert client.phase is LEAVING[leave]

    effects = [*client.disk(undone), *client.do(LogMoved()), *client.do(Mismatch("no")), *client.do(Tick(), 1000.0)]
    assert client.phase is LEAVING[leave]
    assert leave is not HandOver or statuses(client, effects) == []
    assert client.said(Offer, effects) == words_of(client, effects) == []


def test_one_that_is_revoked_in_a_group_can_be_let_go_when_the_group_is_over() -> None:
    client = client_for(Phase.SHARING)
    client.to_sharing()
    client.do(Mismatch("this client was revoked"))
    client.do(HandOver())
    assert client.phase is Phase.MISMATCH

    client.book.void()
    client.do(LogMoved())
    assert client.phase is Phase.RELEASED


def test_one_that_is_revoked_in_training_gives_the_run_up() -> None:
    client = Client()
    client.to_training()
    assert len(only(StopTraining, client.do(Mismatch("this client was revoked")))) == 1


@pytest.mark.parametrize("by_policy", [False, True])
@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.IDLE, Phase.TRAINING])
def test_a_plan_that_does_not_fit_is_told_and_nothing_is_done_any_more(phase: Phase, by_policy: bool) -> None:
    client = client_for(phase)
    to_phase(client, phase)
    effects = client.handle(Mismatch("other layers", by_policy))
    state = ClientState.POLICY if by_policy else ClientState.PLAN_MISMATCH
    assert [(s.state, s.reason) for s in statuses(client, effects)] == [(state, "other layers")]

    client.book.step(np.ones(D, np.float32)) if client.book.chain.draw is None else client.book.void()
    effects = [*client.do(client.task()), *client.do(LogMoved())]
    assert only(Train, effects) == []
    assert len(only(Settle, effects)) == 1
    assert client.phase is (Phase.OBJECTING if by_policy else Phase.MISMATCH)


# ── signs of life ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_status_says_that_there_is_no_log_yet() -> None:
    client = Client()
    client.book.reader = client.federation.reader()
    client.start()

    (status,) = statuses(client, client.handle(Tick(), 5.0))
    assert (status.state, status.log_position, status.version) == (ClientState.IDLE, "absent", 0)
    assert client.machine.next_wakeup() == 5.0 + STATUS_INTERVAL_S
    assert client.handle(Tick(), 5.0 + STATUS_INTERVAL_S - 0.1) == ()
    assert len(statuses(client, client.handle(Tick(), 5.0 + STATUS_INTERVAL_S))) == 1


def test_a_lasting_training_is_announced_and_offers_speak_for_themselves() -> None:
    client = Client()
    client.do(Tick())
    effects = client.to_training()
    assert statuses(client, effects) == []
    assert client.machine.next_wakeup() == STATUS_DEBOUNCE_S
    assert [s.state for s in statuses(client, client.handle(Tick(), STATUS_DEBOUNCE_S))] == [ClientState.TRAINING]

    offered = client.do(client.trained(effects), 1.0)
    assert statuses(client, offered) == []
    interval = client.book.plan.round.status_interval_s
    assert client.machine.next_wakeup() == 1.0 + interval
    assert [s.state for s in statuses(client, client.handle(Tick(), 1.0 + interval))] == [ClientState.OFFERED]


# ── events that do not belong ───────────────────────────────────────────────────────────────────────────────────────

STRAY: dict[str, tuple[Event, tuple[Phase, ...]]] = {
    "finished": (TrainingFinished(TaskId(9, 9), np.zeros(D, np.float32), 1, METRICS), ()),
    "failed": (TrainingFailed(TaskId(9, 9), "no"), ()),
    "saved": (UpdateSaved(UpdateId(99)), (Phase.SAVING,)),
    "raised": (CounterRaised(99), (Phase.OFFERING,)),
    "spent": (UpdateSpent(99), (Phase.SPENDING,)),
    "moved": (LogMoved(), ()),
    "tick": (Tick(), ()),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", STRAY)
def test_an_event_that_does_not_belong_changes_nothing(phase: Phase, name: str) -> None:
    event, belongs = STRAY[name]
    if phase in belongs:
        return
    client = client_for(phase)
    to_phase(client, phase)

    assert client.handle(event) == ()
    assert client.phase is phase


# ── any order of anything ───────────────────────────────────────────────────────────────────────────────────────────

STEPS = st.lists(
    st.sampled_from(
        ["task", "moved", "trained", "failed", "nan", "disk", "draw", "other draw", "roster", "old roster", "void",
         "change", "tick", "restart", "forged"]
    ),
    max_size=50,
)  # fmt: skip


@settings(max_examples=300)
@given(STEPS)
def test_no_update_ever_leaves_twice_or_in_two_forms(steps: Sequence[str]) -> None:
    client = Client()
    orders: list[Train] = []
    undone: list[Any] = []
    rosters: list[Roster] = []
    spent: list[int] = []
    sent: dict[bytes, set[bytes]] = defaultdict(set)
    left: list[bytes] = []

    def take(effects: Sequence[Any]) -> None:
        orders.extend(only(Train, effects))
        undone.extend(e for e in effects if isinstance(e, SaveUpdate | RaiseCounter | SpendUpdate))
        for words in words_of(client, effects):
            # Every vector has a spent mark of its own on the disk before it leaves.
            if words.transcript not in sent:
                left.append(words.transcript)
            sent[words.transcript].add(words.body)
            assert len(left) <= len(spent)
            assert client.state.unspent() is None or client.state.unspent().update_id not in spent  # type: ignore[union-attr]

    now = 0.0
    for step in steps:
        now += 0.5
        chain = client.book.chain
        match step:
            case "task":
                take(client.handle(client.task(), now))
            case "moved":
                take(client.handle(LogMoved(), now))
            case "trained" | "nan" if orders:
                values = np.full(D, np.nan if step == "nan" else 0.1, np.float32)
                take(client.handle(TrainingFinished(orders[-1].task, values, 3, METRICS), now))
            case "failed" if orders:
                take(client.handle(TrainingFailed(orders[-1].task, "no"), now))
            case "disk" if undone:
                effect = undone.pop(0)
                if isinstance(effect, SpendUpdate):
                    assert effect.update_id not in spent
                    spent.append(effect.update_id)
                before = len(client.history)
                client.disk([effect], now)
                take(client.history[before:])
            case "draw" if chain.draw is None and client.said(Offer, client.history):
                rosters += client.draw()[1]
                take(client.handle(LogMoved(), now))
            case "other draw" if chain.draw is None:
                client.draw(client.offer_of("client-1"))
            case "roster" if rosters:
                take(client.handle(GroupMessageArrived(rosters[-1]), now))
            case "old roster" if rosters:
                take(client.handle(GroupMessageArrived(rosters[0]), now))
            case "forged" if rosters:
                take(client.handle(GroupMessageArrived(changed(rosters[-1], index=0, path=(bytes(32),))), now))
            case "void" if chain.draw is not None:
                client.book.void()
            case "change" if chain.draw is not None:
                client.change()
            case "tick":
                take(client.handle(Tick(), now))
            case "restart" if not undone:
                client.start()
                orders.clear()

    assert all(len(bodies) == 1 for bodies in sent.values())
    assert len(set(spent)) == len(spent)


def test_words_of_several_pieces_share_their_transcript() -> None:
    dimension = (1 << 19) // 2 + 1
    plan = client_plan(
        dimension=dimension, codec={"selection": "dense", "density": 1.0, "bits": 32, "clipping_norm": 1000.0}
    )
    client = Client(plan)
    effects = client.to_training()
    client.do(client.trained(effects, values=np.ones(dimension, np.float32)))
    _, (roster,) = client.draw()

    pieces = words_of(client, client.do(GroupMessageArrived(roster)))
    assert [(piece.part, piece.parts) for piece in pieces] == [(0, 2), (1, 2)]
    assert len({piece.transcript for piece in pieces}) == 1
    form = plan.sum_format(1, plan.codec.clipping_norm)
    assert sum(len(piece.body) for piece in pieces) == 4 * form.length


def test_what_was_cut_is_told() -> None:
    client = Client()
    effects = client.to_training()
    client.do(client.trained(effects, values=np.full(D, 9.0, np.float32), num_examples=99, metrics={"loss": 1e6}))
    _, (roster,) = client.draw()

    assert notes(client.do(GroupMessageArrived(roster))) == ["weight_capped", "update_clipped", "metrics_clamped"]


# ── privacy ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def epsilon_of_one_run() -> float:
    charge = client_plan(**PRIVATE).charge_of_run()
    assert charge is not None
    return epsilon_of([charge], 1e-5)


def private_client(epsilon: float | None) -> Client:
    policy = ALONE.model_copy(update={"privacy_budget": PrivacyBudget(epsilon=epsilon)})
    return Client(client_plan(**PRIVATE), policy=policy)


def test_what_is_spent_is_charged_with_what_the_plan_says_it_costs() -> None:
    client = private_client(None)
    client.to_in_group()
    charge = client.book.plan.charge_of_run()
    assert charge is not None
    assert client.state.charges == (charge,)
    client.start()
    assert client.state.charges == (charge,)


def test_a_failure_is_told_when_its_charge_is_on_the_disk_and_not_before() -> None:
    client = private_client(None)
    undone = client.to_charging()
    assert [s.state for s in statuses(client, client.handle(Tick(), 1000.0))] == [ClientState.TRAINING]

    effects = client.disk(undone, 1001.0)
    assert client.phase is Phase.FAILED
    assert [s.state for s in statuses(client, effects)] == [ClientState.TRAINING_FAILED]
    assert client.state.charges == (client.book.plan.charge_of_run(),)


def test_an_update_that_is_dropped_unspent_is_not_charged() -> None:
    client = private_client(None)
    client.to_offered()
    client.book.step(np.ones(D, np.float32))
    client.do(LogMoved())
    assert client.state.unspent() is None
    assert client.state.charges == ()


def test_a_run_that_would_pass_the_budget_is_not_trained_and_the_client_says_so() -> None:
    one = epsilon_of_one_run()
    client = private_client(1.01 * one)
    client.to_in_group()
    client.change()

    effects = client.do(LogMoved())
    assert only(Train, effects) == []
    assert client.phase is Phase.EXHAUSTED
    (status,) = statuses(client, effects)
    assert status.state is ClientState.BUDGET_EXHAUSTED
    assert f"epsilon {one:.4g} is spent" in status.reason
    # Restarts change nothing about it, but a larger budget does.
    client.start()
    client.do(client.task())
    assert client.phase is Phase.EXHAUSTED
    client.policy = ALONE.model_copy(update={"privacy_budget": PrivacyBudget(epsilon=3 * one)})
    client.start()
    assert len(only(Train, client.do(client.task()))) == 1


def test_failed_runs_use_the_budget_up_too() -> None:
    one = epsilon_of_one_run()
    client = private_client(1.01 * one)
    client.disk(client.to_charging())
    client.book.step(np.ones(D, np.float32))
    client.do(LogMoved())
    assert client.phase is Phase.EXHAUSTED


def test_an_update_that_is_there_is_not_offered_when_the_budget_became_too_small() -> None:
    client = private_client(None)
    client.to_offered()
    client.policy = ALONE.model_copy(update={"privacy_budget": PrivacyBudget(epsilon=0.01)})
    client.start()
    effects = client.do(client.task())
    assert client.phase is Phase.EXHAUSTED
    assert client.said(Offer, effects) == []
    assert client.state.unspent() is not None
