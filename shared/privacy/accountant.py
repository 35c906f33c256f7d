"""How much privacy is spent, and how many more releases does a budget allow? The charges' Renyi curves, added up.

    epsilon_of(charges, delta)                                  what all of them together cost
    affordable_rounds(charges, next_charge, epsilon, delta)     how many more of one kind the budget allows

    account = Account()                                         the same, one charge after the other
    account.add(charge)
    account.epsilon(delta)

Equal charges are counted, not repeated, so a client's whole life is a short sum, and the sum is taken in the order in
which kinds of charges first appeared: an account that is read again from its records gives the same bits, and a further
charge never lowers epsilon.

The two units are never added: an account is of the unit of its first charge and refuses the other.

Reference: I. Mironov, "Renyi Differential Privacy", CSF 2017, proposition 1 (curves of successive releases add up, also
when a later release looks at earlier ones); `shared.privacy.renyi` and `shared.privacy.skellam` name the papers of the
two curves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from shared.errors import LocalProtocolError
from shared.privacy.charges import Charge, RecordCharge
from shared.privacy.renyi import ORDERS, Curve, epsilon_at, gaussian_curve
from shared.privacy.skellam import skellam_curve

ROUNDS_MAX = 10**9
"""What `affordable_rounds` answers when a charge costs next to nothing."""


def charge_curve(charge: Charge, *, alone: bool = False) -> Curve:
    """Return the Renyi curve of one charge; with `alone`, of a client whose fellow members all collude.

    Raises:
        LocalProtocolError: a parameter is out of range.
    """
    if isinstance(charge, RecordCharge):
        if charge.steps < 0:
            raise LocalProtocolError(f"a run has no {charge.steps} steps")
        if charge.steps == 0:
            return np.zeros(len(ORDERS))
        return charge.steps * gaussian_curve(charge.noise_multiplier, charge.sampling_rate)
    return skellam_curve(charge.variance_alone if alone else charge.variance, charge.l1, charge.l2)


class Account:
    """What one client has spent of one unit of privacy."""

    __slots__ = ("_counts",)

    def __init__(self, charges: Iterable[Charge] = ()) -> None:
        """Start with these charges.

        Raises:
            LocalProtocolError: they are of both units.
        """
        self._counts: Counter[Charge] = Counter()
        if isinstance(charges, Counter):
            for charge, count in charges.items():
                self.add(charge, count)
        else:
            for charge in charges:
                self.add(charge)

    def add(self, charge: Charge, count: int = 1) -> None:
        """Charge `count` equal releases. Nothing is ever taken back.

        Raises:
            LocalProtocolError: the charge is of the other unit, or the count is negative.
        """
        if count < 0:
            raise LocalProtocolError(f"a charge is never refunded: {count}")
        first = next(iter(self._counts), charge)
        if type(first) is not type(charge):
            raise LocalProtocolError("record-level and client-level charges cannot be added")
        if count:
            self._counts[charge] += count

    @property
    def releases(self) -> int:
        """How many charges stand in this account."""
        return self._counts.total()

    def curve(self, *, alone: bool = False) -> Curve:
        """Return the sum of the charges' Renyi curves, (len(ORDERS),) float64."""
        total = np.zeros(len(ORDERS))
        for charge, count in self._counts.items():
            total += count * charge_curve(charge, alone=alone)
        return total

    def epsilon(self, delta: float, *, alone: bool = False) -> float:
        """Return epsilon at delta for everything charged so far: 0.0 for nothing, infinity where no noise was."""
        return epsilon_at(self.curve(alone=alone), delta) if self._counts else 0.0

    def affordable(self, charge: Charge, epsilon: float, delta: float) -> int:
        """Return how many further releases of `charge` keep epsilon at delta within the budget, at most ROUNDS_MAX.

        Raises:
            LocalProtocolError: the charge is of the other unit.
        """
        Account(self._counts).add(charge)
        spent, step = self.curve(), charge_curve(charge)
        low, high = 0, 1
        while high <= ROUNDS_MAX and epsilon_at(spent + high * step, delta) <= epsilon:
            low, high = high, 2 * high
        high = min(high, ROUNDS_MAX + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if epsilon_at(spent + middle * step, delta) <= epsilon:
                low = middle
            else:
                high = middle
        return low


def epsilon_of(charges: Iterable[Charge], delta: float, *, alone: bool = False) -> float:
    """Return epsilon at delta of all charges together; 0.0 for none.

    Args:
        charges: of one unit; a `Counter` says how often each was made.
        delta: in (0, 1).
        alone: take of client-level charges only the client's own noise: what holds if all other members collude.

    Raises:
        LocalProtocolError: the charges are of both units, or a number is out of range.
    """
    return Account(charges).epsilon(delta, alone=alone)


def affordable_rounds(spent: Iterable[Charge], next_charge: Charge, epsilon: float, delta: float) -> int:
    """Return how many further releases of `next_charge` fit a budget of which `spent` is gone, at most ROUNDS_MAX.

    Raises:
        LocalProtocolError: the charges are of both units, or a number is out of range.
    """
    return Account(spent).affordable(next_charge, epsilon, delta)
