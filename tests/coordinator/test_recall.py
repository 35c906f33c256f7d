"""The scheduler's successor: it goes on with the open draw, and knows of each client what the journal keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from coordinator.aggregator.steering import SteeringState
from coordinator.events import CoordinatorEffect, DrawnBefore, GroupGivenUp, Tick, TookOffice
from coordinator.kept import Kept, RunMemory, SchedulerMemory
from coordinator.scheduler.rounds import Scheduler
from shared.effects import Append, Settle
from shared.modellog.chain import GENESIS
from shared.wire.group_messages import GroupJob
from shared.wire.log_messages import DrawEntry, Entry, VoidEntry
from shared.wire.messages import ClientState, Reminder, Task
from tests.coordinator.builders import notes, only
from tests.coordinator.test_rounds import DEADLINE_S, Office, draws


def sealed_in(effects: Sequence[object]) -> Entry:
    (append,) = only(Append, effects)
    return append.sealed.entry


def succeed(
    office: Office, memory: SchedulerMemory | None, drawn: tuple[DrawnBefore, ...] = (), now: float = 100.0
) -> tuple[CoordinatorEffect, ...]:
    """Another session takes over with what was kept; returns what it does."""
    office.scheduler = Scheduler(office.desk.plan, office.desk.writer, office.desk.federation.seal)
    kept = None if memory is None else Kept(memory, RunMemory(SteeringState()), 0)
    return office.handle(TookOffice(kept, drawn), now)


def offers_of(office: Office, memory: SchedulerMemory) -> tuple[DrawnBefore, ...]:
    opener = office.desk.federation.opener()
    opened = [opener.open(frame) for frame in memory.drawn]
    return tuple(DrawnBefore(one.sender, one.message, one.digest, one.frame) for one in opened)  # type: ignore[arg-type]


def drawn_and_kept(clients: int = 5, **fields: Any) -> tuple[Office, list[CoordinatorEffect], SchedulerMemory]:
    """All clients have offered and are drawn; the draw is in the log; what its record holds."""
    office = Office(clients, **fields)
    effects = office.offers(office.clients, 1.0, counter=7)
    memory = office.scheduler.keep(sealed_in(effects))
    office.read_back(effects, 1.0)
    return office, effects, memory


# ── the open draw ──


def test_the_record_of_a_draw_holds_its_offers_as_they_were_signed() -> None:
    office, _, memory = drawn_and_kept()

    assert len(memory.drawn) == 5
    assert {one.client: one.offer.counter for one in offers_of(office, memory)} == dict.fromkeys(office.clients, 7)


def test_an_open_draw_goes_on_with_the_same_groups_and_its_jobs_are_published_again() -> None:
    office, before, memory = drawn_and_kept(group_size=1)

    effects = succeed(office, memory, offers_of(office, memory))

    assert notes(effects) == ["draw_resumed"]
    assert only(Append, effects) == []
    (was,), (made,) = draws(before), draws(effects)
    assert (made.entry, made.version, made.groups, made.clients) == (was.entry, was.version, was.groups, was.clients)
    assert (was.resumed, made.resumed) == (False, True)
    jobs = [[m for m in office.desk.open(said) if isinstance(m, GroupJob)] for said in (before, effects)]
    assert jobs[0] == jobs[1]


def test_an_offer_of_the_open_draw_is_settled_when_it_comes_again() -> None:
    office, _, memory = drawn_and_kept()
    succeed(office, memory, offers_of(office, memory))
    again = office.desk.offer(office.clients[0], counter=7)

    effects = office.handle(again, 101.0)
    assert notes(effects) == ["repeated"]
    assert only(Settle, effects) == [Settle(again.receipt)]


@pytest.mark.parametrize("lost", ["record", "offer", "other"])
def test_a_draw_whose_offers_are_not_kept_is_closed(lost: str) -> None:
    office, _, memory = drawn_and_kept()
    drawn = offers_of(office, memory)
    if lost == "other":
        stranger = office.desk.offer(office.clients[0], counter=8)
        drawn = (DrawnBefore(stranger.client, stranger.offer, stranger.digest, stranger.frame), *drawn[1:])

    effects = succeed(office, memory if lost != "record" else None, {"record": (), "offer": drawn[1:]}.get(lost, drawn))

    void = sealed_in(effects)
    assert isinstance(void, VoidEntry)
    assert "no record of its offers" in void.reason
    office.read_back(effects, 100.0)
    assert (office.desk.chain.draw, office.desk.chain.attempt) == (None, 1)


def test_after_a_resumed_draw_the_next_one_waits_for_everybody_who_took_part() -> None:
    office, _, memory = drawn_and_kept(min_clients=2)
    succeed(office, memory, offers_of(office, memory))
    office.handle(office.change(), 101.0)

    assert draws(office.offers(office.clients[:4], 102.0, counter=8)) == []
    (made,) = draws(office.offers(office.clients[4:], 103.0, counter=8))
    assert len(made.clients) == 5


def test_who_took_part_and_is_gone_is_waited_for_until_the_deadline() -> None:
    office, _, memory = drawn_and_kept(min_clients=2)
    succeed(office, memory, offers_of(office, memory))
    office.handle(office.change(), 101.0)
    office.offers(office.clients[:4], 102.0, counter=8)

    effects = office.handle(Tick(), 101.0 + DEADLINE_S)
    assert notes(effects) == ["client_lost"]
    (made,) = draws(effects)
    assert len(made.clients) == 4


def test_without_a_draw_nothing_is_closed() -> None:
    office, _, memory = drawn_and_kept()
    office.handle(office.change(), 2.0)

    assert succeed(office, memory) == ()


# ── what is known of each client ──


def test_an_offer_that_was_drawn_is_not_drawn_again_by_a_successor() -> None:
    office, _, _ = drawn_and_kept()
    change = office.change_on_its_way()
    memory = office.scheduler.keep(change.sealed.entry)
    office.read_back([change], 2.0)
    succeed(office, memory)

    assert memory.drawn == ()
    for counter in (6, 7):
        assert notes(office.handle(office.desk.offer(office.clients[0], counter=counter), 101.0)) == [
            "refused replayed"
        ]
    assert notes(office.handle(office.desk.offer(office.clients[0], counter=8), 102.0)) == []


def test_a_client_that_is_behind_is_sent_its_own_message_by_a_successor_too() -> None:
    office, _, _ = drawn_and_kept()
    newest = office.desk.offer(office.clients[0], counter=9)
    office.handle(newest, 1.5)
    change = office.change_on_its_way()
    memory = office.scheduler.keep(change.sealed.entry)
    office.read_back([change], 2.0)
    succeed(office, memory)

    effects = office.handle(office.desk.status(office.clients[0], counter=8), 101.0)
    assert notes(effects) == ["client_is_behind"]
    (reminder,) = [message for message in office.desk.open(effects) if isinstance(message, Reminder)]
    assert (reminder.client, reminder.frame) == (office.clients[0], newest.frame)


def test_a_task_of_a_successor_says_which_offer_was_drawn() -> None:
    office, _, memory = drawn_and_kept()
    office.handle(office.change(), 2.0)
    succeed(office, memory)

    effects = office.handle(office.desk.status(office.clients[0], log_position="absent", counter=7), 101.0)
    (task,) = [message for message in office.desk.open(effects) if isinstance(message, Task)]
    assert task.drawn == 7


def test_who_broke_the_protocol_is_backed_off_by_a_successor_too_and_longer_the_next_time() -> None:
    office, effects, _ = drawn_and_kept()
    (made,) = draws(effects)
    blamed = office.clients[0]
    office.handle(GroupGivenUp(made.entry, 0, "bad shares", (), (blamed,)), 1.5)
    change = office.change_on_its_way()
    memory = office.scheduler.keep(change.sealed.entry)
    office.read_back([change], 2.0)
    succeed(office, memory)

    assert notes(office.handle(office.desk.offer(blamed, counter=8), 101.0)) == ["refused backed_off"]
    (note,) = [
        effect
        for effect in office.handle(GroupGivenUp(made.entry, 0, "bad shares", (), (blamed,)), 102.0)
        if getattr(effect, "event", "") == "client_backed_off"
    ]
    assert note.fields["until_version"] == 1 + 4  # type: ignore[union-attr]


def test_who_left_is_not_waited_for_by_a_successor() -> None:
    office, _, _ = drawn_and_kept(min_clients=2)
    office.handle(office.desk.status(office.clients[0], ClientState.LEAVING), 1.5)
    change = office.change_on_its_way()
    memory = office.scheduler.keep(change.sealed.entry)
    office.read_back([change], 2.0)
    succeed(office, memory)

    (made,) = draws(office.offers(office.clients[1:], 101.0, counter=8))
    assert sorted(made.clients) == office.clients[1:]


def test_who_was_revoked_is_forgotten() -> None:
    office, _, memory = drawn_and_kept()
    office.handle(office.change(), 2.0)
    strangers = SchedulerMemory(
        (*memory.clients, type(memory.clients[0])("revoked", drawn=3, live=True)), (), memory.deadline_s
    )
    succeed(office, strangers)

    assert "revoked" not in office.scheduler.live
    assert office.scheduler.live == set(office.clients)


def test_the_deadline_that_offers_have_taught_is_kept() -> None:
    office = Office()
    office.offers(office.clients[:4], 20.0)
    effects = office.offers(office.clients[4:], 20.0)
    office.read_back(effects, 20.0)
    office.handle(office.change(), 21.0)
    memory = office.scheduler.keep(DrawEntry(parent=GENESIS, term=0, version=1, groups=1, offers=1, root=bytes(32)))

    assert memory.deadline_s == 60.0


# ── asynchronous mode ──


def buffered(**fields: Any) -> Office:
    return Office(6, **{"mode": "async", "pool_size": 2, "max_staleness": 2, "cooldown": 3, **fields})


def test_who_counted_rests_under_a_successor_too() -> None:
    office = buffered()
    first, second, *others = office.clients
    office.read_back(office.offers([first, second], 1.0), 1.0)
    change = office.change_on_its_way()
    memory = office.scheduler.keep(change.sealed.entry)
    office.read_back([change], 2.0)
    succeed(office, memory)

    assert draws(office.offers([first, second], 101.0, counter=2)) == []
    (made,) = draws(office.offers(others[:2], 102.0, counter=2))
    assert sorted(made.clients) == sorted(others[:2])


def test_who_was_drawn_for_a_void_does_not_rest() -> None:
    office = buffered()
    effects = office.offers(office.clients[:2], 1.0)
    office.read_back(effects, 1.0)
    void = office.desk.writer.append(
        VoidEntry(parent=GENESIS, term=0, draw=only(Append, effects)[0].sealed.digest, reason="test")
    )
    memory = office.scheduler.keep(void.sealed.entry)
    office.read_back([void], 2.0)
    succeed(office, memory)

    (made,) = draws(office.offers(office.clients[:2], 101.0, counter=2))
    assert sorted(made.clients) == office.clients[:2]


def test_who_was_drawn_unheard_is_tasked_when_a_resumed_draw_ends() -> None:
    office = buffered()
    effects = office.offers(office.clients[:2], 1.0)
    memory = office.scheduler.keep(sealed_in(effects))
    office.read_back(effects, 1.0)
    succeed(office, memory, offers_of(office, memory))

    tasks = office.tasks(office.handle(office.change(), 101.0))
    assert [task.client for task in tasks] == office.clients[:2]


def test_without_an_open_draw_a_successor_tells_everybody_which_offers_were_drawn() -> None:
    office = buffered()
    office.read_back(office.offers(office.clients[:2], 1.0, counter=5), 1.0)
    change = office.change_on_its_way()
    memory = office.scheduler.keep(change.sealed.entry)
    office.desk.read_back([change])

    tasks = office.tasks(succeed(office, memory))
    assert [(task.client, task.drawn) for task in tasks] == [
        (client, 5 if client in office.clients[:2] else 0) for client in office.clients
    ]
