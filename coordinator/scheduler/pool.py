"""The offers that wait for a draw: one per client, the newest, and those that came ahead of our own read-back.

A round is one attempt at a version. In synchronous mode an offer counts in its own round only: after a void draw every
client that still has its update offers it again, and a group that was drawn from older offers would find nobody who
knows them. In asynchronous mode an offer that was not drawn waits on, until its update is too stale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from shared.effects import Receipt, Settle
from shared.errors import RefusalReason
from shared.modellog.chain import ChainState
from shared.plan_sections import RoundPlan
from shared.wire.messages import Offer


@dataclass(frozen=True, slots=True)
class WaitingOffer:
    """An offer, its frame and digest, and the delivery that is kept open until it is drawn or expires."""

    client: str
    offer: Offer
    digest: bytes
    frame: bytes
    receipt: Receipt


class Pool:
    """Offers for the present round, and offers for the next one that are held until the log decides."""

    def __init__(self) -> None:
        self._waiting: dict[str, WaitingOffer] = {}
        self._held: dict[str, WaitingOffer] = {}
        self._drawn_counter: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, client: str) -> bool:
        return client in self._waiting

    def add(self, new: WaitingOffer, *, held: bool) -> tuple[RefusalReason | None, tuple[Settle, ...]]:
        """Take an offer in.

        Args:
            new: an offer whose round and head were checked.
            held: it belongs to the round after ours.

        Returns:
            Why it was refused (None if it was taken), and what is to be settled: the refused one, or the older
            offer of the same client that it replaces. A repeat (`DUPLICATE`) takes its predecessor's place too: after
            a lost connection only the newest delivery still keeps the offer at the broker.
        """
        place = self._held if held else self._waiting
        if new.offer.counter <= self._drawn_counter.get(new.client, -1):
            return RefusalReason.REPLAYED, (Settle(new.receipt),)
        old = place.get(new.client)
        if old is None:
            place[new.client] = new
            return None, ()
        repeated = new.digest == old.digest
        if not repeated and new.offer.counter <= old.offer.counter:
            return RefusalReason.STALE, (Settle(new.receipt),)
        place[new.client] = new
        return RefusalReason.DUPLICATE if repeated else None, (Settle(old.receipt),)

    def withdraw(self, client: str) -> tuple[Settle, ...]:
        """A client leaves: its offers with it."""
        gone = (self._waiting.pop(client, None), self._held.pop(client, None))
        return tuple(Settle(waiting.receipt) for waiting in gone if waiting is not None)

    @property
    def clients(self) -> frozenset[str]:
        """Whose offers wait."""
        return frozenset(self._waiting)

    @property
    def drawn_counters(self) -> dict[str, int]:
        """The highest counter of the offers that were drawn, by client."""
        return self._drawn_counter

    def recall(self, client: str, counter: int) -> None:
        """A session before has drawn this client's offers up to this counter."""
        self._drawn_counter[client] = counter

    def drawn_counter(self, client: str) -> int:
        """The highest counter of a client's offers that were drawn; 0 if none was."""
        return self._drawn_counter.get(client, 0)

    def draw(self, clients: Collection[str] | None = None) -> list[WaitingOffer]:
        """Take the waiting offers of these clients out (None: all), sorted by digest; none of them is drawn again."""
        chosen = self._waiting.keys() if clients is None else self._waiting.keys() & set(clients)
        drawn = sorted((self._waiting[client] for client in chosen), key=lambda waiting: waiting.digest)
        for waiting in drawn:
            self._drawn_counter[waiting.client] = waiting.offer.counter
            del self._waiting[waiting.client]
        return drawn

    def next_round(self, is_late: Callable[[Offer], bool]) -> tuple[list[WaitingOffer], list[WaitingOffer]]:
        """The version or the attempt moved: returns the offers that are late now, and those that were held for this.

        Neither are in the pool any more; the caller checks the held ones against the new head and adds them again.
        """
        late = [waiting for waiting in self._waiting.values() if is_late(waiting.offer)]
        for waiting in late:
            del self._waiting[waiting.client]
        held, self._held = list(self._held.values()), {}
        return late, held


def is_ahead(offer: Offer, chain: ChainState) -> bool:
    """Whether the client has read an entry that closes our round, and that we have not read back yet."""
    next_attempt = offer.trained_version == chain.version and offer.attempt == chain.attempt + 1
    return next_attempt or offer.trained_version == chain.version + 1


def refusal_of(offer: Offer, chain: ChainState, plan: RoundPlan) -> RefusalReason | None:
    """Why an offer, which is not ahead, is none for the present round; None if it is one."""
    if plan.mode == "async":
        # Its attempt is that in which it was made: it waits through void draws.
        oldest, newest = (chain.version - plan.staleness_max, 0), (chain.version, offer.attempt)
    else:
        oldest = newest = (chain.version, chain.attempt)
    if (offer.trained_version, offer.attempt) < oldest:
        return RefusalReason.LATE
    if (offer.trained_version, offer.attempt) > newest:
        return RefusalReason.OUT_OF_RANGE
    if offer.trained_head != chain.head_of(offer.trained_version):
        return RefusalReason.WRONG_PARENT
    return None
