"""What a run comes to: the JSON report, the summary's figures, and the plot of its curves."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUND_FIELDS = (
    "version",
    "seconds",
    "accuracy",
    "loss",
    "clients_counted",
    "clients_lost",
    "groups",
    "groups_rejected",
    "groups_given_up",
    "recovered",
    "epsilon_max",
    "validation",
    "bytes_up",
    "bytes_down",
    "seconds_offers",
    "seconds_sums",
    "seconds_log",
    "seconds_in_groups",
)


@dataclass
class Run:
    """Everything noted about one run, as it comes in; `report` may be asked for at any time."""

    broker_kind: str
    broker_version: str
    started_at: float = field(default_factory=time.monotonic)
    plan: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    lost: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: dict[str, Any] = field(default_factory=dict)
    reconnects: int = 0
    pauses: int = 0
    epsilon_mean: float | None = None
    attackers: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_groups: list[frozenset[str]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    simulation: dict[str, Any] = field(default_factory=dict)

    def hear(self, event: str, fields: dict[str, Any]) -> None:
        """Take one of the coordinator's notes into account."""
        match event:
            case "coordinator_started":
                self.plan = fields["plan"]
                self.broker_version = fields["broker"]
            case "attackers_chosen":
                self.attackers = fields["clients"]
            case "group_rejected":
                self.rejected.update(fields["clients"])
                self.rejected_groups.append(frozenset(fields["clients"]))
            case "connected":
                self.reconnects = max(self.reconnects, fields["reconnects"])
            case "run_paused":
                self.pauses += 1
            case "client_lost":
                client = fields["client"]
                lost = {"id": client, "lost_version": fields["version"], "lost_phase": fields["phase"]}
                self.lost[client] = lost
            case "client_joined":
                self.lost.pop(fields["client"], None)
            case "round_finished":
                self.rounds.append({name: fields[name] for name in ROUND_FIELDS})
                self.epsilon_mean = fields["epsilon_mean"]
            case "coordinator_stopped":
                self.stopped = fields
            case "version_measured":
                self.measured.append(fields)
            case "simulation_measured":
                self.simulation = fields
            case _:
                return

    @property
    def finished(self) -> bool:
        """Whether all planned rounds were done."""
        return bool(self.stopped.get("finished"))

    def report(self) -> dict[str, Any]:
        """The report. The names of its fields are stable; more may be added."""
        last = self.rounds[-1] if self.rounds else {}
        counted = sum(one["clients_counted"] for one in self.rounds)
        dimension = self.plan.get("dimension", 0)
        return {
            "broker": {
                "kind": self.broker_kind,
                "version": self.broker_version,
                "reconnects": self.reconnects,
            },
            "rounds": self.rounds,
            "attackers": [{"id": client, "rejected": self.rejected[client]} for client in self.attackers],
            "clients": sorted(self.lost.values(), key=lambda lost: str(lost["id"])),
            "final": {
                "accuracy": last.get("accuracy"),
                "loss": last.get("loss"),
                "epsilon_max": last.get("epsilon_max"),
                "epsilon_mean": self.epsilon_mean,
                "validation": last.get("validation", {}),
                "stopped_early": self.stopped.get("reason", ""),
                "pauses": self.pauses,
                "model_version": self.stopped.get("version", last.get("version")),
                "weights_sha256": self.stopped.get("weights_sha256"),
                "seconds": time.monotonic() - self.started_at,
                "bytes_up_per_update": sum(one["bytes_up"] for one in self.rounds) / counted if counted else None,
                "bytes_dense_per_update": 4 * dimension,
                "recovered": sum(one["recovered"] for one in self.rounds),
                "honest_groups_rejected": sum(group.isdisjoint(self.attackers) for group in self.rejected_groups),
            },
            "plan": self.plan,
            # What a simulation cost: its rounds' own seconds are virtual.
            **({"simulation": {**self.simulation, "versions": self.measured}} if self.simulation else {}),
        }


def write_report(run: Run, path: Path) -> None:
    """Write the report as JSON."""
    path.write_text(json.dumps(run.report(), indent=2) + "\n")


def write_plot(run: Run, path: Path) -> None:
    """Draw the curves, in the format of the file name."""
    plot_of(run).savefig(path, dpi=120)


def plot_of(run: Run) -> Figure:
    """Accuracy and loss, as far as they were measured, and who was counted and lost, over the versions."""
    from matplotlib.figure import Figure  # it takes a second to import, which most runs need not spend

    figure = Figure(figsize=(9, 6), layout="constrained")
    curves, clients = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _draw_curves(curves, run.rounds)
    _draw_clients(clients, run.rounds)
    aggregation, codec = run.plan["aggregation"], run.plan["codec"]
    figure.suptitle(
        f"{run.plan['workload']}: {aggregation['rule']}, trim {aggregation['trim']}, "
        f"{codec['selection']} coordinates at density {codec['density']:g}"
    )
    return figure


def _draw_curves(axes: Axes, rounds: list[dict[str, Any]]) -> None:
    handles: list[Any] = []
    evaluated = [one for one in rounds if one["accuracy"] is not None]
    if evaluated:
        versions, accuracies = ([one[name] for one in evaluated] for name in ("version", "accuracy"))
        handles += axes.plot(versions, accuracies, color="tab:blue", label="accuracy on held-out data")
    validated = [one["validation"] for one in rounds if "accuracy" in one["validation"]]
    if validated:
        versions, means, spreads = (
            [one[name] for one in validated] for name in ("version", "accuracy", "accuracy_std")
        )
        style: dict[str, Any] = {"color": "tab:purple", "marker": ".", "capsize": 2, "linewidth": 1}
        label = "accuracy at the clients, ± deviation"
        handles.append(axes.errorbar(versions, means, yerr=spreads, label=label, **style))
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    evaluated = [one for one in rounds if one["loss"] is not None]
    if evaluated:
        losses = axes.twinx()
        versions, values = ([one[name] for one in evaluated] for name in ("version", "loss"))
        handles += losses.plot(versions, values, color="tab:red", label="loss", linestyle="--")
        losses.set_ylabel("loss")
        losses.set_ylim(bottom=0)
    if handles:
        axes.legend(handles=handles, loc="center right")


def _draw_clients(axes: Axes, rounds: list[dict[str, Any]]) -> None:
    versions, counted, lost = ([one[name] for one in rounds] for name in ("version", "clients_counted", "clients_lost"))
    axes.bar(versions, counted, color="tab:green", label="counted")
    axes.bar(versions, lost, bottom=counted, color="tab:orange", label="lost")
    axes.set_ylim(0, 1.1 * max(one["clients_counted"] + one["clients_lost"] for one in rounds))
    axes.set_ylabel("clients")
    axes.set_xlabel("model version")
    axes.legend(loc="lower right")
