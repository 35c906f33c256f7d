"""What the demonstration says in words of the coordinator's notes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from deploy.demo.display import Display, print_summary
from deploy.demo.report import ROUND_FIELDS, Run, plot_of


def test_what_clients_measured_is_said_with_its_version_and_spread() -> None:
    run = Run("memory", "", plan={"aggregation": {"rule": "mean", "trim": 0}, "group_size": 1})
    figures: dict[str, Any] = {**dict.fromkeys(ROUND_FIELDS, 1), "epsilon_max": None, "epsilon_mean": None}
    measured = {"version": 4, "share": 1.0, "loss": 0.5, "loss_std": 0.25}
    output = io.StringIO()
    console = Console(file=output, width=200)
    with Display(console, run, rounds=9, clients=2) as display:
        for more in ({}, {"accuracy": 0.9, "accuracy_std": 0.05}):
            told = {**figures, "version": 5, "accuracy": None, "loss": None, "validation": {**measured, **more}}
            run.hear("round_finished", told)
            display.hear("round_finished", told)
    assert "at clients, version 4: loss 0.500 ± 0.250" in output.getvalue()
    assert "at clients, version 4: 90.00% ± 5.0%" in output.getvalue()
    print_summary(console, run)
    assert "90.00% ± 5.0%, mean and deviation of version 4" in output.getvalue()


def test_a_run_that_is_interrupted_has_come_as_far_as_its_last_version() -> None:
    plan = {"aggregation": {"rule": "mean", "trim": 0}, "group_size": 1, "dimension": 1_000}
    run = Run("memory", "", plan=plan)
    figures: dict[str, Any] = {**dict.fromkeys(ROUND_FIELDS, 1), "epsilon_max": None, "epsilon_mean": None}
    run.hear("round_finished", figures | {"version": 7, "validation": {}})
    output = io.StringIO()

    print_summary(Console(file=output, width=200), run)

    assert run.report()["final"]["model_version"] == 7
    assert "versions    7 in" in output.getvalue()
    assert "None" not in output.getvalue()


@pytest.mark.parametrize(
    ("measured", "labels"),
    [
        ({}, ["accuracy on held-out data", "accuracy at the clients, ± deviation", "loss"]),
        ({"accuracy": None, "loss": None}, ["accuracy at the clients, ± deviation"]),
        ({"accuracy": None, "loss": None, "validation": {}}, []),
    ],
)
def test_the_plot_has_the_curves_that_were_measured(measured: dict[str, Any], labels: list[str]) -> None:
    codec = {"selection": "random", "density": 0.1}
    run = Run("memory", "", plan={"workload": "w", "aggregation": {"rule": "mean", "trim": 0}, "codec": codec})
    own = {"version": 0, "accuracy": 0.5, "accuracy_std": 0.1}
    figures: dict[str, Any] = {**dict.fromkeys(ROUND_FIELDS, 1), "epsilon_mean": None, "validation": own}
    run.hear("round_finished", figures | measured)

    legend = plot_of(run).axes[0].get_legend()

    assert ([] if legend is None else [text.get_text() for text in legend.get_texts()]) == labels


@pytest.mark.parametrize(
    ("event", "fields", "words"),
    [
        ("accuracy_alarm", {"text": "accuracy has fallen"}, "ALARM: accuracy has fallen"),
        ("clipping_norm_alarm", {"text": "updates have become long"}, "ALARM: updates have become long"),
        ("stopped_early", {"version": 9, "reason": "no better version"}, "stopped early: no better version"),
        ("rate_lowered", {"version": 7, "factor": 0.25}, "plateau at version 7: server's learning rate times 0.25"),
        (
            "coordinator_started",
            {"plan": {"aggregation": {"trim": 1}}, "attack_odds": {"1": 0.0, "2": 0.842}},
            "odds of more than 1 group attacked: 0.0% with 1 attacker, 84.2% with 2 attackers",
        ),
        (
            "dense_entries",
            {"optimizer": "Adam", "bytes": 38_400, "bytes_of_round": 3_840},
            "the server's Adam moves every coordinate: change entries hold the whole model, 38.4 kB instead of 3.8 kB",
        ),
    ],
)
def test_what_an_operator_may_want_to_know_is_said_in_words(event: str, fields: dict[str, Any], words: str) -> None:
    output = io.StringIO()
    with Display(Console(file=output, width=200), Run("memory", ""), rounds=3, clients=2) as display:
        display.hear(event, fields)
    assert words in output.getvalue()


def test_what_a_client_says_is_shown_as_it_is_and_steers_no_terminal() -> None:
    output = io.StringIO()
    with Display(Console(file=output, width=200), Run("memory", ""), rounds=3, clients=2) as display:
        display.hear("client_training_failed", {"client": "client-001", "reason": "[/b] [red]full[/red] \x1b[2Jdisk"})
    assert "client-001 cannot train: [/b] [red]full[/red]  [2Jdisk" in output.getvalue()


@pytest.mark.parametrize(("sent", "words"), [(2_000, "2.0 times fewer"), (16_000, "4.0 times as many")])
def test_what_is_sent_of_a_small_model_is_not_called_fewer_bytes(sent: int, words: str) -> None:
    plan = {"aggregation": {"rule": "mean", "trim": 0}, "group_size": 1, "dimension": 1_000}
    figures: dict[str, Any] = {**dict.fromkeys(ROUND_FIELDS, 1), "epsilon_max": None, "epsilon_mean": None}
    run = Run("memory", "", plan=plan)
    run.hear("round_finished", figures | {"bytes_up": sent, "validation": {}})
    output = io.StringIO()

    print_summary(Console(file=output, width=200), run)

    assert f"4.0 kB if dense: {words}" in output.getvalue()


def test_a_rejected_group_is_honest_only_without_any_attacker() -> None:
    run = Run("memory", "in-process", attackers=["a"])
    for clients in (["a", "b", "c"], ["b", "c", "d"], ["b", "c", "d"]):
        run.hear("group_rejected", {"clients": clients})

    report = run.report()
    assert report["final"]["honest_groups_rejected"] == 2
    assert report["attackers"] == [{"id": "a", "rejected": 1}]
