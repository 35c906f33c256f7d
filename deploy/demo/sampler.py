"""Where does the CPU time of a process go? A timer of the operating system interrupts it a hundred times a second.

It costs next to nothing, so what is measured is the run itself. The time since the last interrupt counts for the
innermost part of Comitia that stands on the stack, and for the side, coordinator or workers, in whose step that is.
(A thread that looked on would be let in most often where the interpreter's lock is given up, and count too much there.)
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import shared

INTERVAL_S = 0.01

_ROOT = Path(shared.__file__).resolve().parent.parent

_SIDES = {"coordinator/service.py": "coordinator", "worker/service.py": "workers"}

_PARTS = {
    "shared/crypto/signing": "signatures",
    "shared/crypto": "key agreement, shares, masks",
    "shared/wire": "messages",
    "shared/incoming": "messages",
    "shared/outgoing": "messages",
    "shared/transport": "broker",
    "shared/modellog": "log",
    "shared/directory": "log",
    "shared/membership": "log",
    "shared/codec": "codec",
    "shared/privacy": "codec",
    "shared/workloads": "training",
    "worker/training": "training",
    "worker/trainer": "training",
    "worker/st": "state directories",
    "worker/slots": "state directories",
    "worker/ledger": "state directories",
    "coordinator/summing": "summing stage",
    "coordinator/aggregator": "aggregator",
    "coordinator/scheduler": "scheduler",
    "coordinator": "machines",
    "worker": "machines",
    "deploy": "simulation",
}
"""Beginnings of the paths of modules; the longest that fits counts."""


class Sampler:
    """Samples the main thread while it is inside. In another thread it measures nothing: signals go to the main one."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._seconds: dict[str, float] = {}
        self._sampled_at = 0.0
        self._before: Any = None

    def __enter__(self) -> Sampler:
        """Begin."""
        if threading.current_thread() is threading.main_thread():
            self._sampled_at = time.process_time()
            self._before = signal.signal(signal.SIGPROF, self._sample)
            signal.setitimer(signal.ITIMER_PROF, self._interval_s, self._interval_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        if self._before is not None:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.signal(signal.SIGPROF, self._before)
            self._before = None

    def shares(self) -> dict[str, float]:
        """The share of each part, largest first; together 1, or none at all before the first sample."""
        total = sum(self._seconds.values())
        largest_first = sorted(self._seconds.items(), key=lambda item: -item[1])
        return {part: seconds / total for part, seconds in largest_first}

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        # A call into a library holds interrupts up: all the time since the last one is its.
        now = time.process_time()
        part = "simulation" if frame is None else part_of(frame)
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._sampled_at
        self._sampled_at = now


def part_of(frame: FrameType) -> str:
    """The part that a stack is in, as "side: part"; what belongs to no side is the simulation's own."""
    part = None
    for path in _modules(frame):
        part = part or _part_of_module(path)
        if path in _SIDES:
            return f"{_SIDES[path]}: {part}"
    return "simulation"


def _modules(frame: FrameType | None) -> Iterator[str]:
    """The paths of Comitia's own modules on a stack, the innermost first."""
    while frame is not None:
        path = _within(frame.f_code.co_filename)
        if path:
            yield path
        frame = frame.f_back


@cache
def _within(file: str) -> str:
    path = Path(file)
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else ""


@cache
def _part_of_module(path: str) -> str | None:
    fitting = [beginning for beginning in _PARTS if path.startswith(beginning)]
    return _PARTS[max(fitting, key=len)] if fitting else None
