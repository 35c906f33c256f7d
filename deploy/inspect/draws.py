"""Was a draw what its offers say? Who holds the journal can recompute it; the log has only its Merkle root.

The order of a draw is decided by the entry that made its version and by the set of offers in it. So a coordinator can
choose nobody's group, unless it leaves offers out or draws again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from coordinator.journal import Records, WholeRecord, drawn_offers
from coordinator.kept import decode_kept
from shared.crypto import merkle
from shared.crypto.draw import cut_groups, draw_order, group_leaf
from shared.transport.port import Delivery
from shared.wire.framing import Opener
from shared.wire.log_messages import DrawEntry

Check = Literal["recomputed", "differs", "no record"]


class DrawnOffers:
    """Who was drawn with which offer, as the journal says, by the draw's entry."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._drawn: dict[bytes, tuple[tuple[str, bytes], ...]] = {}

    def read(self, deliveries: Iterable[Delivery]) -> None:
        """Take in a journal's messages, in their order.

        Raises:
            StateError: it was written by a version of Comitia that this one cannot read.
        """
        records = Records(self._opener, 0)
        for delivery in deliveries:
            assert delivery.offset is not None
            for record in records.feed(delivery.offset, delivery.body):
                if isinstance(record, WholeRecord) and record.state is not None:
                    self._take(record.entry, decode_kept(record.state).scheduler.drawn)

    def _take(self, entry: bytes, frames: tuple[bytes, ...]) -> None:
        offers = tuple((drawn.client, drawn.digest) for drawn in drawn_offers(frames, self._opener))
        # The offers of who was revoked since cannot be verified any more, and neither can their draws.
        if frames and len(offers) == len(frames):
            self._drawn[entry] = offers

    def check(self, digest: bytes, draw: DrawEntry, version_head: bytes, group_size: int) -> Check:
        """Draw again, from the same offers.

        Args:
            digest: the hash of the draw's entry.
            draw: the entry, from the log.
            version_head: the hash of the entry that made its version.
            group_size: the plan's.
        """
        offers = self._drawn.get(digest)
        if offers is None:
            return "no record"
        order = draw_order(version_head, [offer for _, offer in offers])
        groups = [[offers[order[i]] for i in group] for group in cut_groups(len(offers), group_size)]
        root = merkle.root([group_leaf(index, group) for index, group in enumerate(groups)])
        counts = len(groups), len(offers), len({client for client, _ in offers})
        same = (root, *counts) == (draw.root, draw.groups, draw.offers, draw.offers)
        return "recomputed" if same else "differs"
