"""Members that lie: the sum is still right, or the group is given up; who can be known to have lied is named.

A dishonest member sends what it likes under its own signature. "Right" is the sum of the words that were sent for: a
member can always send words that are not its update's, which is what the rule across groups is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from coordinator.events import GroupGivenUp, GroupSummed
from shared.crypto.commitments import COMMITMENT_BYTES, NO_SHARE, seed_commitment
from shared.crypto.sealing import seal
from shared.crypto.shamir import SHARE_BYTES
from shared.wire.membership import encode_members
from shared.wire.messages import (
    SHARE_BOX_BYTES,
    Agreement,
    GroupMessage,
    Message,
    Reveal,
    Shares,
    Words,
)
from tests.protocol.circle import Circle, Letter, Party
from worker import dealing
from worker.dealing import Ring, deal
from worker.member import Session

BAD = "client-1"
PLACE = 1

Lie = Callable[[Party, Message], Iterable[Message]]
"""What a dishonest member sends instead of the message that it owes."""


def corrupt(circle: Circle, lie: Lie, client: str = BAD) -> None:
    """Make one member dishonest."""
    party = circle.parties[client]
    honest = party.take

    def take(message: GroupMessage) -> list[Letter]:
        return [
            Letter(client, "", said, circle.federation.seal_as(client, said), letter.stage)
            for letter in honest(message)
            for said in lie(party, letter.message)
        ]

    party.take = take  # type: ignore[method-assign]


def instead(kind: type[Message], change: Callable[[Any], Iterable[Message]]) -> Lie:
    """Lie in messages of one kind only."""
    return lambda _, message: change(message) if isinstance(message, kind) else (message,)


def run(circle: Circle, lost: dict[str, type[Message]] | None = None) -> GroupSummed | GroupGivenUp:
    """Run the group to its end; nothing passes of clients in `lost` from the first message of that kind on."""
    gone: set[str] = set()

    def passes(letter: Letter) -> bool:
        client = letter.to or letter.sender
        if lost and client in lost and isinstance(letter.message, lost[client]):
            gone.add(client)
        return client not in gone

    circle.start()
    return circle.finish(passes)


def assert_sum(circle: Circle, result: GroupSummed | GroupGivenUp, arrived: Iterable[str]) -> None:
    assert isinstance(result, GroupSummed), result
    assert result.arrived == tuple(arrived)
    np.testing.assert_array_equal(result.words, circle.plain_sum(result.arrived))


def others(circle: Circle) -> tuple[str, ...]:
    return tuple(client for client in circle.clients if client != BAD)


def session_of(party: Party) -> Session:
    session = party.machine._session
    assert session is not None
    return session


# ── dealers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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
def test_a_dealer_that_seals_wrong_shares_to_all_spoils_the_group(spoil: Callable[..., Lie]) -> None:
    circle = Circle(5)
    corrupt(circle, spoil(0, 2, 3, 4))

    result = run(circle)
    assert isinstance(result, GroupGivenUp)
    assert result.reason
    assert not set(result.blamed) & set(others(circle))


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


# ── reveals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def wrong_shares(reveal: Reveal) -> Iterable[Message]:
    """Some other share of the first participant."""
    return (reveal.model_copy(update={"shares": bytes(SHARE_BYTES) + reveal.shares[SHARE_BYTES:]}),)


REVEALS: dict[str, Callable[[Reveal], Iterable[Message]]] = {
    "wrong": wrong_shares,
    "short": lambda reveal: (reveal.model_copy(update={"shares": reveal.shares[SHARE_BYTES:]}),),
    "long": lambda reveal: (reveal.model_copy(update={"shares": reveal.shares + bytes(SHARE_BYTES)}),),
    "empty": lambda reveal: (reveal.model_copy(update={"shares": b""}),),
    "no field elements": lambda reveal: (
        reveal.model_copy(
            update={"shares": (b"\xff" * (SHARE_BYTES - 1) + b"\x00") * (len(reveal.shares) // SHARE_BYTES)}
        ),
    ),
    "another's": lambda reveal: (
        reveal.model_copy(update={"shares": reveal.shares[SHARE_BYTES:] + reveal.shares[:SHARE_BYTES]}),
    ),
}


@pytest.mark.parametrize("lie", REVEALS)
def test_a_member_that_reveals_wrong_shares_is_named_and_replaced(lie: str) -> None:
    circle = Circle(4)
    corrupt(circle, instead(Reveal, REVEALS[lie]))

    result = run(circle)
    assert_sum(circle, result, circle.clients)
    assert result.blamed == (BAD,)


def test_without_a_replacement_the_group_is_given_up_and_the_liar_named() -> None:
    circle = Circle(3)
    corrupt(circle, instead(Reveal, wrong_shares))

    result = run(circle)
    assert isinstance(result, GroupGivenUp)
    assert result.blamed == (BAD,)


def test_a_member_that_reveals_nothing_is_not_needed_and_not_named() -> None:
    circle = Circle(4)
    corrupt(circle, instead(Reveal, lambda r: (r.model_copy(update={"shares": NO_SHARE * 4}),)))

    result = run(circle)
    assert_sum(circle, result, circle.clients)
    assert result.blamed == ()


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


WORDS: dict[str, Callable[[Words], Iterable[Message]]] = {
    "short": lambda words: (words.model_copy(update={"body": words.body[:-1]}),),
    "long": lambda words: (words.model_copy(update={"body": words.body + b"\0"}),),
    "in more pieces": lambda words: (words.model_copy(update={"parts": 2}),),
    "a piece beyond": lambda words: (words.model_copy(update={"part": 1}),),
}


@pytest.mark.parametrize("lie", WORDS)
def test_words_of_a_wrong_form_are_left_out_and_their_sender_is_named(lie: str) -> None:
    circle = Circle(4)
    corrupt(circle, instead(Words, WORDS[lie]))

    result = run(circle)
    assert_sum(circle, result, others(circle))
    assert result.blamed == (BAD,)


@pytest.mark.parametrize("named", [encode_members((0, 1, 2), 4), b"\x0f\0", b"\x1f", b"\0"])
def test_words_masked_over_other_participants_are_left_out(named: bytes) -> None:
    circle = Circle(4)
    corrupt(circle, instead(Words, lambda words: (words.model_copy(update={"participants": named}),)))

    result = run(circle)
    assert_sum(circle, result, others(circle))
    # An honest member may be bound to what another stage had chosen.
    assert result.blamed == ()


def test_words_that_are_not_the_updates_spoil_nothing_else() -> None:
    circle = Circle(4)
    rubbish = np.arange(circle.form.length).astype(circle.form.word_type)

    def add(words: Words) -> Iterable[Message]:
        total = np.frombuffer(words.body, circle.form.word_type) + rubbish
        return (words.model_copy(update={"body": total.tobytes()}),)

    corrupt(circle, instead(Words, add))
    result = run(circle)
    assert isinstance(result, GroupSummed)
    np.testing.assert_array_equal(result.words, circle.plain_sum(circle.clients) + rubbish)


# ── agreements ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("places", [(0, 1, 2), (1, 2, 3)])
def test_an_agreement_to_another_set_does_not_count(places: tuple[int, ...]) -> None:
    circle = Circle(4)
    named = encode_members(places, 4)
    corrupt(circle, instead(Agreement, lambda agreement: (agreement.model_copy(update={"arrived": named}),)))

    result = run(circle)
    assert_sum(circle, result, circle.clients)
    assert result.blamed == ()


AGREEMENTS: dict[str, dict[str, bytes]] = {
    "too few": {"arrived": encode_members((0, 1), 4)},
    "without its signer": {"arrived": encode_members((0, 2, 3), 4)},
    "beyond the participants": {"participants": encode_members((0, 1, 2), 4)},
    "a set too long": {"arrived": b"\x0f\x00"},
    "a member beyond the roster": {"arrived": b"\x1f"},
}


@pytest.mark.parametrize("lie", AGREEMENTS)
def test_an_agreement_that_no_honest_member_signs_names_its_signer(lie: str) -> None:
    circle = Circle(4)
    corrupt(circle, instead(Agreement, lambda agreement: (agreement.model_copy(update=AGREEMENTS[lie]),)))

    result = run(circle)
    assert_sum(circle, result, circle.clients)
    assert result.blamed == (BAD,)


# ── too early, too often, too large ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("places", [(1,), (1, 2), (0, 2, 3)])
def test_a_member_that_is_ahead_of_its_group_does_not_choose_for_it(places: tuple[int, ...]) -> None:
    # Words and agreements before anybody's shares are what a stage that takes over hears; sets that no honest member
    # is bound to decide nothing.
    circle = Circle(4)
    named = encode_members(places, 4)

    def lie(party: Party, message: Message) -> Iterable[Message]:
        if isinstance(message, Shares):
            size = circle.form.length * circle.form.word_type.itemsize
            transcript = message.transcript
            yield Agreement(transcript=transcript, participants=b"\x0f", arrived=named)
            yield Words(transcript=transcript, participants=named, part=0, parts=1, body=bytes(size))
        yield message

    corrupt(circle, lie)
    result = run(circle)
    assert_sum(circle, result, circle.clients)
    assert result.blamed == (BAD,)


@pytest.mark.parametrize("members", [3, 4])
def test_repeats_change_nothing(members: int) -> None:
    circle = Circle(members)
    for client in circle.clients:
        corrupt(circle, lambda _, message: (message, message, message), client)

    result = run(circle)
    assert_sum(circle, result, circle.clients)
    assert result.blamed == ()
    assert not [note for note in circle.notes if note.event == "refused" and note.fields["reason"] != "late"]


SHARES: dict[str, Callable[[Shares], Iterable[Message]]] = {
    "fewer boxes": lambda shares: (shares.model_copy(update={"boxes": shares.boxes[SHARE_BOX_BYTES:]}),),
    "more boxes": lambda shares: (shares.model_copy(update={"boxes": shares.boxes + bytes(SHARE_BOX_BYTES)}),),
    "fewer hashes": lambda shares: (shares.model_copy(update={"commitments": shares.commitments[COMMITMENT_BYTES:]}),),
    "more hashes": lambda shares: (shares.model_copy(update={"commitments": shares.commitments * 2}),),
}


@pytest.mark.parametrize("lie", SHARES)
def test_shares_of_a_wrong_size_make_no_participant(lie: str) -> None:
    circle = Circle(4)
    corrupt(circle, instead(Shares, SHARES[lie]))

    result = run(circle)
    assert_sum(circle, result, others(circle))
    assert result.blamed == (BAD,)


def test_two_different_messages_for_one_step_count_as_the_first() -> None:
    circle = Circle(4)

    def lie(party: Party, message: Message) -> Iterable[Message]:
        yield message
        if isinstance(message, Shares):
            yield message.model_copy(update={"seed_commitment": seed_commitment(message.transcript, PLACE, bytes(32))})
        if isinstance(message, Words):
            yield message.model_copy(update={"body": bytes(len(message.body))})
        if isinstance(message, Agreement):
            yield message.model_copy(update={"arrived": encode_members((0, 1, 2), 4)})
        if isinstance(message, Reveal):
            yield message.model_copy(update={"shares": NO_SHARE * 4})

    corrupt(circle, lie)
    assert_sum(circle, run(circle), circle.clients)


@pytest.mark.parametrize("kind", [Shares, Words, Agreement, Reveal])
def test_a_message_for_another_group_is_not_this_groups(kind: type[Message]) -> None:
    circle = Circle(4)
    corrupt(circle, instead(kind, lambda message: (message.model_copy(update={"transcript": bytes(32)}),)))

    result = run(circle)
    assert_sum(circle, result, circle.clients if kind in (Agreement, Reveal) else others(circle))
    assert result.blamed == ()
