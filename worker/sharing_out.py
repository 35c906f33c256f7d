"""Which clients should one of several identical worker processes take, and which give back? A decision without I/O.

Replicas of one pool serve the same candidates. Each of them decides for itself, every second or so, from the same few
facts: who of them lives, how many seats each has, whom each serves. The arbiter is the lock on a client's state
directory: whoever holds it serves the client. So a view that is a moment old, or two replicas that disagree, cost a
moment and never serve a client twice.

* A replica's *share* is even, but never more than its seats; of what is left over the older replicas take one more
  each, so that a newcomer does not push clients around between them.
* Below its share it tries the candidates that nobody claims, beginning at a place of its own, so that replicas that
  start together do not all try the same ones.
* Above its share it gives back: first clients that have nothing under way, then those in training, whose run is given
  up (of these the last asked for, which probably waits for its turn), then those that offer or are in a group, which
  leave when that is over. One whose training failed stays until the next version: elsewhere it would fail, and be
  charged for, again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.signs_of_life import Phase

_UNDER_WAY = {Phase.TRAINING: 1} | dict.fromkeys(
    (Phase.SAVING, Phase.OFFERING, Phase.OFFERED, Phase.SHARING, Phase.SPENDING, Phase.IN_GROUP), 2
)
_KEPT = (Phase.FAILED, Phase.CHARGING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One worker process, as it tells the others.

    `pool` names what it chooses from, and replicas with other choices do not count. `since_us`: when it began
    (microseconds since 1970). `seats`: how many clients it serves at most; None: any number.
    """

    pool: str
    worker: str
    pid: int
    since_us: int
    seats: int | None
    clients: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one replica knows.

    `replicas` are all that live, `me` among them; `served` are the clients that it serves and has not begun to give
    back, in the order in which it took them; `leaving` those that it has; `shunned` those that it could not open.
    """

    me: str
    replicas: Sequence[Replica]
    candidates: Sequence[str]
    served: Mapping[str, Phase]
    leaving: Collection[str]
    shunned: Collection[str]


@dataclass(frozen=True, slots=True)
class Decision:
    """Take `wanted` of the clients in `take`, tried in this order; let the clients in `give_back` go."""

    wanted: int
    take: tuple[str, ...]
    give_back: tuple[str, ...]


def shares(clients: int, replicas: Sequence[Replica]) -> dict[str, int]:
    """How many of `clients` each replica should serve, by worker; all of them, if there are seats for all."""
    left, result = clients, {}
    # Who has few seats first: what such a replica cannot take is shared out among the rest. Then the youngest.
    order = sorted(replicas, key=lambda one: (_seats(one, clients), -one.since_us, one.worker))
    for at, replica in enumerate(order):
        result[replica.worker] = min(_seats(replica, clients), left // (len(order) - at))
        left -= result[replica.worker]
    return result


def decide(view: View) -> Decision:
    """Compare what this replica serves with its share."""
    share = shares(len(view.candidates), view.replicas)[view.me]
    candidates = set(view.candidates)
    strangers = [client for client in view.served if client not in candidates]
    too_many = len(view.served) - len(strangers) - share
    newest_first = [client for client in reversed(list(view.served)) if client in candidates]
    movable = [client for client in newest_first if view.served[client] not in _KEPT]
    movable.sort(key=lambda client: _UNDER_WAY.get(view.served[client], 0))
    if too_many >= 0:
        return Decision(0, (), (*strangers, *movable[:too_many]))
    free = candidates - view.served.keys() - set(view.leaving) - set(view.shunned)
    free -= {client for one in view.replicas if one.worker != view.me for client in one.clients}
    me = next(one for one in view.replicas if one.worker == view.me)
    # Who is about to leave still has a seat.
    empty = share if me.seats is None else me.seats - len(view.served) - len(view.leaving)
    wanted = max(0, min(-too_many, empty))
    return Decision(wanted, tuple(client for client in _rotated(view) if client in free), tuple(strangers))


def room_elsewhere(me: str, replicas: Sequence[Replica], clients: int) -> int:
    """How many of `clients` of a replica that ends the others have free seats for."""
    others = [one for one in replicas if one.worker != me]
    room = sum(max(0, _seats(one, len(one.clients) + clients) - len(one.clients)) for one in others)
    return min(room, clients)


def _seats(replica: Replica, unbounded: int) -> int:
    return unbounded if replica.seats is None else replica.seats


def _rotated(view: View) -> list[str]:
    """The candidates, from this replica's own place on."""
    order = sorted(one.worker for one in view.replicas)
    start = order.index(view.me) * len(view.candidates) // len(order)
    return [*view.candidates[start:], *view.candidates[:start]]
