"""Evaluations and model files, and the thread that keeps both away from the protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import TensorDataset

from coordinator.events import Evaluate, EvaluationFinished, KeepModel
from coordinator.output import EvaluationThread, Evaluator, InlineOutput, ModelFiles
from shared.errors import SettingsError, WorkloadError
from tests.tiny_workload import TINY_DIMENSION, TinyWorkload


def order(version: int, value: float = 0.0) -> Evaluate:
    return Evaluate(version, np.full(TINY_DIMENSION, value, np.float32))


def test_an_evaluation_is_the_mean_over_all_held_out_records() -> None:
    workload = TinyWorkload()
    evaluation = Evaluator(workload).evaluate(3, workload.solution)

    assert evaluation.version == 3
    assert evaluation.loss == pytest.approx(0.0, abs=1e-10)
    worse = Evaluator(workload).evaluate(4, workload.solution + np.float32(1))
    features, targets = workload.evaluation_data().tensors
    model = workload.model()
    nn.utils.vector_to_parameters(torch.from_numpy(workload.solution + np.float32(1)), model.parameters())
    expected = nn.functional.mse_loss(model(features).detach(), targets).item()
    assert worse.loss == pytest.approx(expected, rel=1e-5)


def test_without_held_out_data_there_is_no_evaluator() -> None:
    workload = TinyWorkload()
    workload.evaluation_data = lambda: TensorDataset(torch.empty(0, 3), torch.empty(0, 1))  # type: ignore[method-assign]

    with pytest.raises(WorkloadError, match="evaluation_data is empty"):
        Evaluator(workload)


def test_a_coordinator_without_data_measures_nothing_and_still_writes_models(tmp_path: Path) -> None:
    workload = TinyWorkload()
    workload.evaluation_data = lambda: None  # type: ignore[method-assign,assignment,return-value]
    finished: list[EvaluationFinished] = []
    thread = EvaluationThread(Evaluator(workload), ModelFiles(tmp_path, workload), finished.append)
    thread.evaluate(order(1))
    thread.keep(KeepModel("best", 1, np.zeros(TINY_DIMENSION, np.float32)))
    thread.close()

    assert [(one.version, one.evaluation) for one in finished] == [(1, None)]
    assert (tmp_path / "best.safetensors").exists()


def test_a_model_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "out", TinyWorkload())
    for version in (1, 2):
        path = files.write(KeepModel("best", version, np.full(TINY_DIMENSION, version, np.float32)))

    assert [file.name for file in (tmp_path / "out").iterdir()] == ["best.safetensors"]
    with safe_open(path, framework="pt") as stored:
        assert stored.metadata() == {"model_version": "2"}
        assert {name: stored.get_tensor(name).unique().tolist() for name in stored.keys()} == {  # noqa: SIM118
            "weight": [2.0],
            "bias": [2.0],
        }


def test_inline_output_answers_at_once(tmp_path: Path) -> None:
    finished: list[EvaluationFinished] = []
    output = InlineOutput(Evaluator(TinyWorkload()), None, finished.append)

    output.evaluate(order(1))
    output.keep(KeepModel("best", 1, np.zeros(TINY_DIMENSION, np.float32)))
    assert [one.version for one in finished] == [1]
    assert finished[0].evaluation is not None


class Held:
    """An evaluator that waits until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.evaluator = Evaluator(TinyWorkload())

    def evaluate(self, version: int, weights: np.ndarray) -> object:
        self.begun.release()
        assert self.go.acquire(timeout=10)
        return self.evaluator.evaluate(version, weights)


def thread_with(held: Held, tmp_path: Path, deliver: Callable[[EvaluationFinished], None]) -> EvaluationThread:
    return EvaluationThread(held, ModelFiles(tmp_path, TinyWorkload()), deliver)  # type: ignore[arg-type]


def test_versions_that_wait_behind_a_slow_evaluation_are_passed_over(tmp_path: Path) -> None:
    held, finished = Held(), []
    thread = thread_with(held, tmp_path, finished.append)
    thread.evaluate(order(1))
    assert held.begun.acquire(timeout=10)
    for version in (2, 3, 4):
        thread.evaluate(order(version))
    for _ in range(2):
        held.go.release()
    thread.close()

    assert sorted((one.version, one.evaluation is not None) for one in finished) == [
        (1, True), (2, False), (3, False), (4, True),
    ]  # fmt: skip


def test_closing_writes_and_evaluates_what_was_asked_for(tmp_path: Path) -> None:
    held, finished = Held(), []
    thread = thread_with(held, tmp_path, finished.append)
    held.go.release()
    thread.evaluate(order(1))
    thread.keep(KeepModel("final", 1, np.zeros(TINY_DIMENSION, np.float32)))
    thread.close()

    assert [one.version for one in finished] == [1]
    assert (tmp_path / "final.safetensors").is_file()


def test_a_failure_is_raised_in_the_protocols_thread(tmp_path: Path) -> None:
    held = Held()
    held.evaluate = lambda version, weights: 1 / 0  # type: ignore[assignment, method-assign]
    thread = thread_with(held, tmp_path, lambda finished: None)
    thread.evaluate(order(1))

    with pytest.raises(WorkloadError, match="evaluation failed: division by zero"):
        thread.close()
    with pytest.raises(WorkloadError):
        thread.check()


def test_a_place_that_cannot_be_written_to_is_named_by_its_setting(tmp_path: Path) -> None:
    occupied = tmp_path / "out"
    occupied.write_text("a file")
    thread = EvaluationThread(Evaluator(TinyWorkload()), ModelFiles(occupied, TinyWorkload()), lambda finished: None)
    thread.keep(KeepModel("final", 1, np.zeros(TINY_DIMENSION, np.float32)))

    with pytest.raises(SettingsError, match=r"output_dir: .*final\.safetensors cannot be written.*comitia export"):
        thread.close()
