"""What a member of a group does with peers that break the protocol."""

from __future__ import annotations

from typing import Any

import pytest

from shared.wire.group_messages import Agreement, Arrived, Participants, Roster, Unmask, Words
from shared.wire.messages import Offer, PublicKeys
from tests.protocol.circle import Circle
from worker.policy import Policy


@pytest.mark.parametrize("weak", ["sealing", "masking"])
def test_a_key_of_low_order_keeps_us_out_of_one_group_and_stops_nothing_else(weak: str) -> None:
    circle = Circle(4)
    party, *others = (circle.parties[client] for client in circle.clients)
    circle.book.void()
    offers = [one.offer() for one in (party, *others)]
    bad = circle.open(offers[-1]).message
    assert isinstance(bad, Offer)
    assert isinstance(bad.keys, PublicKeys)
    bad = bad.model_copy(update={"keys": bad.keys.model_copy(update={weak: bytes(32)})})
    named = [*zip(circle.clients[:-1], offers[:-1], strict=True)]
    named.append((others[-1].client, circle.federation.seal_as(others[-1].client, bad)))
    (group,) = circle.draw_groups([named])
    roster = Roster(client=party.client, stage="stage-a", draw=circle.entry.digest, version=0, group=group, groups=1)

    assert party.take(roster) == []
    (refusal,) = party.refusals
    assert refusal.endswith("a public key of low order")

    circle.book.void()
    assert list(party.machine.follow(circle.book.chain, party.update)) == []
    circle.draw([one.offer() for one in (party, *others)])


def test_a_group_that_we_could_not_answer_ends_like_any_other() -> None:
    circle = Circle(1, max_colluders=0, policy=Policy(allow_groups_of_one=True))
    party = circle.parties["client-0"]
    party.spent.append(0)
    party.take(Roster(client="client-0", stage="s", draw=circle.entry.digest, version=0, group=circle.group, groups=1))
    assert party.refusals == ["there is no unspent update any more"]

    circle.book.void()
    assert list(party.machine.follow(circle.book.chain, None)) == []


def test_a_group_of_one_has_no_further_steps() -> None:
    """It has dealt no shares: a hub that asks for them all the same stops no worker."""
    circle = Circle(1, max_colluders=0, policy=Policy(allow_groups_of_one=True))
    (party,), transcript = circle.parties.values(), circle.transcript
    roster = Roster(client=party.client, stage="s", draw=circle.entry.digest, version=0, group=circle.group, groups=1)
    assert [type(letter.message) for letter in party.take(roster)] == [Words]
    agreement = Agreement(transcript=transcript, participants=b"\1", arrived=b"\1")
    named: dict[str, Any] = {"client": party.client, "stage": "s", "transcript": transcript}
    steps = (
        Participants(**named, participants=b"\1", boxes=(), commitments=()),
        Arrived(**named, participants=b"\1", arrived=b"\1"),
        Unmask(**named, agreements=(circle.federation.seal_as(party.client, agreement),)),
    )

    assert [party.take(step) for step in steps] == [[], [], []]
    assert party.refusals == ["a group of one ends with its words"] * 3
