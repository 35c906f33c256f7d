"""What the page about workloads shows works as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.options import DemoOptions
from shared.workloads.loading import BUILT_IN
from shared.workloads.partition import PARTITIONS
from tests.simulated import notes_of

PAGE = (Path(__file__).parents[2] / "shared/docs/workloads.md").read_text(encoding="utf-8")


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's first example as the only file of the current directory."""
    example = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    (tmp_path / "ward.py").write_text(example, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("ward", None)


def accuracies(options: DemoOptions) -> list[float]:
    notes = notes_of(options)
    return [float(note.fields["accuracy"]) for note in notes if note.event == "round_finished"]  # type: ignore[arg-type]


@pytest.mark.usefixtures("ward")
def test_the_example_learns() -> None:
    assert accuracies(DemoOptions(workload="ward:Ward", clients=8, group_size=1, processes=1, rounds=15))[-1] >= 0.8


@pytest.mark.parametrize("partition", ["labels:2", "quantity:1", "features:0.5"])
def test_a_skewed_federation_learns(partition: str) -> None:
    options = DemoOptions(
        workload="breast_cancer", partition=partition, clients=8, group_size=1, processes=1, rounds=10
    )

    assert accuracies(options)[-1] >= 0.85


def test_everything_built_in_is_on_the_page() -> None:
    rows = set(re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE))

    assert rows >= set(BUILT_IN) | set(re.split(", | or ", PARTITIONS))
