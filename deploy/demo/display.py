"""What a person sees of a run: a live table with the curve so far, then a summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deploy.demo.report import Run
from deploy.log_lines import waiting_text
from deploy.sizes import attacked_text, odds_text, saving_text, size_text

ROWS_SHOWN = 12
SHARES_SHOWN = 8
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass
class Display:
    """Follows a run on a console; on something that is not a terminal it prints one line per version."""

    console: Console
    run: Run
    rounds: int
    clients: int
    _joined: int = 0
    _messages: list[str] = field(default_factory=list)
    _live: Live | None = None

    def __post_init__(self) -> None:
        self._progress = Progress(
            TextColumn("version"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[spark]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task: TaskID = self._progress.add_task("versions", total=self.rounds, spark="")

    def __enter__(self) -> Display:
        """Begin to draw."""
        if self.console.is_terminal:
            self._live = Live(self._draw(), console=self.console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.update(self._draw())
            self._live.__exit__(*exception)

    @property
    def progress(self) -> float:
        """How many versions are done, and which part of the next one."""
        return self._progress.tasks[0].completed

    def hear(self, event: str, fields: dict[str, Any]) -> None:
        """Show what is worth showing of a note that the run has taken in."""
        message = _printable(_message(event, fields))
        if message and self._live is None:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)
        elif message:
            self._messages.append(f"{time.strftime('%H:%M:%S')}  {message}")
        if event == "client_joined":
            self._joined = min(self.clients, self._joined + 1)
        if event == "round_finished":
            accuracies = [accuracy for one in self.run.rounds if (accuracy := _accuracy(one)) is not None]
            self._progress.update(self._task, completed=fields["version"], spark=sparkline(accuracies[-40:]))
            if self._live is None:
                if len(self.run.rounds) == 1:
                    self.console.print(_HEADING, soft_wrap=True)
                self.console.print(_line(self.run.rounds[-1]), highlight=False, soft_wrap=True)
        if event == "version_progress":
            self._progress.update(self._task, completed=fields["version"] + fields["share"])
        if self._live is not None:
            self._live.update(self._draw())

    def _draw(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("version", "accuracy", "loss", "counted", "lost", "groups", "given up", "up", "down", "seconds"):
            table.add_column(name, justify="right")
        if any(one["validation"] for one in self.run.rounds):
            table.add_column("version before, at clients", justify="right")
        for one in self.run.rounds[-ROWS_SHOWN:]:
            table.add_row(*_cells(one), *validation_words(one["validation"]))
        parts: list[RenderableType] = [table, self._progress]
        if not self.run.rounds:
            parts.insert(0, Text(f"starting: {self._joined} of {self.clients} clients are here", style="dim"))
        parts += [Text(message, style="yellow") for message in self._messages[-4:]]
        return Group(*parts)


def print_summary(console: Console, run: Run) -> None:
    """Print what the run came to."""
    report = run.report()
    final, plan = report["final"], report["plan"]
    console.print()
    if not run.rounds:
        console.print("no version was made")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    accuracies = [one["accuracy"] or 0.0 for one in run.rounds]
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    table.add_row("broker", f"{report['broker']['kind']} {report['broker']['version']}")
    if run.reconnects:
        table.add_row("reconnects", str(run.reconnects))
    table.add_row(
        "rule", f"{plan['aggregation']['rule']}, trim {plan['aggregation']['trim']}, groups of {plan['group_size']}"
    )
    table.add_row("versions", f"{final['model_version']} in {final['seconds']:.1f} s")
    if final["stopped_early"]:
        table.add_row("stopped early", final["stopped_early"])
    accuracy, loss = final["accuracy"], final["loss"]
    if accuracy is not None:
        table.add_row(
            "accuracy", f"{accuracy:.2%} (best {accuracies[best]:.2%} at version {run.rounds[best]['version']})"
        )
    if loss is not None:
        table.add_row("loss", f"{loss:.4f}")
    if final["epsilon_max"] is not None:
        table.add_row(
            "privacy",
            f"epsilon {final['epsilon_max']:.2f} at most, {final['epsilon_mean']:.2f} in the mean, at delta "
            f"{plan['privacy']['delta']:g}, for one {plan['privacy']['level']}; here the noise follows from --seed, "
            "which protects nobody",
        )
    for words in validation_words(final["validation"]):
        table.add_row("at the clients", f"{words}, mean and deviation of version {final['validation']['version']}")
    up, dense = final["bytes_up_per_update"], final["bytes_dense_per_update"]
    if up and dense:
        table.add_row("per update", f"{size_text(up)} sent, {size_text(dense)} if dense: {saving_text(up, dense)}")
    for name, words in (*_trouble(report), *simulation_words(report.get("simulation"))):
        table.add_row(name, words)
    if final["weights_sha256"]:
        table.add_row("weights", f"sha256 {final['weights_sha256']}")
    console.print(table)


def _trouble(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Who was dishonest or lost, and what became of it."""
    final = report["final"]
    rows = [
        ("attacker", f"{attacker['id']}: rejected by the gates {attacker['rejected']} times")
        for attacker in report["attackers"]
    ]
    if final["honest_groups_rejected"]:
        rows.append(("honest groups rejected", str(final["honest_groups_rejected"])))
    if final["recovered"]:
        rows.append(("recovered", f"{final['recovered']} lost in mid-group; the group's sum was opened all the same"))
    for lost in report["clients"]:
        rows.append(("lost", f"{lost['id']} at version {lost['lost_version']}, last seen: {lost['lost_phase']}"))
    return rows


