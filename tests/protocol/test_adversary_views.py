"""A coordinator that shows one client another model, other coordinates or another plan than the rest of its group.

Two rules stop it, one behind the other: an offer names the model that it was trained on, and every member compares it
with its own log; and the transcript hash names plan, threshold, model and coordinates, so that members with different
views cannot even open each other's shares.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from shared.codec.coordinates import coordinates_digest
from shared.errors import RefusalReason
from shared.modellog.chain import GENESIS
from shared.modellog.entries import seal_entry
from shared.modellog.reader import Skipped
from shared.plan import Plan
from shared.wire.group_messages import Group, Roster, Shares
from shared.wire.messages import Message
from tests.builders import LogBook
from tests.protocol.adversary import Hub
from tests.protocol.circle import Circle, D
from tests.protocol.scenes import LENIENT
from worker import member, roster
from worker.policy import Policy

SPARSE = {"selection": "random", "density": 0.5, "bits": 32}


def another_model(circle: Circle) -> LogBook:
    """A log that begins with other weights; with them go other coordinates."""
    return LogBook(circle.federation, circle.plan, np.full(D, 0.5, dtype=np.float32))


def another_threshold(circle: Circle) -> LogBook:
    """A log whose plan counts on fewer colluders, so that fewer members rebuild a secret."""
    return LogBook(circle.federation, circle.plan.model_copy(update={"max_colluders": 0}))


VIEWS = (another_model, another_threshold)


class TwoLogs:
    """Six clients; the victim follows a log of its own, whose draw holds the same group."""

    def __init__(self, view: Any) -> None:
        self.circle = circle = Circle(6, max_colluders=2, policy=LENIENT, codec=SPARSE)
        self.hub = Hub(circle)
        self.victim = circle.parties["client-0"]
        self.shown: LogBook = view(circle)
        self.shown.snapshot()
        self.shown.draw()
        for book in (circle.book, self.shown):
            book.void()
        honest, circle.book = circle.book, self.shown
        self.victim.machine._log = self.shown.reader
        own = self.victim.offer()
        circle.book = honest
        offers = [own, *(circle.parties[client].offer() for client in circle.clients[1:])]
        self.group = circle.draw(offers)
        draw = self.shown.draw_draft(root=circle.book.chain.draw.root)  # type: ignore[union-attr]
        self.shown_draw = self.shown.append(draw).digest

    def open_group(self) -> list[Message]:
        """Every member gets the roster of the draw in its own log; returns what the victim says to it."""
        self.hub.open_group(self.group)
        self.hub.roster(self.group, self.circle.clients[1:])
        message = Roster(client="client-0", stage="s", draw=self.shown_draw, version=0, group=self.group, groups=1)
        return self.hub.say(message)


def same_transcript(ground: object, draw: bytes, version: int, group: Group) -> bytes:
    """A hash of the roster alone, as if it did not matter what else members see."""
    return hashlib.sha256(repr(group.leaf).encode()).digest()


@pytest.mark.parametrize("view", VIEWS)
def test_nobody_deals_in_a_group_of_which_a_member_was_shown_something_else(view: Any) -> None:
    world = TwoLogs(view)

    assert world.open_group() == []
    assert world.victim.refusals == ["client-1 was shown another model"]
    for client in world.circle.clients[1:]:
        assert world.circle.parties[client].refusals == ["client-0 was shown another model"]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("bound", [True, False])
def test_without_that_rule_they_deal_and_the_transcript_still_parts_them(
    view: Any, bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "check_model", lambda *_: None)
    if not bound:
        monkeypatch.setattr(member, "transcript_of", same_transcript)
        monkeypatch.setattr(Hub, "transcript_of", lambda _, group: same_transcript(None, b"", 0, group))
    world = TwoLogs(view)
    (shares,) = world.open_group()
    assert isinstance(shares, Shares)
    others = world.hub.open_group(world.group)
    world.hub.groups[others].dealt[0] = shares
    world.hub.participants(others, "client-1", range(6))

    # What the victim has dealt opens under no other view than its own.
    lost = [note.fields["dealer"] for note in world.circle.parties["client-1"].notes if note.event == "no_share"]
    assert lost == (["client-0"] if bound else [])
    world.hub.arrived(others, "client-0", range(6), range(6))
    stopped = "Arrived of another group" in world.victim.refusals
    assert stopped == bound


def test_the_views_do_differ() -> None:
    model, plan = TwoLogs(another_model), TwoLogs(another_threshold)
    mine, other = model.circle.book.reader.coordinates, model.shown.reader.coordinates
    assert mine is not None
    assert other is not None
    assert coordinates_digest(mine, D) != coordinates_digest(other, D)
    assert plan.circle.plan.threshold(6) == 5
    assert plan.shown.plan.threshold(6) == 4


@pytest.mark.parametrize("in_force", [True, False])
def test_coordinates_that_differ_for_one_member_part_it_from_its_group(
    in_force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a reader of the same log came to other coordinates."""
    if not in_force:
        monkeypatch.setattr(member, "transcript_of", same_transcript)
        monkeypatch.setattr(Hub, "transcript_of", lambda _, group: same_transcript(None, b"", 0, group))
    circle = Circle(5, max_colluders=0, policy=LENIENT, codec=SPARSE)
    hub = Hub(circle)
    transcript = hub.open_group(circle.group)
    hub.roster(circle.group, circle.clients[:-1])
    coordinates = circle.book.reader.coordinates
    assert coordinates is not None
    circle.book.reader.coordinates = np.setdiff1d(np.arange(D, dtype=coordinates.dtype), coordinates)
    hub.roster(circle.group, circle.clients[-1:])
    answers = hub.participants(transcript, circle.clients[-1], range(4)) if in_force else []

    assert (4 in hub.groups[transcript].dealt) == (not in_force)
    assert answers == []
    refusals = circle.parties[circle.clients[-1]].refusals
    assert refusals == (["Participants of another group"] if in_force else [])


