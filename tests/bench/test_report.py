"""The benchmark's table stands without peers too, says how to get them, and its JSON holds what it shows.

A mistake on its command line is one line.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.measure import HotPath, Row, measure
from tests.bench.report import missing, table, write_json


def sums(count: int) -> int:
    return sum(range(count))


def measured() -> list[Row]:
    path = HotPath(
        name="adding",
        ours=lambda: sums(20_000),
        peers={"slow": lambda: sums(2_000_000), "absent": None},
        limit_name="nothing",
        limit=lambda: sums(10),
        wanted={"slow": 2.0},
        limit_wanted=5_000.0,
        turns=3,
    )
    return list(measure(path))


def test_a_peer_that_is_not_installed_leaves_its_cells_empty_and_is_named() -> None:
    slow, absent = measured()

    assert slow.times_peer is not None
    assert slow.times_peer > 1.0
    assert (absent.peer, absent.times_peer) == (None, None)
    assert absent.times_limit > 1.0
    assert "absent" in (missing([slow, absent]) or "")
    assert missing([slow]) is None


def test_table_and_json_hold_every_row(tmp_path: Path) -> None:
    rows = [
        *measured(),
        Row(path="bytes", unit="bytes", ours=10, peer_name="slow", peer=200, limit_name="words", limit=8),
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    file = tmp_path / "rows.json"

    console.print(table(rows))
    write_json(rows, file)

    shown = console.export_text()
    document = json.loads(file.read_text())
    assert "200 bytes" in shown
    assert ">= 2" in shown
    assert "<= 5000" in shown
    assert [row["path"] for row in document["rows"]] == ["adding", "adding", "bytes"]
    assert document["rows"][2]["times_peer"] == 20.0
    assert document["machine"]["packages"]["numpy"]


@pytest.mark.parametrize("broker", ["rabbit", "memory"])
def test_a_broker_that_cannot_be_is_told_in_one_line_before_anything_is_measured(broker: str) -> None:
    command = [sys.executable, "-m", "tests.bench", "--broker", broker]

    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("bench: broker: ")
    assert ended.stderr.count("\n") == 1
