"""What leaves the protocol: evaluations on held-out data, in a thread of their own, and models as files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from coordinator.aggregator.convergence import Evaluation
from coordinator.events import Evaluate, EvaluationFinished, KeepModel
from shared.codec.flatten import write_weights
from shared.errors import ComitiaError, SettingsError, WorkloadError
from shared.workloads.batches import evaluate, example_count
from shared.workloads.port import Workload


class Evaluator:
    """Measures weights on a workload's held-out data. Not thread-safe."""

    def __init__(self, workload: Workload, float_buffers: bool = False) -> None:
        """
        Args:
            workload: model and held-out data.
            float_buffers: the model's float buffers are part of the weights.

        Raises:
            WorkloadError: the held-out data are empty.
        """
        self._workload = workload
        self._float_buffers = float_buffers
        self._data = workload.evaluation_data()
        self._model = workload.model()
        if self._data is not None and example_count(self._data) == 0:
            raise WorkloadError("workload: evaluation_data is empty; the coordinator has nothing to evaluate on")

    def evaluate(self, version: int, weights: np.ndarray) -> Evaluation | None:
        """Loss and metrics, means over all held-out records; None if only clients have data."""
        if self._data is None:
            return None
        write_weights(self._model, weights, float_buffers=self._float_buffers)
        metrics = evaluate(self._workload, self._model, self._data)
        return Evaluation(version=version, loss=metrics.pop("loss"), metrics=metrics)


def save_model(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write all parameters and buffers of a model as a safetensors file, which appears, or is replaced, in one step.

    Tied parameters stand in the file under each of their names: the format allows no shared memory.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor.detach().clone() if shared else tensor.detach().contiguous()
    aside = path.with_suffix(".new")
    save_file(tensors, aside, metadata=dict(metadata))
    aside.replace(path)


class ModelFiles:
    """Writes models as safetensors files; each replaces its predecessor in one step."""

    def __init__(self, directory: Path, workload: Workload, float_buffers: bool = False) -> None:
        self._directory = directory
        self._float_buffers = float_buffers
        self._model = workload.model()

    def write(self, order: KeepModel) -> Path:
        """Write `<name>.safetensors`: all parameters and buffers of the model at these weights.

        Raises:
            SettingsError: nothing can be written there.
        """
        write_weights(self._model, order.weights, float_buffers=self._float_buffers)
        path = self._directory / f"{order.name}.safetensors"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            save_model(self._model, path, {"model_version": str(order.version)})
        except (OSError, SafetensorError) as error:
            raise SettingsError(
                f"output_dir: {path} cannot be written: {error}; make room there, or set another directory. The model "
                "is safe in the log (comitia export)"
            ) from error
        return path


class EvaluationThread:
    """Evaluates and writes models away from the protocol's thread.

    At most one version waits: when evaluation is slower than the rounds, the versions in between are passed over.
    """

    def __init__(self, evaluator: Evaluator, files: ModelFiles, deliver: Callable[[EvaluationFinished], None]) -> None:
        self._evaluator = evaluator
        self._files = files
        self._deliver = deliver
        self._changed = threading.Condition()
        self._next: Evaluate | None = None
        self._models: dict[str, KeepModel] = {}
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="evaluation", daemon=True)
        self._thread.start()

    def evaluate(self, order: Evaluate) -> None:
        """Measure this version soon; one that still waits is passed over."""
        with self._changed:
            passed_over, self._next = self._next, order
            self._changed.notify()
        if passed_over is not None:
            self._deliver(EvaluationFinished(passed_over.version, passed_over.weights, None))

    def keep(self, order: KeepModel) -> None:
        """Write this model soon; one of the same name that still waits is not needed any more."""
        with self._changed:
            self._models[order.name] = order
            self._changed.notify()

    def close(self) -> None:
        """Finish what was asked for, then end.

        Raises:
            WorkloadError: evaluating failed.
            SettingsError: a model could not be written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """
        Raises:
            WorkloadError: evaluating failed.
            SettingsError: a model could not be written.
        """
        if isinstance(self._failure, ComitiaError):
            raise self._failure
        if self._failure is not None:
            raise WorkloadError(f"workload: evaluation failed: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            while self._work():
                pass
        except BaseException as error:  # noqa: BLE001 - kept for the protocol's thread, which raises it
            self._failure = error

    def _work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._next or self._models or self._closing)
            order, self._next = self._next, None
            models, self._models = self._models, {}
            closing = self._closing
        for model in models.values():
            self._files.write(model)
        if order is not None:
            evaluation = self._evaluator.evaluate(order.version, order.weights)
            self._deliver(EvaluationFinished(order.version, order.weights, evaluation))
        return order is not None or bool(models) or not closing


class InlineOutput:
    """Evaluation and files in the caller's thread, for simulations."""

    def __init__(
        self, evaluator: Evaluator, files: ModelFiles | None, deliver: Callable[[EvaluationFinished], None]
    ) -> None:
        self._evaluator = evaluator
        self._files = files
        self._deliver = deliver

    def evaluate(self, order: Evaluate) -> None:
        """Measure this version now."""
        evaluation = self._evaluator.evaluate(order.version, order.weights)
        self._deliver(EvaluationFinished(order.version, order.weights, evaluation))

    def keep(self, order: KeepModel) -> None:
        """Write this model now, if there is a place for it."""
        if self._files is not None:
            self._files.write(order)
