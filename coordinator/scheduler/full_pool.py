"""Asynchronous mode: which of the waiting offers make a draw, if any do yet?

A draw takes all offers that wait, as soon as there are `pool_size` of them; if fewer clients are live, as soon as all
of these have offered. A client whose update a version took rests for `cooldown` versions: its next offer stays outside
the pool, so that whoever offers at once (an attacker trains nothing) fills no more slots than others do. Rest ends
early when every live client waits or rests, since nobody else could fill the pool.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from shared.plan import Plan

POOL_SHARE = 6
"""A pool holds one in so many live clients, when `pool_size` is not set."""


def pool_size(plan: Plan, live: int) -> int:
    """How many offers a draw waits for; never fewer than it needs."""
    return plan.round.pool_size or max(plan.min_offers, math.ceil(live / POOL_SHARE))


def cooldown(plan: Plan, live: int) -> int:
    """After how many versions a client may be drawn again; half as many as the live clients fill pools, at least 1."""
    return plan.round.cooldown or max(1, live // (2 * pool_size(plan, live)))


class FullPool:
    """Who rests, and when the others are enough."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counted_for: dict[str, int] = {}

    @property
    def counted_for(self) -> dict[str, int]:
        """The version whose draw took a client's update last, by client."""
        return self._counted_for

    def counted(self, clients: Collection[str], version: int) -> None:
        """The draw of this version took these clients' updates, and a step came of it."""
        self._counted_for.update(dict.fromkeys(clients, version))

    def chosen(self, waiting: Collection[str], live: Collection[str], version: int) -> frozenset[str]:
        """Who is drawn now; empty: nobody yet.

        Args:
            waiting: clients with an offer, of those that may be drawn.
            live: all clients that may be drawn.
            version: the present one.
        """
        rest = cooldown(self._plan, len(live))
        resting = {client for client, drawn in self._counted_for.items() if version < drawn + rest}
        if resting.issuperset(set(live) - set(waiting)):
            resting.clear()
        pool = frozenset(waiting) - resting
        enough = max(self._plan.min_offers, min(pool_size(self._plan, len(live)), len(live)))
        return pool if len(pool) >= enough else frozenset()
