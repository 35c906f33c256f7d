"""What have the clients spent of their privacy, as far as a coordinator can know?

It knows public numbers only: what one update costs, and who was drawn. A client that was drawn may have spent its
update, whatever became of its group, so this is an upper bound; each client's own ledger has the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shared.plan import Plan
from shared.privacy.accountant import epsilon_of


class Spending:
    """Counts draws by client, and says what they come to."""

    def __init__(self, plan: Plan) -> None:
        """Begin with nothing spent."""
        self._charge = plan.charge_of_run()
        self._delta = plan.privacy.delta or 0.0
        self._before = 0
        self._draws: Counter[str] = Counter()
        self._known: dict[int, float] = {}

    def continue_from(self, version: int) -> None:
        """An earlier session made these versions; who was in their draws is not known, so everybody was."""
        self._before = version

    def drawn(self, clients: Iterable[str]) -> None:
        """These may spend an update."""
        self._draws.update(clients)

    def figures(self) -> dict[str, float | None]:
        """Largest and mean epsilon of the clients drawn so far; None without privacy."""
        spent = [self._epsilon(self._before + draws) for draws in self._draws.values()]
        if self._charge is None or not spent:
            return {"epsilon_max": None, "epsilon_mean": None}
        return {"epsilon_max": max(spent), "epsilon_mean": sum(spent) / len(spent)}

    def _epsilon(self, draws: int) -> float:
        if self._charge is None:
            return 0.0
        if draws not in self._known:
            self._known[draws] = epsilon_of(Counter({self._charge: draws}), self._delta)
        return self._known[draws]
