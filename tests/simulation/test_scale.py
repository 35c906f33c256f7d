"""A large federation costs each client what a small one does: messages are counted, and the lines of code that run."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.console import Console

import shared
from deploy.demo.display import Display, print_summary
from deploy.demo.options import DemoOptions
from deploy.demo.report import Run
from tests.simulated import notes_of

ROOT = Path(shared.__file__).resolve().parent.parent
WATCHED = ("coordinator/", "worker/service.py", "shared/transport/", "deploy/demo/simulation.py", "shared/directory.py")
"""Where something is done for every message, every step or every tick, so that it must not look at all clients."""

GROUP_SIZE, THRESHOLD = 8, 5


def options(clients: int, rounds: int) -> DemoOptions:
    return DemoOptions(workload="still", clients=clients, processes=4, group_size=GROUP_SIZE, rounds=rounds)


def lines_run(run: Callable[[], object]) -> int:
    """How many lines of the watched modules ran, each turn of a loop or comprehension counted anew."""
    lines = 0

    def in_watched(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return in_watched

    def on_call(frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in watched:
            path = Path(file)
            within = path.is_relative_to(ROOT) and path.relative_to(ROOT).as_posix().startswith(WATCHED)
            watched[file] = within
        return in_watched if watched[file] else None

    watched: dict[str, bool] = {}
    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        run()
    finally:
        sys.settrace(before)
    return lines


def test_four_times_the_clients_run_four_times_the_code() -> None:
    few, many = (lines_run(lambda n=n: list(notes_of(options(n, 1)))) / n for n in (64, 256))

    assert many <= few


def test_a_simulation_says_what_a_version_costs() -> None:
    run, output = Run("memory", "in-process"), io.StringIO()
    console = Console(file=output, width=200, force_terminal=True)
    shown: set[float] = set()
    with Display(console, run, rounds=2, clients=200) as display:
        for note in notes_of(options(200, 2)):
            run.hear(note.event, note.fields)
            display.hear(note.event, note.fields)
            shown.add(display.progress)
    print_summary(console, run)

    simulation = run.report()["simulation"]
    assert simulation["trained"] is False
    assert "nothing: made-up updates" in output.getvalue()
    assert simulation["peak_memory_bytes"] > 1 << 20
    assert sum(simulation["time_shares"].values()) == pytest.approx(1.0)
    assert {"workers: signatures", "coordinator: signatures"} <= simulation["time_shares"].keys()
    # A version is seen to come nearer.
    assert len({share for share in shown if 0 < share < 1}) >= 5
    assert len({share for share in shown if 1 < share < 2}) >= 5
    assert [version["version"] for version in simulation["versions"]] == [1, 2]
    for version in simulation["versions"]:
        check_counts(version)
    assert simulation["versions"][1]["messages"].keys().isdisjoint({"status", "task"})


def check_counts(version: dict[str, Any]) -> None:
    """Each client says four things and is told three; t of each group reveal, and are asked to."""
    messages, groups = version["messages"], 200 // GROUP_SIZE
    for kind in ("offer", "shares", "words", "agreement", "roster", "participants", "arrived"):
        assert messages[kind] == 200, kind
    assert messages["reveal"] == messages["unmask"] == THRESHOLD * groups
    assert messages["group_job"] == (groups + 1) // 2
    # A process's messages travel together, and nobody asks anybody who has nothing to do.
    assert version["coordinator_steps"] <= 20
    assert version["worker_steps"] <= 80
    assert version["seconds"] > 0
    assert version["cpu_seconds"] > 0
    assert version["bytes_of_journal"] > 200 * 300
    # 1,000 coordinates in 16-bit words, and what goes round them.
    assert 4_100 <= version["bytes_out_per_client"] <= 4_500
    assert 5_200 <= version["bytes_in_per_client"] <= 5_600
    assert version["bytes_between_roles"] < 400 * 200
