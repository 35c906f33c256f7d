"""What a run comes to: the JSON report, the summary's figures, and the plot of its curves."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """Draw accuracy and loss, and who was counted and lost, over the versions, in the format of the file name."""
    from matplotlib.figure import Figure  # it takes a second to import, which most runs need not spend

    versions = [one["version"] for one in run.rounds]
    figure = Figure(figsize=(9, 6), layout="constrained")
    curves, clients = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    curves.plot(versions, [one["accuracy"] for one in run.rounds], color="tab:blue", label="accuracy on held-out data")
    curves.set_ylabel("accuracy")
    curves.set_ylim(0, 1)
    curves.grid(alpha=0.3)
    losses = curves.twinx()
    losses.plot(versions, [one["loss"] for one in run.rounds], color="tab:red", label="loss", linestyle="--")
    losses.set_ylabel("loss")
    losses.set_ylim(bottom=0)
    validated = [one["validation"] for one in run.rounds if "accuracy" in one["validation"]]
    if validated:
        means, spreads = ([one[name] for one in validated] for name in ("accuracy", "accuracy_std"))
        curves.errorbar(
            [one["version"] for one in validated],
            means,
            yerr=spreads,
            color="tab:purple",
            marker=".",
            capsize=2,
            linewidth=1,
            label="accuracy at the clients, ± deviation",
        )
    handles = [*curves.get_legend_handles_labels()[0], *losses.get_lines()]
    curves.legend(handles=handles, loc="center right")
    clients.bar(versions, [one["clients_counted"] for one in run.rounds], color="tab:green", label="counted")
    clients.bar(
        versions,
        [one["clients_lost"] for one in run.rounds],
        bottom=[one["clients_counted"] for one in run.rounds],
        color="tab:orange",
        label="lost",
    )
    clients.set_ylim(0, 1.1 * max(one["clients_counted"] + one["clients_lost"] for one in run.rounds))
    clients.set_ylabel("clients")
    clients.set_xlabel("model version")
    clients.legend(loc="lower right")
    aggregation, codec = run.plan["aggregation"], run.plan["codec"]
    figure.suptitle(
        f"{run.plan['workload']}: {aggregation['rule']}, trim {aggregation['trim']}, "
        f"{codec['selection']} coordinates at density {codec['density']:g}"
    )
    figure.savefig(path, dpi=120)
