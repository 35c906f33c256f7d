"""From what a transport delivers to verified messages and notes: what does not verify is dropped and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.crypto.signing import VerifyingKey
from shared.effects import Effect, Note, Receipt, Settle, note
from shared.errors import RefusalReason, RemoteProtocolError
from shared.membership import Membership
from shared.transport.port import (
    Blocked,
    Connected,
    ConsumerWaiting,
    Delivery,
    Disconnected,
    Outcome,
    Refused,
    TransportEvent,
)
from shared.wire.framing import Opened, Opener, split_batch
from shared.wire.messages import Role


@dataclass(frozen=True, slots=True)
class Received:
    """One verified message and the receipt of the delivery that it came in."""

    opened: Opened
    receipt: Receipt


def open_delivery(opener: Opener, delivery: Delivery) -> tuple[list[Received], list[Effect]]:
    """Open every message of a delivery.

    A delivery that is not a batch at all goes to the dead letters, with its like. In a batch, a bad message is
    dropped and the others count: one client of a worker cannot silence its neighbors.

    Returns:
        The verified messages, each of which has to be settled, and what is to be done about the others.
    """
    try:
        frames = split_batch(delivery.body)
    except RemoteProtocolError as error:
        refusal = _refused(error, f"queue {delivery.queue}")
        return [], [refusal, Settle(Receipt(delivery, 1), Outcome.DEAD_LETTER)]
    receipt = Receipt(delivery, len(frames))
    received: list[Received] = []
    effects: list[Effect] = []
    for frame in frames:
        try:
            received.append(Received(opener.open(frame), receipt))
        except RemoteProtocolError as error:
            effects += (_refused(error, f"queue {delivery.queue}"), Settle(receipt))
    return received, effects


def unexpected(received: Received, where: str) -> Iterator[Effect]:
    """What to do with a genuine message that has no business in this queue."""
    kind, reason = type(received.opened.message).__name__, RefusalReason.UNEXPECTED_KIND
    yield note("refused", "warning", sender=received.opened.sender, reason=reason, detail=f"{kind} {where}")
    yield Settle(received.receipt)


def _refused(error: RemoteProtocolError, sender: str) -> Note:
    return note("refused", "warning", sender=sender, reason=error.reason.value, detail=error.detail)


def keys_of(members: Membership) -> Callable[[Role, str], VerifyingKey]:
    """Finds a sender's key in the directory that counts now, by its role.

    The function raises `RemoteProtocolError` (unknown sender) for who is not enrolled, or revoked.
    """

    def key_of(role: Role, sender: str) -> VerifyingKey:
        directory = members.directory
        return directory.coordinator if role is Role.COORDINATOR else directory.client_key(sender)

    return key_of


def transport_note(event: TransportEvent) -> Note | None:
    """What an operator is told of the transport's own events; None for deliveries and confirms."""
    match event:
        case Connected(broker, reconnects):
            return note("connected", broker=broker, reconnects=reconnects)
        case Disconnected(reason):
            return note("disconnected", "warning", reason=reason)
        case Blocked(active, reason):
            return note("broker_blocked", "warning", active=active, reason=reason)
        case ConsumerWaiting(queue, reason):
            return note("consumer_waiting", "warning", queue=queue, reason=reason)
        case Refused(_, routing_key, reason):
            return note("publish_refused", "warning", routing_key=routing_key, reason=reason)
        case _:
            return None
