"""What goes over the in-process broker, by receiver: deliveries, the signed messages in them, and their bytes.

The model log is counted apart: every process reads it once, however many clients it serves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.transport.port import Delivered, Delivery
from shared.wire.framing import split_batch
from shared.wire.messages import Kind

_KIND_AT = 4

_BETWEEN_ROLES = (Kind.GROUP_JOB, Kind.SUM, Kind.GIVEN_UP)

OF_UPDATE = (Kind.OFFER, Kind.SHARES, Kind.WORDS, Kind.AGREEMENT, Kind.REVEAL)
"""What a client sends for one update; in a group of one only its offer and its words."""


@dataclass
class Received:
    """What one party, or all of one kind, has received so far.

    `own_bytes` are those of what the coordinator's roles send each other through the broker; `bytes` leaves them out.
    """

    own_bytes: int = 0
    deliveries: int = 0
    messages: Counter[Kind] = field(default_factory=Counter)
    bytes: int = 0
    log_bytes: int = 0

    def count(self, items: Sequence[object]) -> None:
        """Count the deliveries among a transport's events."""
        for item in items:
            if isinstance(item, Delivered):
                for delivery in item.deliveries:
                    self._count(delivery)

    def _count(self, delivery: Delivery) -> None:
        if delivery.offset is not None:
            self.log_bytes += len(delivery.body)
            return
        self.deliveries += 1
        kinds = [Kind(frame[_KIND_AT]) for frame in split_batch(delivery.body)]
        self.messages.update(kinds)
        if kinds[0] in _BETWEEN_ROLES:
            self.own_bytes += len(delivery.body)
        else:
            self.bytes += len(delivery.body)

    def since(self, before: Received) -> Received:
        """What has come since."""
        return Received(
            self.own_bytes - before.own_bytes,
            self.deliveries - before.deliveries,
            self.messages - before.messages,
            self.bytes - before.bytes,
            self.log_bytes - before.log_bytes,
        )

    def copy(self) -> Received:
        """As it is now."""
        return Received(self.own_bytes, self.deliveries, self.messages.copy(), self.bytes, self.log_bytes)

    def update_messages(self) -> int:
        """How many messages of `OF_UPDATE` there were."""
        return sum(self.messages[kind] for kind in OF_UPDATE)