def test_an_offer_of_another_head_is_refused() -> None:
    """One member trained on what another entry made, at the same version."""
    circle = Circle(5, max_colluders=0, policy=LENIENT)
    circle.book.void()
    offers = [circle.parties[client].offer() for client in circle.clients]
    last = circle.open(offers[-1]).message.model_copy(update={"trained_head": b"h" * 32})
    group = circle.draw([*offers[:-1], circle.federation.seal_as(circle.clients[-1], last)])
    Hub(circle).roster(group, circle.clients[:1])

    assert circle.parties["client-0"].refusals == ["client-4 was shown another model"]


def test_a_worker_serves_no_plan_that_counts_on_fewer_colluders_than_its_policy() -> None:
    circle = Circle(6, max_colluders=1)
    weak: Plan = circle.plan.model_copy(update={"max_colluders": 0})
    policy = Policy(max_colluders=1)

    assert policy.objection_to(circle.plan, circle.federation.directory) == ""
    assert "policy.max_colluders=1" in policy.objection_to(weak, circle.federation.directory)


def test_a_worker_that_has_begun_under_a_plan_is_shown_no_other() -> None:
    """The policy looks at a plan once: a second first snapshot, of a later term, must not bring in a weaker one."""
    circle = Circle(6, max_colluders=1)
    federation, weak = circle.federation, circle.plan.model_copy(update={"max_colluders": 0})
    book = LogBook(federation, circle.plan)
    book.snapshot()
    entry, weights = LogBook(federation, weak).snapshot_draft()
    later = entry.model_copy(update={"parent": GENESIS, "term": 9})
    (event,) = book.write(*seal_entry(later, weights, federation.seal, federation.signed).frames())

    assert isinstance(event, Skipped)
    assert event.reason is RefusalReason.NOT_ALLOWED
    assert book.reader.plan == circle.plan
