"""`--privacy` and what it selects, from the option to the printed dry run and to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.demo.options import DemoOptions
from deploy.demo.report import Run
from shared.errors import SettingsError
from shared.privacy.accountant import epsilon_of
from shared.privacy.charges import RecordCharge
from tests.simulated import notes_of
from worker.policy import Policy

RECORD = {"level": "record", "nominal_records": 71.85}
SMALL: dict[str, Any] = {"clients": 12, "group_size": 3, "rounds": 3, "privacy": "record", "partition": "iid"}


def report_of(**options: Any) -> dict[str, Any]:
    run = Run("memory", "")
    for note in notes_of(DemoOptions(**options)):
        run.hear(note.event, note.fields)
    return run.report()


def test_the_report_says_what_the_rounds_cost() -> None:
    report = report_of(**SMALL, epsilon=4.0, delta=1e-5)
    privacy, final = report["plan"]["privacy"], report["final"]
    charge = RecordCharge(noise_multiplier=privacy["noise_multiplier"], sampling_rate=1.0, steps=1)

    assert (privacy["level"], privacy["epsilon"], privacy["delta"]) == ("record", 4.0, 1e-5)
    assert privacy["nominal_records"] == pytest.approx(1437 / 12)
    assert [one["epsilon_max"] for one in report["rounds"]] == [
        pytest.approx(epsilon_of([charge] * rounds, 1e-5)) for rounds in (1, 2, 3)
    ]
    assert final["epsilon_max"] == final["epsilon_mean"] == report["rounds"][-1]["epsilon_max"]
    assert 3.9 < final["epsilon_max"] <= 4.0


@pytest.mark.parametrize(("selection", "warned"), [("random", True), ("restricted", False)])
def test_a_run_begins_by_saying_what_it_costs(selection: str, warned: bool) -> None:
    options = DemoOptions(**SMALL | {"rounds": 40}, selection=selection)
    said = {}
    for note in notes_of(options):
        said[note.event] = note.fields.get("text", "")
        if note.event == "client_joined":
            break
    assert "8 after 40 rounds, at delta 0.0001, for one record" in str(said["privacy_announced"])
    assert ("plan_warning" in said) is warned


def test_without_privacy_the_report_has_no_epsilon() -> None:
    report = report_of(**SMALL | {"privacy": "off"})
    assert report["plan"]["privacy"]["level"] == "off"
    assert (report["final"]["epsilon_max"], report["final"]["epsilon_mean"]) == (None, None)


def test_the_preset_decides_what_no_option_does() -> None:
    assert DemoOptions().version_count == 30
    assert DemoOptions(privacy="record").version_count == 60
    assert DemoOptions(privacy="record", rounds=7).version_count == 7
    assert DemoOptions(privacy="record", workload="digits_linear").version_count == 40
    assert DemoOptions(privacy="record", workload="breast_cancer").version_count == 30


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"privacy": "high"}, "privacy: must be one of off, record, client"),
        ({"epsilon": 8.0}, "no effect without privacy; add --privacy record"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        DemoOptions(**options)


def test_a_federation_with_client_level_noise_runs_and_says_that_it_is_hopeless() -> None:
    options = DemoOptions(**SMALL | {"privacy": "client", "epsilon": 4.0, "clients": 14, "drop": 1, "drop_at": "words"})
    run, said, notes = Run("memory", ""), [], []
    for note in notes_of(options):
        run.hear(note.event, note.fields)
        notes.append(note)
        said += [str(note.fields["text"])] if note.event in ("privacy_announced", "plan_warning") else []
    report = run.report()

    assert "4 after 3 rounds, at delta 0.0001, for one client" in said[0]
    assert "hopeless: at the level 'client' a sum wants about 300 clients, and holds 4" in said[1]
    assert report["final"]["model_version"] == 3
    assert 3.99 < report["final"]["epsilon_max"] <= 4.0
    assert report["plan"]["threshold_fraction"] == 0.8
    assert not [note for note in notes if note.event == "group_rejected"]
    assert not [note for note in notes if note.event == "refused"]


def test_what_workers_charge_at_client_level_is_what_their_budget_counts() -> None:
    class Options(DemoOptions):
        @property
        def policy(self) -> Policy:
            own = super().policy.model_dump()
            return Policy(**{**own, "require_privacy": "client", "privacy_budget": {"epsilon": 3.0}})

    # Three rounds cost 4, two of them 3.1: after the first nobody is left.
    notes = list(notes_of(Options(**SMALL | {"privacy": "client", "epsilon": 4.0})))
    assert [note.fields["version"] for note in notes if note.event == "round_finished"] == [1]
    assert "client-level epsilon" in next(n.fields["reason"] for n in notes if n.event == "client_budget_exhausted")


def dry_run(*arguments: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> str:
    for name, value in settings.items():
        monkeypatch.setenv(f"COMITIA_{name}", json.dumps(value))
    result = CliRunner().invoke(app, ["plan", "--check", "--clients", "20", *arguments], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_dry_run_prints_what_it_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry_run(monkeypatch=monkeypatch, PRIVACY=RECORD)
    for expected in ("preset digits/record", "8 after 60 rounds, at delta 0.0001", "in a group mean", "lr 2"):
        assert expected in text
    assert "warning" not in text
    figures = json.loads(dry_run("--json", monkeypatch=monkeypatch, PRIVACY=RECORD))
    assert figures["epsilon_run"] == pytest.approx(8.0, rel=1e-3)
    # nu sqrt(k) over half of lr S', by hand: 0.0627 * 34.67 / 2 (four members) / 0.5.
    assert figures["noise_over_signal_group"] == pytest.approx(0.0627 * 34.67 / 2 / 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"CODEC": {"selection": "random", "density": 0.1}}, "use 'restricted', which clips and noises only"),
        ({"PRIVACY": RECORD | {"epsilon": 0.3}}, "hardly anything will be learned"),
    ],
)
def test_hopeless_settings_are_warned_about(
    settings: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in dry_run(monkeypatch=monkeypatch, **{"PRIVACY": RECORD} | settings)


def test_the_dry_run_prints_what_client_level_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMITIA_GROUP_SIZE", "200")
    settings = {"PRIVACY": {"level": "client"}, "AGGREGATION": {"rule": "mean", "trim": 0}}
    text = dry_run("--clients", "300", monkeypatch=monkeypatch, **settings)
    for expected in ("a whole client; preset digits/client", "8 after", "if all other members of its groups collude"):
        assert expected in text
    assert "from any 239 members of 300" in text
    assert "hopeless" not in text
    assert "hopeless" in dry_run("--clients", "299", monkeypatch=monkeypatch, **settings)
    figures = json.loads(dry_run("--clients", "300", "--json", monkeypatch=monkeypatch, **settings))
    assert figures["noise_over_signal_group"] == pytest.approx(figures["noise_over_signal_aggregate"])
    assert figures["epsilon_run"] == pytest.approx(8.0, rel=1e-3)


def test_without_privacy_the_dry_run_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "off: updates show" in dry_run(monkeypatch=monkeypatch)
