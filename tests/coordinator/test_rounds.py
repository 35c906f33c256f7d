"""The scheduler: who is tasked, when a draw happens and when not, and what becomes of every offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.events import (
    ClientLost,
    CoordinatorEffect,
    DrawMade,
    EntryAccepted,
    Event,
    GroupGivenUp,
    GroupReplyArrived,
    GroupSummed,
    RunStopped,
    Tick,
    TookOffice,
)
from coordinator.scheduler.attempt import VOID_DRAWS_ALARM
from coordinator.scheduler.rounds import Scheduler
from shared.effects import Append, Note, Settle
from shared.errors import RefusalReason
from shared.modellog.chain import GENESIS
from shared.modellog.reader import weights_digest
from shared.wire.group_messages import Agreement, GroupJob, Reveal, Shares, Words
from shared.wire.log_messages import ChangeEntry, DrawEntry, VoidEntry
from shared.wire.messages import OFFER_BYTES_MAX, ClientState, PublicKeys, Reminder, Task
from tests.builders import tiny_plan
from tests.coordinator.builders import Desk, Settled, notes, only, told

DEADLINE_S = 30.0
ROUND = {"rounds": 10, "status_interval_s": 1000.0, "round_deadline_s": DEADLINE_S, "straggler_grace_s": 2.0}


class Office:
    """A scheduler in office, and the log it writes."""

    def __init__(self, clients: int = 5, *, trim: int = 0, joined: int | None = None, **round_fields: Any) -> None:
        group_size = round_fields.pop("group_size", 1)
        round_fields = {"min_clients": clients, **ROUND, **round_fields}
        plan = tiny_plan(round=round_fields, aggregation={"rule": "trimmed-mean", "trim": trim}, group_size=group_size)
        self.desk = Desk(plan, clients)
        self.clients = self.desk.clients
        self.scheduler = Scheduler(plan, self.desk.writer, self.desk.federation.seal)
        self.settled = Settled()
        self.handle(TookOffice(), 0.0)
        self.join(self.clients[: clients if joined is None else joined], 0.0)

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        effects = self.scheduler.handle(event, now)
        self.settled.watch(effects)
        return effects

    def join(self, clients: Sequence[str], now: float) -> list[CoordinatorEffect]:
        return [effect for client in clients for effect in self.handle(self.desk.status(client), now)]

    def offers(self, clients: Sequence[str], now: float, **fields: Any) -> list[CoordinatorEffect]:
        return [effect for client in clients for effect in self.handle(self.desk.offer(client, **fields), now)]

    def read_back(self, effects: Sequence[CoordinatorEffect], now: float) -> list[CoordinatorEffect]:
        return [effect for accepted in self.desk.read_back(effects) for effect in self.handle(accepted, now)]

    def draw(self, now: float = 1.0) -> list[CoordinatorEffect]:
        """All clients offer, and the draw is read back."""
        effects = self.offers(self.clients, now, counter=10 * self.desk.chain.version + self.desk.chain.attempt + 1)
        return [*effects, *self.read_back(effects, now)]

    def change_on_its_way(self) -> Append:
        """A step that closes the open draw: written, and not read back yet."""
        chain = self.desk.chain
        assert chain.draw is not None
        weights = self.desk.log.weights + np.float32(1)
        entry = ChangeEntry(
            parent=GENESIS,
            term=0,
            version=chain.version + 1,
            draw=chain.draw.entry,
            groups=(0,),
            weights_sha256=weights_digest(weights),
            clipping_norm=1.0,
            coordinates="all",
        )
        return self.desk.writer.append(entry, weights, weights)

    def change(self) -> EntryAccepted:
        """The open draw is closed by a step."""
        (accepted,) = self.desk.read_back([self.change_on_its_way()])
        return accepted

    def void(self) -> EntryAccepted:
        """The open draw is closed without a step."""
        assert self.desk.chain.draw is not None
        return self.desk.append(VoidEntry(parent=GENESIS, term=0, draw=self.desk.chain.draw.entry, reason="test"))

    def tasks(self, effects: Sequence[object]) -> list[Task]:
        return [message for message in self.desk.open(effects) if isinstance(message, Task)]


def draws(effects: Sequence[object]) -> list[DrawMade]:
    return [event for event in told(effects) if isinstance(event, DrawMade)]


# ── gathering ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_that_joins_is_noted_and_tasked_once() -> None:
    office = Office(joined=0)
    client = office.clients[0]

    effects = office.handle(office.desk.status(client, log_position="absent"), 1.0)
    assert notes(effects) == ["client_joined"]
    assert office.tasks(effects) == [
        Task(client=client, version=0, attempt=0, head=office.desk.chain.version_head, snapshot_offset=0)
    ]
    assert office.handle(office.desk.status(client), 2.0) == ()


def test_a_client_without_a_log_is_tasked_again() -> None:
    office = Office(joined=1)

    effects = office.handle(office.desk.status(office.clients[0], log_position="absent"), 2.0)
    assert notes(effects) == []
    assert [task.client for task in office.tasks(effects)] == [office.clients[0]]


def test_the_first_round_waits_for_min_clients_and_its_deadline_begins_then() -> None:
    office = Office(joined=2, min_clients=3)
    early = office.offers(office.clients[:2], 5.0)
    assert draws(early) == []

    office.join([office.clients[2]], 25.0)
    assert draws(office.handle(Tick(), DEADLINE_S + 1)) == []
    effects = office.handle(Tick(), 25.0 + DEADLINE_S)
    assert [lost.client for lost in told(effects) if isinstance(lost, ClientLost)] == [office.clients[2]]
    assert draws(effects)[0].clients  # two offers are enough: trim is 0


def test_a_first_round_without_enough_clients_says_so_once() -> None:
    office = Office(joined=2, min_clients=3)

    assert office.handle(Tick(), DEADLINE_S - 1) == ()
    (waiting,) = office.handle(Tick(), DEADLINE_S)
    assert waiting.event == "waiting_for_clients"
    assert (waiting.fields["needed"], waiting.fields["live"]) == (3, 2)
    assert office.handle(Tick(), DEADLINE_S + 1) == ()


def test_a_client_that_is_first_heard_by_its_offer_belongs_to_the_first_cohort() -> None:
    # As after a restart of the coordinator: waiting offers are delivered before anybody's next status.
    office = Office(clients=4, joined=0, min_clients=4)

    effects = office.offers(office.clients[:3], 1.0)
    assert notes(effects) == ["client_joined"] * 3
    assert draws(effects) == []
    assert len(draws(office.offers(office.clients[3:], 1.0))) == 1


# ── the draw ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_draw_happens_when_the_whole_cohort_has_offered() -> None:
    office = Office(clients=4)
    assert draws(office.offers(office.clients[:3], 1.0)) == []

    effects = office.offers(office.clients[3:], 2.0)
    (append,) = only(Append, effects)
    assert draws(effects) == [DrawMade(append.sealed.digest, 0, 4, draws(effects)[0].clients)]
    assert sorted(draws(effects)[0].clients) == office.clients
    (job,) = [message for message in office.desk.open(effects) if isinstance(message, GroupJob)]
    assert (job.draw, job.groups, len(job.members)) == (append.sealed.digest, 4, 4)
    assert not office.settled

    office.read_back(effects, 2.0)
    assert sorted(office.settled.values()) == [1] * 4


@pytest.mark.parametrize(("quorum", "clients", "needed"), [(0.5, 5, 3), (0.14, 50, 7), (0.6, 5, 3), (1.0, 5, 5)])
def test_the_quorum_starts_the_grace_for_stragglers(quorum: float, clients: int, needed: int) -> None:
    office = Office(clients=clients, offer_quorum=quorum)
    office.offers(office.clients[: needed - 1], 1.0)
    assert draws(office.handle(Tick(), 9.0)) == []

    effects = office.offers([office.clients[needed - 1]], 10.0)
    if needed < clients:
        assert draws(effects) == []
        assert draws(office.handle(Tick(), 11.9)) == []
        effects = list(office.handle(Tick(), 12.0))
    assert len(draws(effects)[0].clients) == needed


def test_at_the_deadline_who_has_not_offered_is_lost_and_the_others_are_drawn() -> None:
    office = Office(clients=4)
    office.offers(office.clients[:3], 1.0)

    effects = office.handle(Tick(), DEADLINE_S)
    assert [event for event in told(effects) if isinstance(event, ClientLost)] == [
        ClientLost(office.clients[3], 0, "joining")
    ]
    assert sorted(draws(effects)[0].clients) == office.clients[:3]


def test_below_min_offers_nothing_is_drawn_it_is_said_once_and_the_round_gathers_again() -> None:
    office = Office(clients=4, trim=1)
    office.offers(office.clients[:2], 1.0)

    effects = office.handle(Tick(), DEADLINE_S)
    assert notes(effects) == ["client_lost", "client_lost", "waiting_for_clients"]
    assert draws(effects) == []
    assert office.handle(Tick(), 3 * DEADLINE_S) == ()

    # Back: expected again, with a deadline of its own, and not lost at every status.
    assert notes(office.join([office.clients[2]], 100.0)) == ["client_joined"]
    assert office.handle(Tick(), 100.0 + DEADLINE_S - 1) == ()
    assert sorted(draws(office.offers([office.clients[2]], 130.0 - 0.5))[0].clients) == office.clients[:3]


def test_nothing_is_drawn_while_a_draw_is_on_its_way_or_open() -> None:
    office = Office(clients=3)
    effects = office.offers(office.clients, 1.0)
    more = office.offers(office.clients, 1.0, counter=2)
    assert len(draws(effects)) == 1
    assert draws([*more, *office.handle(Tick(), 100.0)]) == []

    office.read_back(effects, 100.0)
    assert draws(office.handle(Tick(), 200.0)) == []
    assert isinstance(only(Append, effects)[0].sealed.entry, DrawEntry)


def test_nothing_is_drawn_while_another_entry_is_on_its_way() -> None:
    office = Office(clients=3)
    snapshot = office.desk.writer.snapshot(office.desk.log.weights)
    assert draws(office.offers(office.clients, 1.0)) == []

    effects = office.read_back([snapshot], 1.0)
    assert len(draws(effects)) == 1


def test_nothing_is_drawn_after_the_last_round() -> None:
    office = Office(clients=3, rounds=1)
    office.draw()
    office.handle(office.change(), 2.0)

    assert draws([*office.offers(office.clients, 3.0), *office.handle(Tick(), 1000.0)]) == []


def test_the_next_deadline_is_three_median_offer_times() -> None:
    office = Office(clients=3)
    effects = office.offers(office.clients, 20.0)
    office.read_back(effects, 20.0)
    office.handle(office.change(), 20.0)

    assert office.handle(Tick(), 20.0 + 59.0) == ()
    assert "client_lost" in notes(office.handle(Tick(), 20.0 + 60.0))


def test_one_client_with_many_offers_does_not_move_the_next_deadline() -> None:
    office = Office(clients=5)
    office.offers(office.clients[:3], 1.0)
    for counter in range(1, 20):
        office.offers([office.clients[3]], DEADLINE_S - 1.0, counter=counter)
    effects = office.handle(Tick(), DEADLINE_S)
    assert len(draws(effects)) == 1
    office.read_back(effects, DEADLINE_S)
    office.handle(office.change(), DEADLINE_S)

    assert "client_lost" in notes(office.handle(Tick(), 2 * DEADLINE_S))


# ── cohorts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cohort_is_chosen_when_all_are_there_and_only_it_is_tasked() -> None:
    office = Office(clients=6, joined=0, min_clients=6, cohort_size=3)
    assert office.tasks(office.join(office.clients[:5], 0.0)) == []

    tasked = [task.client for task in office.tasks(office.join(office.clients[5:], 0.0))]
    assert len(tasked) == 3
    others = sorted(set(office.clients) - set(tasked))
    absent = office.handle(office.desk.status(others[0], log_position="absent"), 1.0)
    assert office.tasks(absent) == []
    assert len(draws(office.offers(tasked, 1.0))) == 1


def test_the_cohort_changes_with_the_head() -> None:
    office = Office(clients=12, cohort_size=4, min_clients=12, joined=0)
    cohorts = [frozenset(task.client for task in office.tasks(office.join(office.clients, 0.0)))]
    for version in range(3):
        effects = office.offers(sorted(cohorts[-1]), 1.0, counter=version + 1)
        office.read_back(effects, 1.0)
        opened = office.handle(office.change(), 1.0)
        cohorts.append(frozenset(task.client for task in office.tasks(opened)))

    assert {len(cohort) for cohort in cohorts} == {4}
    assert len(set(cohorts)) > 1


def test_a_cohort_that_fails_is_replaced_by_others() -> None:
    office = Office(clients=4, trim=1, cohort_size=3, min_clients=4, joined=0)
    cohort = [task.client for task in office.tasks(office.join(office.clients, 0.0))]
    (spare,) = set(office.clients) - set(cohort)
    office.offers(cohort[:2], 1.0)

    effects = [*office.handle(Tick(), DEADLINE_S), *office.handle(Tick(), DEADLINE_S + 1)]
    assert {task.client for task in office.tasks(effects)} == {*cohort[:2], spare}
    assert sorted(draws(office.offers([spare], 40.0))[0].clients) == sorted([*cohort[:2], spare])


@pytest.mark.parametrize("place", range(3))
def test_no_place_in_a_cohort_is_for_a_client_that_may_not_be_drawn(place: int) -> None:
    office = Office(clients=4, trim=1, cohort_size=3, min_clients=4, joined=0)
    cohort = [task.client for task in office.tasks(office.join(office.clients, 0.0))]
    (draw,) = only(EntryAccepted, office.desk.read_back(office.offers(cohort, 1.0)))
    office.handle(draw, 1.0)
    office.handle(GroupGivenUp(draw.accepted.digest, 0, "another secret", (), (cohort[place],)), 2.0)

    # With a place lost there would be no draw, so the log's head would stay, and with it the cohort.
    others = set(office.clients) - {cohort[place]}
    assert {task.client for task in office.tasks(office.handle(office.void(), 3.0))} == others
    assert set(draws(office.offers(sorted(others), 4.0, counter=2))[0].clients) == others


# ── what becomes of offers ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 0}, RefusalReason.LATE),
        ({"version": 3}, RefusalReason.OUT_OF_RANGE),
        ({"head": bytes(32)}, RefusalReason.WRONG_PARENT),
    ],
)
def test_an_offer_of_another_model_is_refused_and_settled(fields: dict[str, Any], reason: RefusalReason) -> None:
    office = Office(clients=3)
    office.draw()
    office.handle(office.change(), 2.0)
    offer = office.desk.offer(office.clients[0], counter=99, **fields)

    effects = office.handle(offer, 3.0)
    assert only(Settle, effects) == [Settle(offer.receipt)]
    assert notes(effects) == [f"refused {reason}"]


def test_a_drawn_offer_is_not_taken_again() -> None:
    office = Office(clients=3)
    office.draw()
    again = office.desk.offer(office.clients[0], counter=1)

    effects = office.handle(again, 2.0)
    assert only(Settle, effects) == [Settle(again.receipt)]
    assert notes(effects) == ["repeated"]
    older = office.desk.offer(office.clients[0], counter=1, nonce=b"n" * 16)
    effects = office.handle(older, 2.0)
    assert only(Settle, effects) == [Settle(older.receipt)]
    assert notes(effects) == ["refused replayed"]


def test_a_drawn_offer_that_comes_again_stays_at_the_broker_until_the_log_has_the_draw() -> None:
    office = Office(clients=3)
    draw = only(Append, office.offers(office.clients, 1.0))
    again = office.desk.offer(office.clients[0], counter=1)

    assert only(Settle, office.handle(again, 2.0)) == []
    office.read_back(draw, 2.0)
    assert office.settled[id(again.receipt)] == 1


def test_a_repeated_offer_is_counted_and_changes_nothing() -> None:
    office = Office(clients=3)
    first, again = (office.desk.offer(office.clients[0]) for _ in range(2))
    office.handle(first, 1.0)

    effects = office.handle(again, 1.0)
    assert notes(effects) == ["repeated"]
    assert only(Settle, effects) == [Settle(first.receipt)]


def test_an_offer_ahead_of_our_log_waits_for_our_own_read_back() -> None:
    office = Office(clients=4)
    office.draw()
    change = office.change_on_its_way()
    head = change.sealed.digest

    effects = office.offers(office.clients[:3], 2.0, counter=50, version=1, head=head)
    wrong = office.desk.offer(office.clients[3], counter=50, version=1, head=bytes(32))
    effects += office.handle(wrong, 2.0)
    effects += office.handle(Tick(), 100.0)
    assert only(Settle, effects) == []
    assert draws(effects) == []

    effects = office.read_back([change], 100.0)
    assert notes(effects) == ["refused wrong_parent"]
    assert only(Settle, effects) == [Settle(wrong.receipt)]
    assert draws(effects) == []
    assert len(draws(office.offers([office.clients[3]], 101.0, counter=51))[0].clients) == 4


def test_held_offers_of_all_are_drawn_as_soon_as_the_version_is_read_back() -> None:
    office = Office(clients=3)
    office.draw()
    change = office.change_on_its_way()
    office.offers(office.clients, 2.0, counter=50, version=1, head=change.sealed.digest)

    (draw,) = draws(office.read_back([change], 2.0))
    assert (draw.version, sorted(draw.clients)) == (1, office.clients)


def test_offers_that_missed_the_draw_are_late_when_the_version_moves() -> None:
    office = Office(clients=3)
    office.draw()
    late = office.desk.offer(office.clients[0], counter=5)
    assert only(Settle, office.handle(late, 2.0)) == []

    effects = office.handle(office.change(), 2.0)
    assert only(Settle, effects) == [Settle(late.receipt)]
    assert notes(effects) == ["refused late"]


def test_after_a_void_only_offers_of_the_new_attempt_count() -> None:
    # A client offers its update again as soon as it has read the void: its roster must name the new offer.
    office = Office(clients=3)
    office.draw()
    missed = office.desk.offer(office.clients[0], counter=5)
    office.handle(missed, 2.0)

    effects = office.handle(office.void(), 3.0)
    assert notes(effects) == ["draw_void", "refused late"]
    assert only(Settle, effects) == [Settle(missed.receipt)]
    assert notes(office.offers(office.clients[:1], 4.0, counter=6, attempt=0)) == ["refused late"]
    assert notes(office.offers(office.clients[:1], 4.0, counter=6, attempt=3)) == ["refused out_of_range"]
    (draw,) = draws(office.offers(office.clients, 4.0, counter=6, attempt=1))
    assert (draw.version, draw.groups) == (0, 3)


def test_offers_that_have_read_a_void_before_us_wait_for_our_own_read_back() -> None:
    office = Office(clients=3)
    office.draw()
    assert office.desk.chain.draw is not None
    void = office.desk.writer.append(
        VoidEntry(parent=GENESIS, term=0, draw=office.desk.chain.draw.entry, reason="test")
    )
    assert office.offers(office.clients, 2.0, counter=6, attempt=1) == []

    (draw,) = draws(office.read_back([void], 3.0))
    assert sorted(draw.clients) == office.clients


def test_who_closes_takes_its_offer_along() -> None:
    office = Office(clients=3)
    offer = office.desk.offer(office.clients[0])
    office.handle(offer, 1.0)

    status = office.desk.status(office.clients[0], ClientState.DRAINING, reason="stop", counter=offer.offer.counter)
    effects = office.handle(status, 2.0)
    assert only(Settle, effects) == [Settle(offer.receipt)]
    assert notes(effects) == ["client_draining"]
    assert office.scheduler.live == set(office.clients[1:])
    assert len(draws(office.offers(office.clients[1:], 3.0))[0].clients) == 2


def test_a_replayed_status_is_refused_and_changes_nothing() -> None:
    office = Office(clients=3)
    old = office.desk.status(office.clients[0], ClientState.DRAINING)
    office.join(office.clients[:1], 1.0)

    assert notes(office.handle(old, 2.0)) == ["refused replayed"]
    assert office.scheduler.live == set(office.clients)


# ── lost clients ────────────────────────────────────────────────────────────────────────────────────────────────────


def lost(effects: Sequence[object]) -> list[ClientLost]:
    return [event for event in told(effects) if isinstance(event, ClientLost)]


def test_a_silent_client_is_lost_once_and_returns_with_a_status() -> None:
    office = Office(clients=3, status_interval_s=2.0)
    office.join(office.clients[1:], 5.0)

    assert lost(office.handle(Tick(), 6.5)) == [ClientLost(office.clients[0], 0, "joining")]
    assert lost(office.handle(Tick(), 7.0)) == []
    effects = office.join(office.clients[:1], 8.0)
    assert notes(effects) == ["client_joined"]
    assert [task.client for task in office.tasks(effects)] == office.clients[:1]


def test_members_of_a_given_up_group_are_lost_and_return_with_an_offer() -> None:
    office = Office(clients=3)
    office.draw()
    entry = office.desk.chain.draw
    assert entry is not None

    effects = office.handle(GroupGivenUp(entry.entry, 0, "silent", (office.clients[0],), ()), 2.0)
    assert lost(effects) == [ClientLost(office.clients[0], 0, "offer")]
    office.handle(office.change(), 3.0)
    assert office.scheduler.live == set(office.clients[1:])
    effects = office.offers(office.clients[:1], 4.0, counter=20)
    assert notes(effects) == ["client_joined"]
    assert office.scheduler.live == set(office.clients)


REPLIES: list[Shares | Words | Agreement | Reveal] = [
    Shares(transcript=bytes(32), boxes=b"", commitments=b"", seed_commitment=bytes(32)),
    Words(transcript=bytes(32), participants=b"\1", part=0, parts=1, body=b""),
    Agreement(transcript=bytes(32), participants=b"\1", arrived=b"\1"),
    Reveal(transcript=bytes(32), shares=b""),
]


def words_of(client: str) -> GroupReplyArrived:
    return GroupReplyArrived(client, REPLIES[1], b"frame")


@pytest.mark.parametrize("reply", REPLIES)
def test_what_a_member_says_in_its_group_is_a_sign_of_life(reply: Shares | Words | Agreement | Reveal) -> None:
    office = Office(clients=3)
    office.draw()
    draw = office.desk.chain.draw
    assert draw is not None

    office.handle(GroupReplyArrived(office.clients[0], reply, b"frame"), 2.0)
    effects = office.handle(GroupGivenUp(draw.entry, 0, "silent", tuple(office.clients[:2]), ()), 3.0)
    assert [(event.client, event.phase) for event in lost(effects)] == [
        (office.clients[0], type(reply).__name__.lower()),
        (office.clients[1], "offer"),
    ]


def test_what_is_said_when_no_draw_is_open_is_no_sign_of_life() -> None:
    office = Office(clients=3)
    office.draw()
    draw = office.desk.chain.draw
    assert draw is not None
    office.handle(office.void(), 2.0)

    office.handle(words_of(office.clients[0]), 3.0)
    effects = office.handle(GroupGivenUp(draw.entry, 0, "silent", tuple(office.clients[:1]), ()), 4.0)
    assert [event.phase for event in lost(effects)] == ["offer"]


def summed(draw: bytes, arrived: Sequence[str], **fields: Any) -> GroupSummed:
    whole: dict[str, Any] = {"dropped": (), "unheard": (), "blamed": (), "words": np.zeros(1, np.uint16)}
    return GroupSummed(**{"draw": draw, "group": 0, "arrived": tuple(arrived), **whole, **fields})


def test_who_dropped_out_of_a_sum_is_lost_and_who_only_did_not_sign_is_not() -> None:
    office = Office(clients=5)
    office.draw()
    draw = office.desk.chain.draw
    assert draw is not None
    gone, mute = office.clients[3:]

    effects = office.handle(summed(draw.entry, office.clients[:3], dropped=(gone,), unheard=(gone, mute)), 2.0)
    assert lost(effects) == [ClientLost(gone, 0, "offer")]
    assert office.scheduler.live == set(office.clients) - {gone}


# ── back-off ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("opened", [True, False])
def test_who_broke_the_protocol_is_not_drawn_for_some_versions(opened: bool) -> None:
    office = Office(clients=3)
    office.draw()
    draw = office.desk.chain.draw
    assert draw is not None
    liar, *others = office.clients

    event: Event = summed(draw.entry, office.clients, blamed=(liar,))
    if not opened:
        event = GroupGivenUp(draw.entry, 0, "another secret", (), (liar,))
    effects = office.handle(event, 2.0)
    assert [(n.event, n.fields) for n in only(Note, effects)] == [
        ("client_backed_off", {"client": liar, "until_version": 2})
    ]
    office.handle(office.change(), 3.0)

    for version in (1, 2):
        offer = office.desk.offer(liar, 100 + version)
        effects = office.handle(offer, 4.0)
        refused = version < 2
        assert notes(effects) == ([f"refused {RefusalReason.BACKED_OFF}"] if refused else [])
        assert (Settle(offer.receipt) in effects) is refused
        if refused:
            effects = [*office.offers(others, 5.0, counter=100 + version), *office.handle(Tick(), 5.0 + DEADLINE_S)]
            (made,) = draws(effects)
            assert set(made.clients) == set(others)
            office.read_back(effects, 40.0)
            office.handle(office.change(), 41.0)
    assert liar in office.scheduler.live


def test_a_draw_that_lacks_clients_that_are_backed_off_is_waited_for_and_says_so() -> None:
    office = Office(clients=3, trim=1)
    office.draw()
    draw = office.desk.chain.draw
    assert draw is not None
    liar, *others = office.clients
    office.handle(summed(draw.entry, office.clients, blamed=(liar,)), 2.0)
    office.handle(office.change(), 3.0)

    office.offers(others, 4.0, counter=101)
    (waiting,) = only(Note, office.handle(Tick(), 4.0 + DEADLINE_S))
    assert waiting.event == "waiting_for_clients"
    assert waiting.fields == {"version": 1, "offers": 2, "needed": 3, "live": 3, "backed_off": [liar]}


# ── draws in vain ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_draws_of_one_version_in_vain_raise_an_alarm_and_another_version_begins_anew() -> None:
    office = Office(clients=3)
    alarms = []
    for _ in range(VOID_DRAWS_ALARM + 1):
        office.draw()
        effects = office.handle(office.void(), 2.0)
        alarms.append([note.fields["version"] for note in only(Note, effects) if note.event == "alarm"])
    assert alarms == [[]] * (VOID_DRAWS_ALARM - 1) + [[0], [0]]

    office.draw()
    office.handle(office.change(), 3.0)
    for _ in range(VOID_DRAWS_ALARM - 1):
        office.draw()
        assert "alarm" not in notes(office.handle(office.void(), 4.0))
    office.draw()
    assert "alarm" in notes(office.handle(office.void(), 5.0))


# ── offers of groups of more than one ───────────────────────────────────────────────────────────────────────────────

KEYS = PublicKeys(sealing=b"s" * 32, masking=b"m" * 32)


@pytest.mark.parametrize("group_size", [1, 3])
def test_offers_bring_keys_exactly_where_groups_need_them(group_size: int) -> None:
    office = Office(clients=4, group_size=group_size)

    for client, keys in zip(office.clients, [None, KEYS], strict=False):
        offer = office.desk.offer(client, keys=keys)
        effects = office.handle(offer, 1.0)
        fits = (keys is None) == (group_size == 1)
        assert notes(effects) == ([] if fits else [f"refused {RefusalReason.MALFORMED}"])
        assert (Settle(offer.receipt) in effects) is not fits


def test_an_offer_too_large_for_a_roster_is_refused() -> None:
    office = Office(clients=3)
    offer = office.desk.offer(office.clients[0])

    effects = office.handle(replace(offer, frame=bytes(OFFER_BYTES_MAX + 1)), 1.0)
    assert notes(effects) == [f"refused {RefusalReason.MALFORMED}"]
    assert notes(office.handle(offer, 1.0)) == []


def test_groups_of_more_than_one_are_drawn_and_their_rosters_hold_the_offers() -> None:
    office = Office(clients=7, group_size=3)
    effects = office.offers(office.clients, 1.0, keys=KEYS)
    (made,) = draws(effects)
    assert (made.groups, len(made.clients)) == (2, 7)

    effects += office.read_back(effects, 1.0)
    jobs = [message for message in office.desk.open(effects) if isinstance(message, GroupJob)]
    groups = [group for job in jobs for group in job.members]
    assert sorted(len(group.members) for group in groups) == [3, 4]
    for member in (member for group in groups for member in group.members):
        assert office.desk.federation.opener().open(member.offer).sender == member.client


def test_words_do_not_bring_back_a_client_that_has_left() -> None:
    office = Office(clients=3)
    office.draw()
    office.handle(office.desk.status(office.clients[0], ClientState.DRAINING), 2.0)

    office.handle(words_of(office.clients[0]), 2.0)
    assert office.scheduler.live == set(office.clients[1:])


@pytest.mark.parametrize("event", [summed(bytes(32), ["client-0"]), DrawMade(bytes(32), 0, 1, ())])
def test_other_machines_events_change_nothing(event: Event) -> None:
    office = Office(clients=3)

    assert office.handle(event, 1.0) == ()


# ── any order of anything ───────────────────────────────────────────────────────────────────────────────────────────

CLIENT = st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), CLIENT, st.integers(0, 6), st.integers(-1, 2)),
        st.tuples(st.just("status"), CLIENT, st.sampled_from([ClientState.IDLE, ClientState.DRAINING])),
        st.tuples(st.sampled_from(["tick", "read back", "change", "void", "give up"]), st.integers(1, 40)),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(STEPS, st.sampled_from([None, 2]))
def test_offers_are_settled_once_and_no_attempt_is_drawn_twice(steps: list[Any], cohort_size: int | None) -> None:
    office = Office(clients=4, min_clients=2, cohort_size=cohort_size, rounds=1000)
    given_in: list[int] = []
    attempts: list[tuple[int, int]] = []
    written: list[CoordinatorEffect] = []
    now = 1.0

    def take(effects: Sequence[CoordinatorEffect]) -> None:
        chain = office.desk.chain
        for made in draws(effects):
            assert len(made.clients) >= office.desk.plan.min_offers
            assert len(set(made.clients)) == len(made.clients)
            attempts.append((made.version, chain.attempt))
        written.extend(only(Append, effects))

    for step in steps:
        open_draw = office.desk.chain.draw
        match step:
            case ("offer", client, counter, ahead):
                version = max(0, office.desk.chain.version + ahead)
                offer = office.desk.offer(office.clients[client], counter, version=version)
                given_in.append(id(offer.receipt))
                take(office.handle(offer, now))
                KEPT.append(offer.receipt)
            case ("status", client, state):
                take(office.handle(office.desk.status(office.clients[client], state), now))
            case ("tick", seconds):
                now += seconds
                take(office.handle(Tick(), now))
            case ("read back", _):
                entries, written[:] = list(written), []
                take(office.read_back(entries, now))
            case ("give up", client) if open_draw:
                take(office.handle(GroupGivenUp(open_draw.entry, 0, "silent", (office.clients[client % 4],), ()), now))
            case ("change", _) if open_draw and not written:
                take(office.handle(office.change(), now))
            case ("void", _) if open_draw and not written:
                take(office.handle(office.void(), now))

    # End it: everybody leaves, and what was drawn is read back.
    for client in office.clients:
        take(office.handle(office.desk.status(client, ClientState.DRAINING), now))
    take(office.read_back(written, now))
    assert len(set(attempts)) == len(attempts)
    assert dict(office.settled) == dict.fromkeys(given_in, 1)


KEPT: list[object] = []
"""Receipts are told apart by identity, so none may be collected before the comparison."""


# ── budgets, and directories that are behind ────────────────────────────────────────────────────────────────────────


def test_a_client_that_is_behind_is_sent_its_own_newest_signed_message() -> None:
    office = Office(clients=3)
    client = office.clients[0]
    offer = office.desk.offer(client, counter=5)
    office.handle(offer, 1.0)

    effects = office.handle(office.desk.status(client, counter=4), 2.0)

    assert notes(effects) == ["client_is_behind"]
    (reminder,) = [message for message in office.desk.open(effects) if isinstance(message, Reminder)]
    assert reminder == Reminder(client=client, frame=offer.frame)
    assert office.handle(office.desk.status(client, counter=6), 3.0) == ()


def test_the_run_ends_when_too_few_clients_have_any_budget_left() -> None:
    office = Office(clients=3, trim=1)
    exhausted = office.desk.status(office.clients[0], ClientState.BUDGET_EXHAUSTED, reason="spent")

    effects = office.handle(exhausted, 1.0)

    assert notes(effects) == ["client_budget_exhausted"]
    (stopped,) = [event for event in told(effects) if isinstance(event, RunStopped)]
    assert stopped.reason == "the privacy budget of 1 clients is exhausted, 2 are left and a draw needs 3"


def test_a_draw_under_way_is_finished_before_the_run_ends() -> None:
    office = Office(clients=3, trim=1)
    office.draw()

    for client in office.clients:
        effects = office.handle(office.desk.status(client, ClientState.BUDGET_EXHAUSTED, counter=9), 2.0)
        assert not [event for event in told(effects) if isinstance(event, RunStopped)]

    assert [event for event in told(office.handle(office.change(), 3.0)) if isinstance(event, RunStopped)]
