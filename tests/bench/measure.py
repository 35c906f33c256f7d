"""How is a path timed beside its peers and its physical limit? In turns, in one run, by the median of CPU time."""

from __future__ import annotations

import importlib
import statistics
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

Run = Callable[[], object]

TURNS = 9
_SAMPLE_S = 0.001


@dataclass(frozen=True, kw_only=True)
class HotPath:
    """A path of Comitia's, what others have in its place, and what no implementation can be quicker than.

    A peer's run is None if the peer is not installed; `wanted` says how many times as quick as a peer we mean to be.
    `limit_wanted` says how many times the limit we mean to take at most, `kept` how many bytes ours holds from one run
    to the next: they count as extra memory too.
    """

    name: str
    ours: Run
    peers: Mapping[str, Run | None] = field(default_factory=dict)
    limit_name: str
    limit: Run
    wanted: Mapping[str, float] = field(default_factory=dict)
    limit_wanted: float | None = None
    kept: Callable[[], int] = int
    turns: int = TURNS


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a path beside one peer, or beside none. Medians in `unit`, memory in bytes."""

    path: str
    unit: str
    ours: float
    peer_name: str | None = None
    peer: float | None = None
    wanted: float | None = None
    limit_name: str
    limit: float
    limit_wanted: float | None = None
    extra_bytes: int | None = None
    peer_extra_bytes: int | None = None

    @property
    def times_peer(self) -> float | None:
        """How many times ours the peer takes."""
        return None if self.peer is None else self.peer / self.ours

    @property
    def times_limit(self) -> float:
        """How many times the limit ours takes."""
        return self.ours / self.limit


def measure(path: HotPath) -> Iterator[Row]:
    """Take the CPU time of all runs of a path, one after the other in each turn: what else the machine does meets all.

    CPU time is what all threads of the process take together; a run that has one takes as much time on an idle machine.
    """
    runs = {"ours": path.ours, "limit": path.limit}
    runs |= {f"peer {name}": run for name, run in path.peers.items() if run is not None}
    extra = {name: extra_memory(run) for name, run in runs.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(path.turns):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    extra["ours"] += path.kept()
    median = {name: statistics.median(taken) * 1e3 for name, taken in seconds.items()}
    for peer_name in path.peers or (None,):
        key = f"peer {peer_name}"
        yield Row(
            path=path.name,
            unit="ms",
            ours=median["ours"],
            peer_name=peer_name,
            peer=median.get(key),
            wanted=path.wanted.get(peer_name) if peer_name else None,
            limit_name=path.limit_name,
            limit=median["limit"],
            limit_wanted=path.limit_wanted,
            extra_bytes=extra["ours"],
            peer_extra_bytes=extra.get(key),
        )


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


def peer(module: str) -> Any | None:
    """A module of a peer, None if the peer is not installed or its installation is broken, which is said."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError, RuntimeError) as error:  # binary packages that do not fit each other
        warnings.warn(f"{module} is installed but does not load: {error}", stacklevel=2)
        return None
