"""Dealers that lie: the sum is still right, or the group is given up; who can be known to have lied is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from coordinator.events import GroupGivenUp
from shared.crypto.commitments import NO_SHARE
from shared.crypto.sealing import seal
from shared.crypto.shamir import SHARE_BYTES
from shared.wire.group_messages import SHARE_BOX_BYTES, Arrived, Reveal, Shares, Words
from shared.wire.messages import Message
from tests.protocol.circle import Circle, Party, entropy_of
from tests.protocol.lies import BAD, PLACE, Lie, assert_sum, corrupt, instead, others, run, session_of
from tests.protocol.relay import Relay
from worker import dealing
from worker.dealing import Ring, deal
from worker.member import Session


def spoil_boxes(*receivers: int) -> Lie:
    """Seal rubbish to these places; the hashes are those of the shares that it should have sealed."""

    def change(shares: Shares) -> Iterable[Message]:
        boxes = bytearray(shares.boxes)
        for receiver in receivers:
            start = (receiver - (receiver > PLACE)) * SHARE_BOX_BYTES
            boxes[start : start + SHARE_BOX_BYTES] = bytes(SHARE_BOX_BYTES)
        return (shares.model_copy(update={"boxes": bytes(boxes)}),)

    return instead(Shares, change)


def seal_other_shares(*receivers: int) -> Lie:
    """Seal proper shares to these places, but not those whose hashes it has published."""

    def change(party: Party, message: Message) -> Iterable[Message]:
        if not isinstance(message, Shares):
            return (message,)
        session, boxes = session_of(party), bytearray(message.boxes)
        assert session.keys is not None
        for receiver in receivers:
            key = dealing._box_key(session.ring, session.keys, PLACE, receiver)
            start = (receiver - (receiver > PLACE)) * SHARE_BOX_BYTES
            boxes[start : start + SHARE_BOX_BYTES] = seal(key, bytes(2 * SHARE_BYTES), session.ring.transcript)
        return (message.model_copy(update={"boxes": bytes(boxes)}),)

    return change


@pytest.mark.parametrize("spoil", [spoil_boxes, seal_other_shares])
def test_a_dealer_that_seals_wrong_shares_to_one_is_summed_with_the_others_shares(
    spoil: Callable[..., Lie],
) -> None:
    circle = Circle(4)
    corrupt(circle, spoil(0))

    result = run(circle)
    assert_sum(circle, result, circle.clients)
    # The stage cannot know which of the two it was.
    assert result.blamed == ()
    assert [note.event for note in circle.parties["client-0"].notes] == ["no_share"]


@pytest.mark.parametrize("spoil", [spoil_boxes, seal_other_shares])
def test_a_dealer_that_seals_wrong_shares_to_all_spoils_the_group_and_is_named(spoil: Callable[..., Lie]) -> None:
    circle = Circle(5)
    corrupt(circle, spoil(0, 2, 3, 4))

    result = run(circle)
    assert isinstance(result, GroupGivenUp)
    assert result.reason == "1 shares of a member's secret, 4 needed"
    assert result.blamed == (BAD,)


def test_members_who_deny_an_honest_dealers_shares_do_not_get_it_named() -> None:
    # Two of four, one more than there may be: the group has no sum, but fewer than t accuse the dealer.
    circle = Circle(4)

    def deny(reveal: Reveal) -> Iterable[Message]:
        return (reveal.model_copy(update={"shares": NO_SHARE + reveal.shares[SHARE_BYTES:]}),)

    corrupt(circle, instead(Reveal, deny), "client-1")
    corrupt(circle, instead(Reveal, deny), "client-2")

    result = run(circle)
    assert isinstance(result, GroupGivenUp)
    assert result.blamed == ()


@pytest.mark.parametrize("lost", [None, Words])
def test_a_dealer_of_another_secret_that_is_not_needed_does_no_harm(lost: type[Message] | None) -> None:
    # Its masking key is not rebuilt if its words arrive; its self mask is not if they do not.
    circle = Circle(4)
    deal_another(circle, self_seed=lost is not None, masking_seed=lost is None)

    result = run(circle, None if lost is None else {BAD: lost})
    assert_sum(circle, result, circle.clients if lost is None else others(circle))
    assert result.blamed == ()


@pytest.mark.parametrize("lost", [None, Words])
def test_a_dealer_of_another_secret_than_its_own_is_named(lost: type[Message] | None) -> None:
    circle = Circle(4)
    deal_another(circle, self_seed=lost is None, masking_seed=lost is not None)

    result = run(circle, None if lost is None else {BAD: lost})
    assert isinstance(result, GroupGivenUp)
    assert result.reason == "a member shared another secret than its own"
    assert result.blamed == (BAD,)


def deal_another(circle: Circle, *, self_seed: bool, masking_seed: bool) -> None:
    """Deal shares, properly sealed and published, of something else than the secrets that it masks with."""

    def lie(party: Party, message: Message) -> Iterable[Message]:
        if not isinstance(message, Shares):
            return (message,)
        session = session_of(party)
        assert session.keys is not None
        keys = session.keys
        if masking_seed:
            keys = dealing.OneTimeKeys(sealing_seed=keys.sealing_seed, masking_seed=bytes(range(32)))
        dealt = deal(session.ring, keys, lambda count: bytes(place % 251 for place in range(count)))
        own = session.dealt
        assert own is not None
        # It reveals what it has dealt, so that only the rebuilt secret can give it away.
        session.dealt = dealing.Dealt(dealt.shares, own.seed if self_seed else dealt.seed, dealt.own)
        commitment = (own if self_seed else dealt).shares.seed_commitment
        return (dealt.shares.model_copy(update={"seed_commitment": commitment}),)

    corrupt(circle, lie)


def test_shares_that_rebuild_no_secret_name_their_dealer() -> None:
    circle = Circle(4)

    def lie(party: Party, message: Message) -> Iterable[Message]:
        if not isinstance(message, Shares):
            return (message,)
        # Points of no polynomial: every member's share is proper, together they rebuild more than 32 bytes.
        ring = session_of(party).ring
        return (with_shares(ring, session_of(party), [(x + 7).to_bytes(SHARE_BYTES, "big") for x in range(4)]),)

    corrupt(circle, lie)
    result = run(circle)
    assert isinstance(result, GroupGivenUp)
    assert result.blamed == (BAD,)


def with_shares(ring: Ring, session: Session, shares: list[bytes]) -> Shares:
    """A message that deals these shares (by place) of the self mask, sealed and published as they are."""
    assert session.keys is not None
    assert session.dealt is not None
    boxes, commitments = [], []
    for place, share in enumerate(shares):
        pair = (share, share)
        commitments.append(dealing._commitments(ring, ring.me, place, pair))
        if place != ring.me:
            key = dealing._box_key(ring, session.keys, ring.me, place)
            boxes.append(seal(key, b"".join(pair), ring.transcript))
        else:
            session.dealt = dealing.Dealt(session.dealt.shares, session.dealt.seed, pair)
    return session.dealt.shares.model_copy(update={"boxes": b"".join(boxes), "commitments": b"".join(commitments)})


def test_a_dealer_that_tells_two_stages_different_shares_puts_no_blame_on_those_who_opened_the_first() -> None:
    circle = Circle(4)
    relay = Relay(circle)
    dealt: list[Message] = []

    def lie(party: Party, message: Message) -> Iterable[Message]:
        if not isinstance(message, Shares):
            return (message,)
        session = session_of(party)
        assert session.keys is not None
        dealt.append(message if not dealt else deal(session.ring, session.keys, entropy_of("again")).shares)
        return (dealt[-1],)

    corrupt(circle, lie)
    relay.open("stage-a")
    while relay.letters:
        letter = relay.letters.popleft()
        if not isinstance(letter.message, Arrived):
            relay.deliver(letter)
    relay.kill("stage-a")
    relay.open("stage-b")
    relay.settle()

    assert len(dealt) == 2
    (result,) = relay.results
    assert isinstance(result, GroupGivenUp)
    assert not set(result.blamed) & set(others(circle))


def test_a_lie_about_the_share_of_a_dealer_that_was_lost_with_its_stage_does_not_get_it_named() -> None:
    # What the lost client had published is lost with the first stage, so nothing checks what is revealed of it.
    circle, lost = Circle(5), 3
    relay = Relay(circle)

    def lie(reveal: Reveal) -> Iterable[Message]:
        shares = bytearray(reveal.shares)
        shares[lost * SHARE_BYTES : (lost + 1) * SHARE_BYTES] = bytes(SHARE_BYTES)
        return (reveal.model_copy(update={"shares": bytes(shares)}),)

    corrupt(circle, instead(Reveal, lie))
    relay.open("stage-a")
    while relay.letters:
        letter = relay.letters.popleft()
        if not isinstance(letter.message, Words):
            relay.deliver(letter)
    relay.kill("stage-a")
    relay.lost_clients.add(circle.clients[lost])
    relay.open("stage-b")
    relay.settle()

    (result,) = relay.results
    assert isinstance(result, GroupGivenUp)
    assert result.blamed == ()
