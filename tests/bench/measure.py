"""How is a path timed beside its peers and its physical limit? In turns, in one run, by the median."""

from __future__ import annotations

import importlib
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from rich.table import Table

Run = Callable[[], object]

TURNS = 5
_SAMPLE_S = 0.001


@dataclass(frozen=True)
class Measured:
    """Median and best seconds of one path; the peak of the process's memory above what it held before, in bytes."""

    median: float
    best: float
    extra_bytes: int


def measure(paths: Mapping[str, Run | None], turns: int = TURNS) -> dict[str, Measured | None]:
    """Time every path `turns` times, one after the other in each turn, so that a busy machine is busy for all.

    A path that is None (a peer that is not installed) stays None.
    """
    runs = {name: run for name, run in paths.items() if run is not None}
    extra = {name: extra_memory(run) for name, run in runs.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Measured(statistics.median(seconds[name]), min(seconds[name]), extra[name]) if name in runs else None
        for name in paths
    }


def extra_memory(run: Run) -> int:
    """The most memory that `run` holds beside what was there before, in bytes, its result included.

    The larger of what Python and numpy say that they allocate and what the resident memory is seen to grow by.
    """
    run()  # imports, caches and pools are not the path's
    tracemalloc.start()
    try:
        run()
        traced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return max(traced, _resident_growth(run))


def _resident_growth(run: Run) -> int:
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def table(title: str, measured: Mapping[str, Measured | None], *, ours: str, limit: str) -> Table:
    """One line per path: milliseconds, how many times ours it takes, how many times the limit, extra memory."""
    result = Table(title=title)
    for column in ("", "median ms", "best ms", "x ours", "x limit", "extra MiB"):
        result.add_column(column, justify="left" if not column else "right")
    own, floor = measured[ours], measured[limit]
    assert own is not None
    assert floor is not None
    for name, one in measured.items():
        if one is None:
            result.add_row(name, "not installed", "", "", "", "")
        else:
            result.add_row(
                name,
                f"{one.median * 1e3:.2f}",
                f"{one.best * 1e3:.2f}",
                f"{one.median / own.median:.1f}",
                f"{one.median / floor.median:.1f}",
                f"{one.extra_bytes / 2**20:.1f}",
            )
    return result


def peer(module: str) -> Any | None:
    """A module of a peer, None if the peer is not installed (the extra "bench" installs it)."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None
