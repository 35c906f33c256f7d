"""The draw that is under way: its jobs, its offers until the log has it, and whose update it has not counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from coordinator.events import CoordinatorEffect, DrawMade, OfferArrived, Tell
from coordinator.scheduler.draw import Draw
from shared.effects import Publish, Receipt, Settle, note
from shared.modellog.entries import Sealer
from shared.wire.topology import Names


class DrawUnderWay:
    """One draw at a time, from its making, or from a session before, to the entry that closes it."""

    def __init__(self, names: Names, seal: Sealer) -> None:
        self._names = names
        self._seal = seal
        self._receipts: list[Receipt] = []
        self._digests: frozenset[bytes] = frozenset()
        self._unsummed: set[str] = set()
        self._is_read_back = False
        self.draw: Draw | None = None

    def begin(self, draw: Draw, receipts: Iterable[Receipt] | None) -> Iterator[CoordinatorEffect]:
        """A draw was made, of offers with these receipts; None: by a session before, and the log has it already."""
        self.draw = draw
        self._is_read_back = receipts is None
        self._receipts = list(receipts or ())
        self._digests = frozenset(signed.digest for signed in draw.offers)
        self._unsummed = set(draw.clients)
        yield Tell(DrawMade(draw.entry, draw.version, len(draw.groups), draw.clients, resumed=receipts is None))
        # The jobs leave with the entry: members answer a roster only when their own log has accepted it.
        for job in draw.jobs():
            yield Publish(self._names.down, self._names.groups, self._seal(job))

    def takes(self, event: OfferArrived) -> Iterator[CoordinatorEffect] | None:
        """What becomes of an offer of this draw that is delivered again; None if it is none of them."""
        if event.digest not in self._digests:
            return None
        return self._again(event)

    def _again(self, event: OfferArrived) -> Iterator[CoordinatorEffect]:
        yield note("repeated", "debug", client=event.client, what="offer")
        if self._is_read_back:
            yield Settle(event.receipt)
        else:
            # Until the log has the draw the broker is its memory.
            self._receipts.append(event.receipt)

    def read_back(self, entry: bytes) -> Iterator[CoordinatorEffect]:
        """The log has accepted a draw."""
        if self.draw is not None and self.draw.entry == entry:
            self._is_read_back = True
            yield note("draw_made", "debug", version=self.draw.version, groups=len(self.draw.groups))
            for receipt in self._receipts:
                yield Settle(receipt)
            self._receipts = []

    def summed(self, clients: Iterable[str]) -> None:
        """A sum holds the updates of these."""
        self._unsummed.difference_update(clients)

    def end(self) -> set[str]:
        """The log has closed it; returns who was drawn for no sum."""
        unsummed, self._unsummed = self._unsummed, set()
        self.draw, self._digests = None, frozenset()
        return unsummed
