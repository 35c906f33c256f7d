"""A coordinator that asks again: for both kinds of share, for an update that was spent, with messages of other groups.

As elsewhere, every attack comes with the rules that stop it, and succeeds when they are switched off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from shared.errors import RemoteProtocolError
from shared.identity import ClientId
from shared.wire import framing
from shared.wire.framing import seal
from shared.wire.group_messages import Arrived, Group, Participants, Roster, Shares, Words
from shared.wire.messages import Message
from tests.builders import make_federation
from tests.protocol.adversary import Hub
from tests.protocol.circle import Circle
from tests.protocol.scenes import GROUP, LENIENT, SAME_AGREEMENT, SIZES, Scene, scene
from worker import roster
from worker.session import Session
from worker.state import ClientState
from worker.steps import TRANSITIONS, MemberState, Step
from worker.storage import MemoryStorage
from worker.stored_update import TaskId, UpdateMeta

# ── both kinds of share ──────────────────────────────────────────────────────────────────────────────────────────────

STAGES = [("stage-a", "stage-a"), ("stage-a", "stage-b")]
AGAIN = (Step.ARRIVED, Step.UNMASK)


def never_answered(patch: pytest.MonkeyPatch) -> None:
    """Agreeing and revealing may be done again, as if nothing had been said."""
    patch.setattr(Session, "was_answered", lambda session, step: step not in AGAIN and step in session.bound)
    for state in (MemberState.AGREED, MemberState.REVEALED):
        patch.setitem(TRANSITIONS, (state, Step.ARRIVED), (MemberState.AGREED,))


def both_kinds(world: Scene, first: str, second: str, *, unmask_between: bool = True) -> None:
    """All arrived, says one stage; all but the victim, says another one, or the same one later."""
    hub, everybody, clients = world.hub, world.everybody, world.circle.clients
    for place in world.honest:
        hub.participants(world.transcript, clients[place], everybody, stage=first)
    for stage, arrived in ((first, everybody), (second, everybody - {0})):
        asked = [place for place in world.honest if place in arrived]
        for place in asked:
            hub.arrived(world.transcript, clients[place], everybody, arrived, stage=stage)
        for place in asked if unmask_between or stage == second else ():
            hub.unmask(world.transcript, clients[place], everybody, arrived, stage=stage)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stages", STAGES, ids=str)
def test_both_kinds_of_share_of_one_client_are_never_revealed(
    size: tuple[int, int, int], stages: tuple[str, str]
) -> None:
    world = scene(*size)
    both_kinds(world, *stages)

    assert not world.is_isolated()
    assert "another arrived after the one that was answered" in world.refusals()
    assert not any(party.refusals for party in (world.victim,))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nor_are_they_if_the_second_set_comes_before_any_share(size: tuple[int, int, int]) -> None:
    world = scene(*size)
    both_kinds(world, "stage-a", "stage-b", unmask_between=False)

    assert world.hub.smallest_sum(world.victim.client) is None
    assert {"another arrived after the one that was answered"} <= world.refusals()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stages", STAGES, ids=str)
def test_both_kinds_isolate_when_steps_may_run_twice(
    size: tuple[int, int, int], stages: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    never_answered(monkeypatch)
    world = scene(*size)
    both_kinds(world, *stages)

    assert world.is_isolated()


def test_who_asks_for_something_else_gets_what_was_answered_before_and_at_most_ten_times() -> None:
    world = scene(5, 3, 0)
    client, everybody = world.victim.client, world.everybody
    (first,) = world.hub.participants(world.transcript, client, everybody)
    for _ in range(10):
        assert world.hub.participants(world.transcript, client, everybody - {4}) == [first]
    assert world.hub.participants(world.transcript, client, everybody - {4}) == []
    assert world.hub.participants(world.transcript, client, everybody) == [first]


# ── a spent update ───────────────────────────────────────────────────────────────────────────────────────────────────


def two_draws(circle: Circle, *, forget: bool) -> Iterator[np.ndarray]:
    """Sum all; void the draw; draw and sum all but the victim. With `forget` the disks have lost the spent marks."""
    hub = Hub(circle)
    for arrived in (range(5), range(1, 5)):
        everybody = range(5)
        transcript = hub.open_group(circle.group)
        hub.roster(circle.group, circle.clients)
        for client in circle.clients:
            hub.participants(transcript, client, everybody)
        for place in arrived:
            hub.arrived(transcript, circle.clients[place], everybody, arrived)
        for place in arrived:
            hub.unmask(transcript, circle.clients[place], everybody, arrived)
        # Who holds the words may also say that they never came.
        hub.groups[transcript].words = {p: w for p, w in hub.groups[transcript].words.items() if p in arrived}
        found = Hub.smallest_sum(hub, circle.clients[arrived[-1]])
        if found is None:
            return
        assert found.members == set(arrived)
        yield found.words
        circle.book.void()
        for party in circle.parties.values():
            list(party.machine.follow(circle.book.chain, None))
            if forget:
                party.spent.clear()
        circle.group = circle.draw([circle.parties[client].offer() for client in circle.clients])
        hub.groups.clear()


def test_a_spent_update_is_in_no_second_sum() -> None:
    circle = Circle(5, max_colluders=0, policy=LENIENT)
    sums = list(two_draws(circle, forget=False))

    assert len(sums) == 1
    for party in circle.parties.values():
        assert "there is no unspent update any more" in party.refusals


def test_two_sums_of_the_same_updates_differ_by_the_victims_words() -> None:
    circle = Circle(5, max_colluders=0, policy=LENIENT)
    with_victim, without = two_draws(circle, forget=True)

    words = circle.parties["client-0"].words
    assert words is not None
    # Everybody rounds afresh in the second draw, by less than one each.
    assert np.abs((with_victim - without - words).view(np.int32)).max() <= 5


@pytest.mark.parametrize("in_force", [True, False])
def test_a_worker_that_restarts_masks_nothing_that_was_spent(in_force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryStorage()
    state = ClientState(disk, client=ClientId("client-0"), federation=UUID(int=5))
    meta = UpdateMeta(task=TaskId(0, 0), trained_head=bytes(32), num_examples=10, metrics={})
    update = state.save_update(np.ones(8, dtype=np.float32), meta)
    state.spend(update.update_id)
    disk.crash()

    if not in_force:
        monkeypatch.setattr(ClientState, "is_spent", lambda *_: False)
    again = ClientState(disk, client=ClientId("client-0"), federation=UUID(int=5)).unspent()
    circle = Circle(5, max_colluders=0, policy=LENIENT)
    for party in circle.parties.values():
        party.update = again  # type: ignore[assignment]
    hub = Hub(circle)
    transcript = hub.open_group(circle.group)
    hub.roster(circle.group, circle.clients)
    answers = hub.participants(transcript, "client-0", range(5))

    assert [type(answer) for answer in answers] == ([] if in_force else [Words])
    assert circle.parties["client-0"].refusals == (["there is no unspent update any more"] if in_force else [])


def test_words_leave_only_after_the_spent_mark_is_on_the_disk() -> None:
    circle = Circle(5, max_colluders=0, policy=LENIENT)
    party = circle.parties["client-0"]
    hub = Hub(circle)
    transcript = hub.open_group(circle.group)
    hub.roster(circle.group, circle.clients)
    party.machine.spent = lambda: iter(())  # type: ignore[method-assign]
    for stage in ("stage-a", "stage-b"):
        assert not any(isinstance(m, Words) for m in hub.participants(transcript, "client-0", range(5), stage=stage))
    assert party.words is not None


# ── messages of other groups, versions and federations ───────────────────────────────────────────────────────────────


def next_draw(world: Scene) -> Group:
    """Void the open draw and draw the same clients again, with fresh offers."""
    circle = world.circle
    circle.book.void()
    for party in circle.parties.values():
        list(party.machine.follow(circle.book.chain, None))
        party.spent.clear()
    circle.group = circle.draw([circle.parties[client].offer() for client in circle.clients])
    world.hub.roster(circle.group, circle.clients)
    return circle.group


@pytest.mark.parametrize("in_force", [True, False])
def test_a_step_of_another_group_moves_nothing(in_force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = scene(5, 3, 0)
    if not in_force:
        GROUP.switch_off(monkeypatch)
    old = world.transcript
    next_draw(world)
    answers = world.hub.participants(old, world.victim.client, world.everybody)

    assert [type(answer) for answer in answers] == ([] if in_force else [Words])
    assert world.victim.refusals == (["Participants of another group"] if in_force else [])


@pytest.mark.parametrize("in_force", [True, False])
def test_agreements_of_another_draw_open_nothing(in_force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_force:
        SAME_AGREEMENT.switch_off(monkeypatch)
    world = scene(5, 3, 0)
    hub, clients, everybody = world.hub, world.circle.clients, world.everybody
    for place in everybody:
        hub.participants(world.transcript, clients[place], everybody)
        hub.arrived(world.transcript, clients[place], everybody, everybody)
    old = list(hub.groups[world.transcript].agreements.values())
    transcript = hub.open_group(next_draw(world))
    hub.roster(world.circle.group, clients, stage="stage-c")
    for place in everybody:
        hub.participants(transcript, clients[place], everybody)
    hub.arrived(transcript, clients[0], everybody, everybody)
    answers = hub.unmask(transcript, clients[0], everybody, everybody, frames=old)

    assert len(answers) == (0 if in_force else 1)
    assert world.victim.refusals == (["0 valid agreements, 3 needed"] if in_force else [])


@pytest.mark.parametrize("in_force", [True, False])
def test_a_roster_that_contradicts_its_draw_is_refused(in_force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_force:
        monkeypatch.setattr(roster, "check_draw", lambda *_: None)
    circle = Circle(5, max_colluders=0, policy=LENIENT)
    message = Roster(client="client-0", stage="s", draw=circle.entry.digest, version=7, group=circle.group, groups=1)
    answers = circle.parties["client-0"].take(message)

    assert [type(letter.message) for letter in answers] == ([] if in_force else [Shares])
    assert circle.parties["client-0"].refusals == (["the roster contradicts its draw"] if in_force else [])


def test_a_roster_of_a_closed_draw_opens_nothing() -> None:
    circle = Circle(5, max_colluders=0, policy=LENIENT)
    roster = Roster(client="client-0", stage="s", draw=circle.entry.digest, version=0, group=circle.group, groups=1)
    circle.book.void()

    assert circle.parties["client-0"].take(roster) == []
    assert circle.parties["client-0"].state is MemberState.OUT


@pytest.mark.parametrize("kind", [Participants, Arrived])
def test_frames_of_another_federation_do_not_verify(kind: type[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same coordinator key, the same clients, another federation: its words are not ours."""
    federation = make_federation(5)
    fields = {"client": "client-0", "stage": "s", "transcript": bytes(32), "participants": b"\x1f"}
    message = kind(**fields, **({"arrived": b"\x1f"} if kind is Arrived else {"boxes": (), "commitments": ()}))
    other = UUID(int=6)
    frame = seal(message, sender="coordinator", federation=other, key=federation.coordinator)

    with pytest.raises(RemoteProtocolError, match="does not verify"):
        federation.opener().open(frame)
    assert replace(federation.opener(), federation=other).open(frame).message == message

    whole = framing._context
    monkeypatch.setattr(framing, "_context", lambda *context: whole(*context)[16:])
    frame = seal(message, sender="coordinator", federation=other, key=federation.coordinator)
    assert federation.opener().open(frame).message == message
