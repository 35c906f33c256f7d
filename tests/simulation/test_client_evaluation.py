"""Clients measure what they receive: what the report says of it, and steering without held-out data."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from torch.utils.data import TensorDataset

from deploy.demo.options import DemoOptions
from deploy.demo.report import Run, write_plot
from shared.errors import PlanError
from shared.workloads.batches import evaluate, example_count
from shared.workloads.digits import Digits
from tests.simulated import notes_of
from tests.tiny_workload import TinyWorkload
from worker.training.validation import split_records

BLIND = "tests.simulation.test_client_evaluation:Blind"


class Blind(TinyWorkload):
    """A coordinator without data."""

    def evaluation_data(self) -> TensorDataset | None:  # type: ignore[override]
        return None


def simulate(**options: Any) -> Run:
    run = Run("memory", "in-process")
    for note in notes_of(DemoOptions(**{"processes": 1, "group_size": 1, **options})):
        run.hear(note.event, note.fields)
    return run


def test_the_report_says_the_mean_and_spread_of_what_each_client_measured(tmp_path: Any) -> None:
    share, clients = 0.25, 5
    run = simulate(validation=share, clients=clients, rounds=2, partition="dirichlet:0.5")
    one, two = run.report()["rounds"]

    # Of version 0 we can work it out client by client, which the coordinator cannot.
    workload = Digits(partition="dirichlet:0.5", clients=clients)
    federation = UUID(run.plan["federation_id"])
    figures, weights = [], []
    for client in (f"client-{number:03}" for number in range(1, clients + 1)):
        records = split_records(workload.client_data(client, None), share, f"{federation}/{client}")
        assert records.validation is not None
        figures.append(evaluate(workload, workload.model(), records.validation))
        weights.append(example_count(records.training))
    said = one["validation"]
    assert (said["version"], said["share"]) == (0, 1.0)
    for name in ("accuracy", "loss"):
        values = np.array([figure[name] for figure in figures])
        mean = np.average(values, weights=weights)
        deviation = np.sqrt(np.average((values - mean) ** 2, weights=weights))
        assert said[name] == pytest.approx(mean, abs=2e-4)
        assert said[f"{name}_std"] == pytest.approx(deviation, abs=1e-3)
    assert two["validation"]["version"] == 1
    assert run.report()["final"]["validation"] == two["validation"]
    assert one["accuracy"] is not None
    write_plot(run, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_nothing_is_reported_where_clients_measure_nothing() -> None:
    assert [one["validation"] for one in simulate(clients=3, rounds=1).rounds] == [{}]


def test_a_coordinator_without_data_is_steered_by_its_clients() -> None:
    run = simulate(workload=BLIND, validation=0.25, clients=4, rounds=6, robust="mean", density=1.0)

    assert run.finished
    assert run.plan["steering"]["watch"] == "clients"
    assert [one["loss"] for one in run.rounds] == [None] * 6
    losses = [one["validation"]["loss"] for one in run.rounds]
    assert [one["validation"]["version"] for one in run.rounds] == list(range(6))
    assert losses[-1] < losses[0]


def test_clients_can_end_a_run_that_gets_no_better() -> None:
    run = simulate(validation=0.25, watch="clients", clients=4, partition="iid", rounds=40, stop_after=2)

    assert len(run.rounds) < 40
    assert "no better version for 2 versions" in run.report()["final"]["stopped_early"]
    assert run.rounds[-1]["accuracy"] is not None


def test_without_anybody_who_measures_there_is_no_federation() -> None:
    with pytest.raises(PlanError, match="so nobody measures the model"):
        simulate(workload=BLIND, clients=4, rounds=1)
    with pytest.raises(PlanError, match="watch='held_out', but the workload has no evaluation_data"):
        simulate(workload=BLIND, clients=4, rounds=1, validation=0.25, watch="held_out")
