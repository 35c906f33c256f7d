"""What could nobody use, and how does it get another chance?

Dead letters are looked at by taking them and returning them all. Putting one back publishes it to the queue that it
came from, and takes it out of the dead letters once the broker has it there; if that is interrupted it is in both,
which every consumer bears.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from deploy.inspect.reading import QUIET_S, Desk
from shared.errors import RemoteProtocolError, SettingsError
from shared.transport.port import Delivery, Outcome, Queue
from shared.wire.framing import Opener, split_batch

_FIRST_BYTES = 12
_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter, and its number: 1 is the oldest. `content` names its messages, or shows its first bytes."""

    number: int
    queue: str
    reason: str
    size: int
    digest: str
    content: str


def look(desk: Desk, queue: Queue, opener: Opener, *, limit: int, quiet_s: float = QUIET_S) -> list[DeadLetter]:
    """The oldest dead letters, at most `limit`; all are returned to their queue.

    Raises:
        BrokerUnavailable: the queue cannot be read.
    """
    try:
        deliveries = _take(desk, queue, limit, quiet_s)
    finally:
        # All at once, and so in their order; one by one they would be delivered again in between.
        desk.transport.cancel(queue.name)
    return [_describe(number, delivery, opener) for number, delivery in enumerate(deliveries, start=1)]


def put_back(desk: Desk, queue: Queue, opener: Opener, number: int, *, quiet_s: float = QUIET_S) -> DeadLetter:
    """Move one dead letter to the queue that it came from, and return the others.

    Raises:
        SettingsError: there is no such number, or nobody knows where it came from.
        BrokerUnavailable: the queue cannot be read, or the other one does not take the letter.
    """
    try:
        deliveries = _take(desk, queue, number, quiet_s)
        if len(deliveries) < number:
            raise SettingsError(f"put-back: there are {len(deliveries)} dead letters, not {number}")
        chosen = deliveries[number - 1]
        if chosen.death is None:
            raise SettingsError(f"put-back: number {number} does not say which queue it came from")
        # The nameless exchange leads to that queue alone, where the routing key might reach others too.
        desk.publish("", chosen.death.queue, chosen.body)
        desk.transport.settle(chosen, Outcome.ACK)
    finally:
        desk.transport.cancel(queue.name)
    return _describe(number, chosen, opener)


def _take(desk: Desk, queue: Queue, limit: int, quiet_s: float) -> list[Delivery]:
    taken: list[Delivery] = []
    for delivery in desk.read(queue, prefetch=limit, quiet_s=quiet_s):
        taken.append(delivery)
        if len(taken) == limit:
            break
    return taken


def _describe(number: int, delivery: Delivery, opener: Opener) -> DeadLetter:
    death = delivery.death
    return DeadLetter(
        number=number,
        queue=death.queue if death else "",
        reason=death.reason if death else "",
        size=len(delivery.body),
        digest=hashlib.sha256(delivery.body).hexdigest(),
        content=_content(delivery.body, opener),
    )


def _content(body: bytes, opener: Opener) -> str:
    try:
        frames = split_batch(body)
    except RemoteProtocolError as error:
        return f"{error.reason}: {body[:_FIRST_BYTES].hex(' ')}"
    named = [_message(frame, opener) for frame in frames[:_NAMED_MAX]]
    more = [f"and {len(frames) - _NAMED_MAX} more"] if len(frames) > _NAMED_MAX else []
    return ", ".join(named + more)


def _message(frame: bytes, opener: Opener) -> str:
    try:
        opened = opener.open(frame)
    except RemoteProtocolError as error:
        return f"{error.reason}"
    return f"{opened.message.kind.name.lower()} from {opened.sender}"