def simulation_words(simulation: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What a simulation cost, by the clock of this machine; nothing where there was a real broker."""
    if simulation is None or not simulation["versions"]:
        return []
    last, clients = simulation["versions"][-1], simulation["clients"]
    messages = last["messages_to_coordinator"] + last["messages_to_workers"]
    shares = [f"{part} {share:.0%}" for part, share in simulation["time_shares"].items()]
    rows = [
        ("last version", f"{last['seconds']:.1f} s here ({1e3 * last['seconds'] / clients:.1f} ms per client)"),
        ("peak memory", size_text(simulation["peak_memory_bytes"])),
        (
            "per client",
            f"{size_text(last['bytes_out_per_client'])} out, {size_text(last['bytes_in_per_client'])} in and "
            f"{messages / clients:.1f} messages per version, besides the model log",
        ),
        ("time", ", ".join(shares[:SHARES_SHOWN])),
    ]
    untrained = ("trained", "nothing: made-up updates, to measure all the rest")
    return rows if simulation["trained"] else [untrained, *rows]


def sparkline(values: list[float]) -> str:
    """Values of 0 to 1 as a line of little bars."""
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[min(top, max(0, round(value * top)))] for value in values)


_HEADING = "version  accuracy    loss  counted  lost  groups  given up        up      down  seconds"


def validation_words(validation: dict[str, Any]) -> list[str]:
    """What clients measured on their own validation records, in one piece of text; none if they measured nothing."""
    if "accuracy" in validation:
        return [f"{validation['accuracy']:.2%} ± {validation['accuracy_std']:.1%}"]
    if "loss" in validation:
        return [f"loss {validation['loss']:.3f} ± {validation['loss_std']:.3f}"]
    return []


def _accuracy(one: dict[str, Any]) -> float | None:
    """The accuracy of a round on held-out data, or else at the clients."""
    accuracy: float | None = one["validation"].get("accuracy") if one["accuracy"] is None else one["accuracy"]
    return accuracy


def _line(one: dict[str, Any]) -> str:
    widths = (7, 8, 6, 7, 4, 6, 8, 8, 8, 7)
    line = "  ".join(cell.rjust(width) for cell, width in zip(_cells(one), widths, strict=True))
    own = (f"at clients, version {one['version'] - 1}: {words}" for words in validation_words(one["validation"]))
    return "  ".join((line, *own))


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["version"]),
        "-" if one["accuracy"] is None else f"{one['accuracy']:.2%}",
        "-" if one["loss"] is None else f"{one['loss']:.3f}",
        str(one["clients_counted"]),
        str(one["clients_lost"]),
        str(one["groups"]),
        str(one["groups_given_up"]),
        size_text(one["bytes_up"]),
        size_text(one["bytes_down"]),
        f"{one['seconds']:.2f}",
    )


def _printable(message: str) -> str:
    """A message in which clients or a broker may have had words, none of which steers the terminal."""
    return "".join(character if character.isprintable() else " " for character in message)


def _message(event: str, fields: dict[str, Any]) -> str:
    match event:
        case "coordinator_started":
            return f"odds of {attacked_text(fields['plan']['aggregation']['trim'])}: {odds_text(fields['attack_odds'])}"
        case "privacy_announced" | "plan_warning":
            return str(fields["text"])
        case "client_lost":
            return f"{fields['client']} lost at version {fields['version']}, last seen: {fields['phase']}"
        case "group_given_up":
            return f"group {fields['group']} given up: {fields['reason']} ({', '.join(fields['clients'])})"
        case "group_rejected":
            return f"group {fields['group']} rejected: {fields['reason']}"
        case "dense_entries":
            return (
                f"the server's {fields['optimizer']} moves every coordinate: change entries hold the whole model, "
                f"{size_text(fields['bytes'])} instead of {size_text(fields['bytes_of_round'])}"
            )
        case "rate_lowered":
            return (
                f"plateau at version {fields['version']}: server's learning rate times {fields['factor']:g} from here"
            )
        case "run_paused":
            return f"paused by the operator at version {fields['version']}"
        case "run_resumed":
            return "resumed by the operator"
        case "run_stopping":
            return "the operator stops the run; it ends with the round under way"
        case "stopped_early":
            return f"stopped early: {fields['reason']}"
        case "accuracy_alarm" | "clipping_norm_alarm":
            return f"ALARM: {fields['text']}"
        case "draw_void":
            return f"draw void: {fields['reason']}"
        case "waiting_for_clients":
            return f"waiting: {waiting_text(fields)}"
        case "disconnected":
            return f"broker lost: {fields['reason']}"
        case "connected" if fields["reconnects"]:
            return f"broker is back (reconnect {fields['reconnects']})"
        case "client_training_failed":
            return f"{fields['client']} cannot train: {fields['reason']}"
        case _:
            return ""
