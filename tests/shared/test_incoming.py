"""What does not verify is dropped and counted, and takes nothing else in its batch with it."""

from __future__ import annotations

import pytest

from shared.effects import Note, Receipt, Settle
from shared.errors import RefusalReason, RemoteProtocolError
from shared.incoming import Received, keys_of, open_delivery, transport_note, unexpected
from shared.transport.port import (
    Blocked,
    Confirmed,
    Connected,
    ConsumerWaiting,
    Delivered,
    Disconnected,
    Outcome,
    Refused,
    TransportEvent,
)
from shared.wire.framing import pack_batches
from shared.wire.messages import Role
from tests.builders import make_delivery, make_federation, make_offer, make_status

FEDERATION = make_federation(revoked=("client-2",))
OFFER, STATUS = make_offer(), make_status()


def batch(*frames: bytes) -> bytes:
    (body,) = pack_batches(frames)
    return body


def test_every_message_of_a_batch_is_opened_and_shares_one_receipt() -> None:
    delivery = make_delivery(batch(FEDERATION.seal_as("client-0", OFFER), FEDERATION.seal_as("client-1", STATUS)))

    received, effects = open_delivery(FEDERATION.opener(), delivery)

    assert [(one.opened.sender, one.opened.message) for one in received] == [("client-0", OFFER), ("client-1", STATUS)]
    assert effects == []
    assert received[0].receipt is received[1].receipt
    assert (received[0].receipt.delivery, received[0].receipt.open) == (delivery, 2)


def test_a_bad_message_is_dropped_and_its_neighbors_count() -> None:
    good = FEDERATION.seal_as("client-0", OFFER)
    frames = (good[:-1] + b"?", good, FEDERATION.seal_as("client-2", OFFER))

    received, effects = open_delivery(FEDERATION.opener(), make_delivery(batch(*frames), "test.offers"))

    (one,) = received
    notes = [effect for effect in effects if isinstance(effect, Note)]
    settles = [effect for effect in effects if isinstance(effect, Settle)]
    assert one.opened.message == OFFER
    assert [note.fields["reason"] for note in notes] == ["bad_signature", "unknown_sender"]
    assert {note.fields["sender"] for note in notes} == {"queue test.offers"}
    # All three will have been settled when the good one is.
    assert one.receipt.open == 3
    assert settles == [Settle(one.receipt), Settle(one.receipt)]


@pytest.mark.parametrize("body", [b"", b"rubbish", bytes(1000), b"\xff" * 100])
def test_what_is_no_batch_goes_to_the_dead_letters(body: bytes) -> None:
    delivery = make_delivery(body)

    received, (note, settle) = open_delivery(FEDERATION.opener(), delivery)

    assert received == []
    assert isinstance(note, Note)
    assert (note.event, note.fields["reason"]) == ("refused", "malformed")
    assert isinstance(settle, Settle)
    assert (settle.receipt.delivery, settle.receipt.open, settle.outcome) == (delivery, 1, Outcome.DEAD_LETTER)


def test_a_genuine_message_in_the_wrong_queue_is_noted_and_settled() -> None:
    opened = FEDERATION.opener().open(FEDERATION.seal_as("client-0", OFFER))
    received = Received(opened, Receipt(make_delivery(b""), 1))

    note, settle = unexpected(received, "in test.groups")

    assert isinstance(note, Note)
    assert note.fields == {
        "sender": "client-0",
        "reason": RefusalReason.UNEXPECTED_KIND,
        "detail": "Offer in test.groups",
    }
    assert settle == Settle(received.receipt)


def test_keys_come_from_the_directory_by_role() -> None:
    key_of = keys_of(FEDERATION.members())

    assert key_of(Role.COORDINATOR, "coordinator") == FEDERATION.coordinator.public
    assert key_of(Role.CLIENT, "client-0") == FEDERATION.clients["client-0"].public
    for stranger in ("client-2", "client-9", "coordinator", ""):
        with pytest.raises(RemoteProtocolError) as refusal:
            key_of(Role.CLIENT, stranger)
        assert refusal.value.reason is RefusalReason.UNKNOWN_SENDER


@pytest.mark.parametrize(
    ("event", "name", "level"),
    [
        (Connected("RabbitMQ 4", 2), "connected", "info"),
        (Disconnected("gone"), "disconnected", "warning"),
        (Blocked(True, "disk"), "broker_blocked", "warning"),
        (ConsumerWaiting("q", "no queue"), "consumer_waiting", "warning"),
        (Refused(1, "key", "full"), "publish_refused", "warning"),
    ],
)
def test_what_an_operator_is_told_of_the_transport(event: TransportEvent, name: str, level: str) -> None:
    note = transport_note(event)

    assert note is not None
    assert (note.event, note.level) == (name, level)


def test_deliveries_and_confirms_are_no_news() -> None:
    assert transport_note(Delivered("q", ())) is None
    assert transport_note(Confirmed(1)) is None
