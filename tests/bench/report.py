"""What becomes of the rows: one table, and JSON for whoever compares runs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from rich.table import Table

from tests.bench.measure import Row

_COMPARED = ("numpy", "torch", "flwr", "byzfl")
_DIGITS = {"ms": 2, "bytes": 0}


def table(rows: Sequence[Row]) -> Table:
    """One line per path and peer. "x ours" is how many times ours the peer takes, "x limit" how far ours is from it."""
    result = Table(
        title="medians, measured in turns in one run; CPU time on one thread, rounds by the clock", title_justify="left"
    )
    for column in ("path", "limit", "peer"):
        result.add_column(column)
    for column in ("ours", "peer", "limit", "x ours", "wanted", "x limit", "MiB", "peer MiB"):
        result.add_column(column, justify="right", no_wrap=True)
    above = None
    for row in rows:
        first = row.path != above
        above = row.path
        result.add_row(
            row.path if first else "",
            row.limit_name if first else "",
            row.peer_name or "-",
            _amount(row.ours, row.unit) if first else "",
            _amount(row.peer, row.unit),
            _amount(row.limit, row.unit) if first else "",
            _times(row.times_peer),
            f">= {row.wanted:g}" if row.wanted else "",
            _times(row.times_limit) + (f" <= {row.limit_wanted:g}" if row.limit_wanted else "") if first else "",
            _mebibytes(row.extra_bytes) if first else "",
            _mebibytes(row.peer_extra_bytes),
        )
    return result


def missing(rows: Sequence[Row]) -> str | None:
    """How to get the peers that are not there; None if all are."""
    names = sorted({row.peer_name for row in rows if row.peer_name and row.peer is None})
    if not names:
        return None
    return f"not installed: {', '.join(names)}. `make peers`, then `make bench` again, fills these lines"


def write_json(rows: Sequence[Row], file: Path) -> None:
    """Rows with their ratios, and what they were measured on."""
    lines = [asdict(row) | {"times_peer": row.times_peer, "times_limit": row.times_limit} for row in rows]
    document = {"machine": _machine(), "rows": lines}
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _machine() -> dict[str, object]:
    versions: dict[str, str | None] = {}
    for name in _COMPARED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.{_DIGITS[unit]}f} {unit}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.1f}"
