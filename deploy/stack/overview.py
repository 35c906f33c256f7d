"""What does `comitia status` show? How far the federation is, and which process serves whom."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.log_lines import parse_note, waiting_text
from deploy.stack.files import Present, ProcessPresent
from worker.client_ids import write_client_ids


@dataclass
class Progress:
    """What a coordinator has logged about its federation."""

    federation: str = ""
    rounds: int = 0
    version: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    broker_lost: str = ""
    waiting: dict[str, Any] = field(default_factory=dict)
    paused: bool = False
    standing_by: bool = False
    finished: bool = False
    reason: str = ""

    def hear(self, note: dict[str, Any]) -> None:
        """Take a log line into account."""
        match note["event"]:
            case "coordinator_started":
                self.federation, self.rounds = note["federation"], note["plan"]["round"]["rounds"]
            case "in_office":
                self.version, self.standing_by = note["version"], False
            case "standing_by":
                self.standing_by = True
            case "run_paused":
                self.paused = True
            case "run_resumed" | "run_stopping":
                self.paused = False
            case "connected":
                self.broker_lost = ""
            case "disconnected":
                self.broker_lost = note["reason"]
            case "waiting_for_clients":
                self.waiting = note
            case "round_finished":
                self.version, self.waiting = note["version"], {}
                self.accuracy, self.loss = note["accuracy"], note["loss"]
            case "coordinator_stopped":
                self.finished, self.reason = note["finished"], note.get("reason", "")
            case _:
                return


def read_progress(log: Path) -> Progress:
    """What the coordinator's log says."""
    progress = Progress()
    for line in log.read_bytes().splitlines() if log.exists() else ():
        note = parse_note(line)
        if note is not None:
            progress.hear(note)
    return progress


def overview(present: Present, progress: Progress, clients: int, away: Collection[str]) -> RenderableType:
    """The picture: `clients` is the number of enrolled ones, `away` those whom the operator has taken out."""
    heading = Table(box=None, show_header=False, pad_edge=False)
    heading.add_column(style="bold")
    heading.add_column(overflow="fold")
    heading.add_row("federation", Text(f"{progress.federation}: {_state(present, progress)}"))
    if progress.version is not None:
        heading.add_row("version", f"{progress.version} of {progress.rounds}")
    if progress.accuracy is not None:
        heading.add_row("accuracy", f"{progress.accuracy:.2%}")
    if progress.loss is not None:
        heading.add_row("loss", f"{progress.loss:.4f}")
    served = sum(len(one.clients) for one in present.processes if one.state == "running")
    heading.add_row("clients", f"{served} of {clients} served")
    if away:
        heading.add_row("away", f"{write_client_ids(away)}; `comitia worker rejoin` brings them back")
    heading.add_row("broker", present.broker)
    return Group(heading, Text(), _processes(present.processes))


def _state(present: Present, progress: Progress) -> str:
    if progress.finished:
        return f"finished: {progress.reason}" if progress.reason else "finished"
    if present.phase != "up":
        return present.phase
    if progress.broker_lost:
        return f"broker lost: {progress.broker_lost}"
    if progress.standing_by:
        return "stands by: another coordinator is in office"
    if progress.paused:
        return "paused by the operator; `comitia resume` goes on"
    if all(one.name == "coordinator" for one in present.processes):
        return "waits for clients; `comitia workers N` starts workers"
    if progress.waiting:
        return f"waits: {waiting_text(progress.waiting)}"
    return "learning"


def _processes(processes: Iterable[ProcessPresent]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("process")
    table.add_column("pid", justify="right")
    table.add_column("state", overflow="fold")
    table.add_column("clients", justify="right")
    table.add_column("which", overflow="fold")
    for one in processes:
        state = f"{one.state}: {one.last_words}" if one.last_words else one.state
        count = str(len(one.clients)) if one.clients else "-"
        table.add_row(one.name, str(one.pid or "-"), state, count, write_client_ids(one.clients))
    return table
