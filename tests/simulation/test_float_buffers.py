"""Running statistics that federate: what is evaluated and written to files is a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from coordinator.events import KeepModel
from coordinator.output import ModelFiles
from deploy.demo.options import DemoOptions
from shared.codec.flatten import layout_of
from shared.errors import PlanError
from shared.workloads.batches import evaluate
from shared.workloads.digits import Digits
from tests.simulated import notes_of
from tests.simulation.federation import FederationRun

CLIENTS = 4


class Normalized(Digits):
    """Digits whose grey values are shifted, so that statistics which nobody federated are wrong ones."""

    def __init__(self) -> None:
        super().__init__(partition="iid", clients=CLIENTS)

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)),
                nn.Conv2d(1, 8, 3, stride=2, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * 16, 10),
            )

    def client_data(self, client: str, path: Path | None) -> TensorDataset:
        number = int(client.rpartition("-")[2])  # from 0
        return _shifted(super().client_data(f"client-{number % CLIENTS + 1}", path))

    def evaluation_data(self) -> TensorDataset:
        return _shifted(super().evaluation_data())


def _shifted(data: TensorDataset) -> TensorDataset:
    return TensorDataset(4.0 * data.tensors[0] + 3.0, data.tensors[1])


class Federated(FederationRun):
    """A run of `Normalized`."""

    def __init__(self, **plan: Any) -> None:
        workload: Any = Normalized()
        layout = layout_of(workload.model(), plan.get("float_buffers", False))
        object.__setattr__(workload, "dimension", layout.dimension)
        object.__setattr__(workload, "layout_digest", layout.digest().hex())
        training = {"optimizer": {"name": "SGD", "options": {"lr": 0.1}}, "batch_size": 16, "local_epochs": 1}
        plan = {"training": training, "weight_records_max": 500, **plan}
        super().__init__(clients=CLIENTS, workload=workload, plan=plan)


def test_a_model_with_federated_statistics_is_whole_in_its_file(tmp_path: Path) -> None:
    run = Federated(float_buffers=True)
    run.run()
    assert run.figures()[-1]["accuracy"] >= 0.85

    weights = run.read_log()[1][-1]
    workload = run.workload
    path = ModelFiles(tmp_path, workload, float_buffers=True).write(KeepModel("final", run.version, weights))
    stored = load_file(path)
    assert {"2.running_mean", "2.running_var", "2.num_batches_tracked"} <= set(stored)
    assert weights[-16:].tolist() == [*stored["2.running_mean"].tolist(), *stored["2.running_var"].tolist()]
    assert stored["2.num_batches_tracked"] == 0
    assert stored["2.running_mean"].abs().max() > 0.5

    model = workload.model()
    model.load_state_dict(stored)
    figures = evaluate(workload, model, workload.evaluation_data())
    assert figures["accuracy"] == pytest.approx(run.figures()[-1]["accuracy"])


def test_without_the_option_statistics_stay_the_models_own() -> None:
    run = Federated()
    run.run()

    assert run.plan.dimension == layout_of(run.workload.model(), float_buffers=True).dimension - 16
    assert run.figures()[-1]["accuracy"] < 0.85


def test_the_option_reaches_the_plan_and_the_run() -> None:
    reference = f"{__name__}:Normalized"
    with pytest.raises(PlanError, match="float_buffers: sparse updates"):
        list(notes_of(DemoOptions(workload=reference, clients=CLIENTS, group_size=1, float_buffers=True)))

    options = DemoOptions(workload=reference, clients=CLIENTS, group_size=1, rounds=1, density=1.0, float_buffers=True)
    notes = {note.event: note.fields for note in notes_of(options)}
    assert notes["coordinator_started"]["plan"]["float_buffers"] is True  # type: ignore[index]
    assert notes["round_finished"]["version"] == 1
