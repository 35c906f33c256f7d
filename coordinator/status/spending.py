"""What have the clients spent of their privacy, as far as a coordinator can know?

It knows public numbers only: what one update costs, and who was drawn. A client that was drawn may have spent its
update, whatever became of its group, so this is an upper bound; each client's own ledger has the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

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

    @property
    def before(self) -> int:
        """Versions whose draws are not known: everybody was in them."""
        return self._before

    @property
    def draws(self) -> dict[str, int]:
        """How often a client was drawn since."""
        return dict(self._draws)

    def continue_from(self, before: int, draws: Mapping[str, int]) -> None:
        """Earlier sessions made `before` versions, in whose draws everybody may have been, and then drew these."""
        self._before = before
        self._draws = Counter(draws)

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
