"""Does `comitia demo` train a federation of real processes over RabbitMQ, and say what it did?"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.federation import COMMAND, ROOT, WAIT_S

REPORT_FIELDS = {
    "broker": {"kind", "version"},
    "final": {
        "accuracy",
        "loss",
        "model_version",
        "weights_sha256",
        "seconds",
        "bytes_up_per_update",
        "bytes_dense_per_update",
        "recovered",
    },
}
ROUND_FIELDS = {
    "version",
    "seconds",
    "accuracy",
    "loss",
    "clients_counted",
    "clients_lost",
    "groups",
    "groups_rejected",
    "groups_given_up",
    "recovered",
    "bytes_up",
    "bytes_down",
}

TROUBLED = '''
"""A workload from outside the repository, some of whose clients cannot train."""

import torch
from torch.utils.data import TensorDataset

from shared.workloads.port import TrainingRecipe


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(2))

    def forward(self, features):
        if (features == 13).any():
            raise OSError("the disk is on fire")
        if (features == 14).any():
            return torch.sqrt(self.slope * 0).expand(len(features), 2)  # 0, with an infinite gradient
        return features * self.slope


class Troubled:
    name = "troubled"
    recipe = TrainingRecipe(options={"lr": 0.5}, batch_size=8)

    def model(self):
        return Model()

    def client_data(self, client, path):
        value = {"client-001": 13.0, "client-002": 14.0, "client-003": float("nan")}.get(client, 1.0)
        records = 0 if client == "client-004" else 8
        return TensorDataset(torch.full((records, 2), value), torch.ones(records, 2))

    def evaluation_data(self):
        return self.client_data("client-999", None)

    def loss(self, outputs, targets):
        return torch.nn.functional.mse_loss(outputs, targets)

    def metrics(self, outputs, targets):
        return {"accuracy": float(1 - (outputs - targets).abs().mean().clamp(0, 1))}
'''


def run_demo(url: str, directory: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Run the demo to its good end; returns its report and what it printed."""
    report = directory / "report.json"
    done = subprocess.run(
        [*COMMAND, "demo", "--broker", url, "--report", str(report), *options],
        cwd=directory,
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text()), done.stdout


def assert_stable_fields(report: dict[str, Any]) -> None:
    """The names that others rely on are all there."""
    assert set(report) >= {"broker", "rounds", "clients", "final", "plan"}
    for part, fields in REPORT_FIELDS.items():
        assert fields <= set(report[part]), part
    assert all(set(one) >= ROUND_FIELDS for one in report["rounds"])
    assert all(set(lost) >= {"id", "lost_version", "lost_phase"} for lost in report["clients"])
    assert report["plan"]["workload"] == "digits"
    assert report["final"]["bytes_dense_per_update"] == 4 * report["plan"]["dimension"]


def test_a_plan_that_cannot_hold_is_refused_before_a_broker_is_sought(tmp_path: Path) -> None:
    command = [*COMMAND, "demo", "--broker", "amqp://127.0.0.1:1", "--clients", "4", "--trim", "9"]
    ended = subprocess.run(
        command,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )

    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "aggregation.trim=9, quorum=None need 76 clients" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_the_demo_learns_digits_and_reports_every_version(rabbitmq_url: str, tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"

    report, printed = run_demo(rabbitmq_url, tmp_path, "--rounds", "12", "--plot", str(plot))

    assert [one["version"] for one in report["rounds"]] == list(range(1, 13))
    assert report["final"]["model_version"] == 12
    assert report["final"]["accuracy"] == report["rounds"][-1]["accuracy"] >= 0.85
    assert all(one["clients_counted"] == 20 and one["clients_lost"] == 0 for one in report["rounds"])
    assert report["clients"] == []
    assert len(bytes.fromhex(report["final"]["weights_sha256"])) == 32
    assert report["broker"]["kind"] == "url"
    assert report["broker"]["version"].startswith("RabbitMQ ")
    assert report["broker"]["version"] in printed
    assert_stable_fields(report)
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert plot.read_bytes()[-8:-4] == b"IEND"


def test_attackers_are_processes_of_their_own_and_are_named(rabbitmq_url: str, tmp_path: Path) -> None:
    options = (
        "--group-size",
        "1",
        "--clients",
        "6",
        "--processes",
        "1",
        "--rounds",
        "3",
        "--attackers",
        "1",
        "--attack",
        "sign-flip",
    )

    report, printed = run_demo(rabbitmq_url, tmp_path, *options)

    assert report["attackers"] == [{"id": "client-001", "rejected": 3}]
    assert report["final"]["honest_groups_rejected"] == 0
    assert [one["groups_rejected"] for one in report["rounds"]] == [1, 1, 1]
    assert "client-001: rejected by the gates 3 times" in printed


@pytest.mark.slow
def test_clients_that_die_are_named_with_the_phase_they_died_in(rabbitmq_url: str, tmp_path: Path) -> None:
    report, printed = run_demo(
        rabbitmq_url, tmp_path, "--rounds", "15", "--drop", "3", "--processes", "2", "--group-size", "1"
    )

    assert_stable_fields(report)
    assert [one["version"] for one in report["rounds"]] == list(range(1, 16))
    assert {lost["id"]: (lost["lost_version"], lost["lost_phase"]) for lost in report["clients"]} == {
        "client-018": (5, "training"),
        "client-019": (5, "offer"),
        "client-020": (5, "words"),
    }
    assert "client-020 at version 5, last seen: words" in printed
    assert sum(one["clients_lost"] for one in report["rounds"]) == 3
    assert [one["clients_counted"] for one in report["rounds"][-5:]] == [17] * 5
    assert report["final"]["accuracy"] >= 0.86


def test_a_client_that_cannot_train_says_why_and_the_others_go_on(rabbitmq_url: str, tmp_path: Path) -> None:
    # Given a workload that stands in the directory from where the demo is started
    (tmp_path / "troubled.py").write_text(TROUBLED)
    options = (
        "--workload troubled:Troubled --clients 6 --processes 2 --rounds 3 --robust mean --density 1 --group-size 1"
    )

    report, printed = run_demo(rabbitmq_url, tmp_path, *options.split())

    assert not tmp_path.is_relative_to(ROOT)
    assert [one["clients_counted"] for one in report["rounds"]] == [2, 2, 2]
    assert [one["groups_given_up"] for one in report["rounds"]] == [0, 0, 0]
    assert report["final"]["accuracy"] > 0.8
    told = dict(re.findall(r"^(client-\d+) cannot train: (.*)$", printed, re.MULTILINE))
    assert set(told) == {"client-001", "client-002", "client-003", "client-004"}
    assert told["client-001"] == "OSError; the worker's log says more"
    assert "the update is not finite" in told["client-002"]
    assert "the training loss became nan" in told["client-003"]
    assert "this client has no examples to train on" in told["client-004"]
