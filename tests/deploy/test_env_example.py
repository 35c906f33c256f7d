"""`.env.example` says what the settings classes say, and what it says can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.settings import CoordinatorSettings
from deploy.commands.settings import example
from shared.plan_sections import TrainingPlan
from shared.settings import ProcessSettings
from worker.settings import WorkerSettings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def variables() -> list[tuple[str, str]]:
    """Every variable of the file with its value."""
    lines = [line for line in example().splitlines() if line.startswith("#COMITIA_")]
    return [(name, value) for name, _, value in (line.removeprefix("#").partition("=") for line in lines)]


def test_the_file_is_what_the_command_prints() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == example(), "run: comitia settings > .env.example"


def test_every_setting_stands_in_it_once() -> None:
    names = [name for name, _ in variables()]
    fields = {name for kind in (CoordinatorSettings, WorkerSettings) for name in kind.model_fields}

    assert len(names) == len(set(names))
    assert {name.split("__")[0].removeprefix("COMITIA_").lower() for name in names} == fields


@pytest.mark.parametrize("kind", [CoordinatorSettings, WorkerSettings])
def test_its_values_are_the_defaults(kind: type[ProcessSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an environment in which every line of the file is in force, those without a value too
    for name, _ in variables():
        monkeypatch.delenv(name, raising=False)
    defaults = kind.load()
    for name, value in variables():
        monkeypatch.setenv(name, value)

    # When a process reads its settings
    read = kind.load()

    # Then they are the ones it has without it, but for what follows the workload when it is left out
    expected = defaults.model_dump()
    if "training" in expected:
        expected["training"] = TrainingPlan().model_dump()
    assert read.model_dump() == expected


def test_bounds_and_choices_are_told() -> None:
    text = example()

    assert "# one of: debug, info, warning, error\n#COMITIA_LOG_LEVEL=info\n" in text
    assert "# a whole number >= 1 and <= 1024\n#COMITIA_SEATS=\n" in text
    assert "# a number > 0 and <= 1\n#COMITIA_CODEC__DENSITY=0.1\n" in text
