"""How are the log files of many processes read as one? The last lines of each in order of time, then what comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.log_lines import parse_note

POLL_S = 0.2
_SHOWN_APART = {"event", "level", "timestamp", "process", "federation", "worker"}


def read_logs(directory: Path, lines: int, follow: Callable[[], bool]) -> Iterator[str]:
    """Yield log lines for people.

    Args:
        directory: all `*.log` in here, also those that come later.
        lines: how many of the last lines of each file to begin with.
        follow: asked when there is nothing new; reading ends when it says no.
    """
    read: dict[Path, int] = {}
    first: list[tuple[str, str]] = []
    for path in sorted(directory.glob("*.log")):
        whole = _new_lines(path, read)
        # Not everything has a time; what has none belongs to the line before it.
        stamp = ""
        for line in whole[-lines:] if lines else []:
            note = parse_note(line)
            stamp = note.get("timestamp", stamp) if note else stamp
            first.append((stamp, render(path.stem, line)))
    yield from (line for _, line in sorted(first, key=lambda item: item[0]))
    while follow():
        for path in sorted(directory.glob("*.log")):
            for line in _new_lines(path, read):
                yield render(path.stem, line)
        time.sleep(POLL_S)


def render(process: str, line: bytes) -> str:
    """One log line as people read it: process, time, event, and the fields that fit into a line."""
    note = parse_note(line)
    if note is None:
        return f"{process:<12} {line.decode(errors='replace')}"
    clock = str(note.get("timestamp", ""))[11:19]
    mark = "" if note.get("level", "info") == "info" else f"{note['level']}: "
    fields = " ".join(f"{name}={_value(value)}" for name, value in note.items() if _is_shown(name, value))
    return f"{process:<12} {clock:<8} {mark}{note['event']} {fields}".rstrip()


def _is_shown(name: str, value: Any) -> bool:
    return name not in _SHOWN_APART and not isinstance(value, dict)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def _new_lines(path: Path, read: dict[Path, int]) -> list[bytes]:
    """Whole lines that have been added to a file since it was looked at last."""
    with path.open("rb") as file:
        file.seek(read.get(path, 0))
        whole, end, _ = file.read().rpartition(b"\n")
    read[path] = read.get(path, 0) + len(whole) + len(end)
    return whole.splitlines()
