"""The device that the settings name is there when training begins, or the worker does not start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shared.errors import SettingsError
from tests.simulation.federation import run_plan
from tests.tiny_workload import TinyWorkload
from worker.app import make_trainer, run_worker
from worker.settings import WorkerSettings
from worker.training.device import seeded_draws, training_device


def test_the_processor_is_always_there() -> None:
    assert training_device("cpu") == torch.device("cpu") == training_device(WorkerSettings().device)


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:1", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^device: .* none of cpu, cuda, cuda:N, mps; set COMITIA_DEVICE=cpu"):
        training_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps"])
def test_a_device_that_is_not_there_is_one_line_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    with pytest.raises(SettingsError, match=rf"^device: .*'{name}'.* set COMITIA_DEVICE=cpu") as refusal:
        training_device(name)
    assert "\n" not in str(refusal.value)


def test_a_numbered_device_is_one_of_those_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert training_device("cuda") == torch.device("cuda:0")
    assert training_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SettingsError, match="finds 2 CUDA devices"):
        training_device("cuda:2")


def test_a_worker_refuses_it_before_anything_else(tmp_path: Path) -> None:
    settings = WorkerSettings(device="meta", federation_dir=tmp_path / "missing")

    with pytest.raises(SettingsError, match=r"^device: 'meta'"):
        run_worker(settings)
    with pytest.raises(SettingsError, match=r"^device: 'meta'"):
        make_trainer(settings, run_plan(TinyWorkload(), 2), TinyWorkload())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_the_processor_draws_follows_the_seed_and_goes_on_as_before(device: str) -> None:
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with seeded_draws(torch.device(device), 5):
            drawn.append(torch.rand(3))

    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
