"""Carries out what machines ask of the broker, in the one safe order: publish, wait for the confirm, settle.

An entry of the model log that has a record leaves when the broker has confirmed the record: two streams have no order
between them, and whoever finds the entry must find the record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain

from shared.effects import Append, Effect, Publish, Receipt, Settle
from shared.modellog.entries import SealedEntry
from shared.transport.port import Outcome, Transport
from shared.wire.framing import pack_batches
from shared.wire.topology import Names


class Outgoing:
    """The publishing end of a process. Frames for one destination, jobs aside, leave as one batch per `carry_out`."""

    def __init__(self, transport: Transport, names: Names) -> None:
        self._transport = transport
        self._names = names
        self._last_sequence = 0
        self._confirmed = 0
        self._waiting: deque[tuple[int, Receipt, Outcome]] = deque()
        self._held: tuple[int, SealedEntry] | None = None
        self._behind_held: list[Settle] = []
        self.bytes_published = 0
        self.messages_published = 0

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Publish everything, then settle what may be settled; the rest waits for its confirm.

        Raises:
            BrokerUnavailable: the transport was closed.
        """
        settles: list[Settle] = []
        lanes: dict[tuple[str, str, bool], list[Iterable[bytes]]] = {}
        for effect in effects:
            match effect:
                case Append(sealed, record):
                    if self._publish(self._names.down, self._names.journal, True, record):
                        assert self._held is None, "a writer has one entry on its way"
                        self._held = self._last_sequence, sealed
                        continue
                    lanes.setdefault((self._names.down, self._names.log, True), []).append(sealed.frames())
                case Publish(exchange, routing_key, frame, persistent):
                    lanes.setdefault((exchange, routing_key, persistent), []).append((frame,))
                case Settle():
                    settles.append(effect)
                case _:
                    raise AssertionError(f"{effect!r} is not for the broker")
        for (exchange, routing_key, persistent), frames in lanes.items():
            self._publish(exchange, routing_key, persistent, chain.from_iterable(frames))
        self._behind_held += settles
        self._release()

    def on_confirmed(self, through: int) -> None:
        """The broker has taken over every publish up to `through`."""
        self._confirmed = max(self._confirmed, through)
        self._release()

    def _release(self) -> None:
        """Write the entry whose record is confirmed, then settle what may be settled."""
        if self._held is not None and self._held[0] <= self._confirmed:
            (_, sealed), self._held = self._held, None
            self._publish(self._names.down, self._names.log, True, sealed.frames())
        if self._held is None:
            # A delivery may be settled only behind the entry that it led to.
            for settle in self._behind_held:
                self._waiting.append((self._last_sequence, settle.receipt, settle.outcome))
            self._behind_held.clear()
        self._settle_confirmed()

    def _publish(self, exchange: str, routing_key: str, persistent: bool, frames: Iterable[bytes]) -> bool:
        """Publish frames in batches; returns whether there were any."""
        before = self._last_sequence
        # A batch goes to one consumer whole: jobs leave one by one, so that stages can share them out.
        alone = routing_key == self._names.groups
        bodies = (body for frame in frames for body in pack_batches([frame])) if alone else pack_batches(frames)
        for body in bodies:
            self._last_sequence = self._transport.publish(exchange, routing_key, body, persistent=persistent)
            self.bytes_published += len(body)
            self.messages_published += 1
        return self._last_sequence > before

    def _settle_confirmed(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._confirmed:
            _, receipt, outcome = self._waiting.popleft()
            receipt.open -= 1
            if receipt.open == 0:
                self._transport.settle(receipt.delivery, outcome)
