"""Members that lie: the sum is still right, or the group is given up; who can be known to have lied is named.

A dishonest member sends what it likes under its own signature. "Right" is the sum of the words that were sent for: a
member can always send words that are not its update's, which is what the rule across groups is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from coordinator.events import GroupGivenUp, GroupSummed
from shared.crypto.commitments import COMMITMENT_BYTES, NO_SHARE, seed_commitment
from shared.crypto.shamir import SHARE_BYTES
from shared.wire.group_messages import SHARE_BOX_BYTES, Agreement, Reveal, Shares, Words
from shared.wire.member_sets import encode_members
from shared.wire.messages import Message
from tests.protocol.circle import Circle, Party
from tests.protocol.lies import BAD, PLACE, assert_sum, corrupt, instead, others, run

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


@pytest.mark.parametrize("kind", [Words, Agreement])
@pytest.mark.parametrize(("members", "places"), [(4, (0, 1, 2)), (4, (1, 2, 3)), (5, (0, 1, 2, 3))])
def test_nor_does_it_with_sets_that_an_honest_member_might_be_bound_to(
    members: int, places: tuple[int, ...], kind: type[Message]
) -> None:
    # One member says so, or as many as the plan counts on: they may all be lying.
    circle = Circle(members)
    named, everybody = encode_members(places, members), encode_members(range(members), members)

    def lie(party: Party, message: Message) -> Iterable[Message]:
        if isinstance(message, Shares):
            size = circle.form.length * circle.form.word_type.itemsize
            if kind is Words:
                yield Words(transcript=message.transcript, participants=named, part=0, parts=1, body=bytes(size))
            else:
                yield Agreement(transcript=message.transcript, participants=everybody, arrived=named)
        yield message

    corrupt(circle, lie)
    assert_sum(circle, run(circle), circle.clients)


@pytest.mark.parametrize("kind", [Words, Agreement])
def test_nor_does_it_choose_a_member_that_has_dealt_nothing(kind: type[Message]) -> None:
    # Whoever masks over a lost member needs shares of its key, and nobody has any.
    circle = Circle(6)
    everybody = encode_members(range(6), 6)

    def lie(party: Party, message: Message) -> Iterable[Message]:
        if isinstance(message, Shares):
            size = circle.form.length * circle.form.word_type.itemsize
            if kind is Words:
                yield Words(transcript=message.transcript, participants=everybody, part=0, parts=1, body=bytes(size))
            else:
                yield Agreement(transcript=message.transcript, participants=everybody, arrived=everybody)
            yield message
        elif not isinstance(message, kind):
            yield message

    corrupt(circle, lie)
    lost = circle.clients[-1]
    result = run(circle, {lost: Shares})
    assert isinstance(result, GroupSummed), result
    assert lost not in result.arrived


def test_a_dealer_of_nothing_is_named_although_it_was_ahead_of_its_group() -> None:
    circle = Circle(5)

    def lie(party: Party, message: Message) -> Iterable[Message]:
        if isinstance(message, Shares):
            body = bytes(circle.form.length * circle.form.word_type.itemsize)
            yield Words(transcript=message.transcript, participants=b"\x1f", part=0, parts=1, body=body)
            yield message.model_copy(update={"boxes": bytes(len(message.boxes))})
        elif not isinstance(message, Words):
            yield message

    corrupt(circle, lie)
    result = run(circle)
    assert isinstance(result, GroupGivenUp)
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
