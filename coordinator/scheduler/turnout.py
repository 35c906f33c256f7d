"""Of whom does a round expect an offer, and who has not made one yet? Kept up to date client by client.

The scheduler asks after every message: to look at the whole cohort each time would take the square of its size.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from coordinator.scheduler.clients import Roll
from coordinator.scheduler.pool import Pool


class Turnout:
    """The cohort of one round at one version, as far as it is live and may be drawn."""

    def __init__(self, cohort: AbstractSet[str], roll: Roll, pool: Pool, version: int) -> None:
        self._cohort = cohort
        self._roll = roll
        self._pool = pool
        self._version = version
        self.expected = roll.drawable(cohort & roll.live, version)
        self.missing = {client for client in self.expected if client not in pool}

    def recount(self, client: str) -> None:
        """Something has become of this client: it offered, joined, left, was lost, or is not to be drawn."""
        may_be_drawn = client in self._roll.live and not self._roll.is_backed_off(client, self._version)
        if client in self._cohort and may_be_drawn:
            self.expected.add(client)
        else:
            self.expected.discard(client)
        if client in self.expected and client not in self._pool:
            self.missing.add(client)
        else:
            self.missing.discard(client)
