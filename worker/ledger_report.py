"""What does a client's ledger come to? Its history, what is spent, what is left, and for how many more rounds.

Epsilon is computed from the records each time; the two units of privacy are never added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from shared.privacy.accountant import affordable_rounds
from shared.privacy.charges import Charge, ClientCharge, RecordCharge
from worker.budget import ROUNDING, Spending, name_of
from worker.ledger import FailedRun, LedgerRecord, charges_of
from worker.memory import ClientMemory
from worker.policy import PrivacyBudget

HISTORY_LINES_MAX = 20
"""So many of the newest records are shown to people; JSON has all."""


def report_of(memory: ClientMemory, budget: PrivacyBudget) -> dict[str, Any]:
    """The ledger as JSON: `spent` and `left` are None where `budget` does not say at which delta, or of what.

    `rounds_left`: how many more runs like the last one of its unit the budget allows.
    """
    charges = charges_of(memory.records)
    units = {name_of(kind): _unit(kind, charges, budget) for kind in (RecordCharge, ClientCharge)}
    return {
        "client": memory.client,
        "federation": str(memory.federation),
        "budget": budget.model_dump(),
        "units": {name: unit for name, unit in units.items() if unit is not None},
        "history": [_line(record) for record in memory.records],
    }


def _unit(kind: type[Charge], charges: Sequence[Charge], budget: PrivacyBudget) -> dict[str, Any] | None:
    own = [charge for charge in charges if isinstance(charge, kind)]
    if not own:
        return None
    epsilon, delta = budget.epsilon, budget.delta
    unit: dict[str, Any] = {"charges": len(own), "spent": None, "left": None, "rounds_left": None}
    if delta is None:
        return unit
    spending = Spending(own, budget)
    unit["spent"] = spent = spending.epsilon(kind, delta)
    if kind is ClientCharge:
        unit["spent_if_all_others_collude"] = spending.epsilon(kind, delta, alone=True)
    if epsilon is not None:
        unit["left"] = max(0.0, epsilon - spent)
        unit["rounds_left"] = affordable_rounds(own, own[-1], epsilon * ROUNDING, delta)
    return unit


def _line(record: LedgerRecord) -> dict[str, Any]:
    charge = record.charge
    parameters = {} if charge is None else {name: getattr(charge, name) for name in charge.__dataclass_fields__}
    return {
        "what": "failed" if isinstance(record, FailedRun) else "spent",
        "version": record.version,
        "attempt": record.attempt,
        "at": _moment(record.at_us) if record.at_us else None,
        "unit": None if charge is None else name_of(type(charge)),
        "parameters": parameters,
    }


def _moment(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="seconds")


def ledger_tables(report: Mapping[str, Any]) -> tuple[Table, Table]:
    """The same for people: the newest records, and what they come to."""
    history = Table(title=f"ledger of {report['client']}", title_justify="left")
    for column in ("when", "what", "version", "unit", "parameters"):
        # Times and numbers stay whole where there is little room; words break.
        history.add_column(column, no_wrap=column in ("when", "version"))
    hidden = len(report["history"]) - HISTORY_LINES_MAX
    if hidden > 0:
        history.add_row("…", f"{hidden} earlier; --json shows them", "", "", "")
    for line in report["history"][-HISTORY_LINES_MAX:]:
        parameters = ", ".join(f"{name} {value:g}" for name, value in line["parameters"].items())
        version = str(line["version"]) + (f" (attempt {line['attempt']})" if line["attempt"] else "")
        history.add_row(line["at"] or "unknown", line["what"], version, line["unit"] or "no noise", parameters)
    return history, _sums(report)


def _sums(report: Mapping[str, Any]) -> Table:
    sums = Table(show_header=False, box=None)
    delta = report["budget"]["delta"]
    if not report["units"]:
        sums.add_row("spent", "nothing was charged")
    elif delta is None:
        sums.add_row("spent", "epsilon is not known without a delta: --delta, or policy.privacy_budget.delta")
    for name, unit in report["units"].items() if delta is not None else ():
        sums.add_row(f"{name} level", f"epsilon {unit['spent']:.4g} at delta {delta:g}, {unit['charges']} charges")
        if "spent_if_all_others_collude" in unit:
            sums.add_row("", f"epsilon {unit['spent_if_all_others_collude']:.4g} if all other members collude")
        if unit["left"] is None:
            sums.add_row("", "what is left is not known without a budget: --epsilon, or policy.privacy_budget.epsilon")
        else:
            sums.add_row(
                "", f"epsilon {unit['left']:.4g} left, enough for {unit['rounds_left']} more rounds like the last"
            )
    return sums
