"""May this client take one more task? What its ledger has charged, what a run costs, and where its budget ends.

The worker decides, whatever the coordinator asks for: a task is taken only if everything charged so far and this task's
run together stay within the budget, so that the budget is never passed, also if the run fails. The budget is the
worker's own setting, or else what the plan says that its rounds cost. The two units of privacy have separate accounts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from shared.plan import Plan
from shared.privacy.accountant import epsilon_of
from shared.privacy.charges import Charge, ClientCharge, RecordCharge
from worker.policy import PrivacyBudget

ROUNDING = 1 + 1e-9
"""The plan's epsilon is the sum of the same numbers in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a plan says of privacy: what one run costs, and what the planned rounds cost at `delta`; None: nothing."""

    charge: Charge | None = None
    epsilon: float | None = None
    delta: float | None = None


def terms_of(plan: Plan) -> Terms:
    """The privacy of a plan."""
    return Terms(charge=plan.charge_of_run(), epsilon=plan.privacy.epsilon, delta=plan.privacy.delta)


class Spending:
    """What one client has spent, of each unit of privacy."""

    def __init__(self, charges: Iterable[Charge], own: PrivacyBudget) -> None:
        """
        Args:
            charges: all that the ledger holds.
            own: the worker's setting, which wins over the plan.
        """
        self._own = own
        self._counts: dict[type[Charge], Counter[Charge]] = {RecordCharge: Counter(), ClientCharge: Counter()}
        for charge in charges:
            self.add(charge)

    def add(self, charge: Charge | None) -> None:
        """Something was charged; None is nothing."""
        if charge is not None:
            self._counts[type(charge)][charge] += 1

    def epsilon(self, unit: type[Charge], delta: float, *, alone: bool = False, further: Charge | None = None) -> float:
        """Epsilon at delta of everything charged in this unit, and of `further`; `alone` as in `epsilon_of`."""
        counts = Counter(self._counts[unit])
        if further is not None:
            counts[further] += 1
        return epsilon_of(counts, delta, alone=alone)

    def objection_to(self, terms: Terms) -> str:
        """Why one more run would pass the budget; empty if it does not, or if there is none."""
        charge = terms.charge
        budget = terms.epsilon if self._own.epsilon is None else self._own.epsilon
        delta = terms.delta if self._own.delta is None else self._own.delta
        if charge is None or budget is None or delta is None:
            return ""
        after = self.epsilon(type(charge), delta, further=charge)
        if after <= budget * ROUNDING:
            return ""
        spent = self.epsilon(type(charge), delta)
        return (
            f"{name_of(type(charge))}-level epsilon {spent:.4g} is spent, one more run would make it {after:.4g}, "
            f"the budget is {budget:.4g} at delta {delta:g}"
        )


def name_of(unit: type[Charge]) -> str:
    """The unit of privacy of a kind of charge, in words."""
    return "record" if unit is RecordCharge else "client"
