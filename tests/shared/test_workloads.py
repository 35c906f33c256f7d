"""Workloads come from anywhere by name, and what is wrong with one ends in one clear line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from shared.errors import WorkloadError
from shared.workloads.batches import batches, evaluate, example_count
from shared.workloads.bundled import BundledWorkload
from shared.workloads.digits import Digits
from shared.workloads.loading import BUILT_IN, load_workload
from shared.workloads.port import TrainingRecipe, Workload

SOUND = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from shared.workloads.port import TrainingRecipe
import neighbour

class Halves:
    name = "halves"
    recipe = TrainingRecipe(options={"lr": 0.5}, batch_size=4)
    loss = staticmethod(nn.functional.mse_loss)
    def __init__(self, width: int = 2) -> None:
        self.width = width
    def model(self):
        return nn.Linear(self.width, 1)
    def client_data(self, client, path):
        return TensorDataset(torch.ones(6, self.width), torch.ones(6, 1))
    def evaluation_data(self):
        return self.client_data("", None)
    def metrics(self, outputs, targets):
        return {"ratio": neighbour.RATIO}

ready = Halves()
def made(width):
    return Halves(width)
class Holder:
    inner = ready
class Broken(Halves):
    recipe = {"lr": 1}
class Nameless(Halves):
    name = None
def failing():
    raise KeyError("no data here")
nothing = object()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own folder outside the repository, as the current directory."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "halves.py").write_text(SOUND, encoding="utf-8")
    (tmp_path / "mine" / "torn.py").write_text("def (", encoding="utf-8")
    (tmp_path / "mine" / "greedy.py").write_text("import surely_not_installed", encoding="utf-8")
    (tmp_path / "neighbour.py").write_text("RATIO = 0.5", encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mine", "neighbour"):
            del sys.modules[name]


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - {"still"}))
def test_a_built_in_workload_takes_its_options(name: str) -> None:
    workload = load_workload(name, {"partition": "labels:2", "clients": 6})

    assert isinstance(workload, BundledWorkload)
    assert isinstance(workload, Workload)
    assert workload.name == name
    shares = [example_count(workload.client_data(f"client-{number}", None)) for number in range(1, 7)]
    assert sum(shares) == len(workload.table().training)
    assert evaluate(workload, workload.model(), workload.evaluation_data()).keys() == {"accuracy", "loss"}


def test_the_workload_that_learns_nothing_has_one_record_for_any_client_and_no_accuracy() -> None:
    workload = load_workload("still")

    assert isinstance(workload, Workload)
    assert sum(parameter.numel() for parameter in workload.model().parameters()) == 10_000
    assert example_count(workload.client_data("anybody", None)) == 1
    held_out = workload.evaluation_data()
    assert held_out is not None
    assert evaluate(workload, workload.model(), held_out) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("reference", "options"),
    [
        ("mine.halves:Halves", {}),
        ("mine.halves:Halves", {"width": 3}),
        ("mine.halves:made", {"width": 3}),
        ("mine.halves:ready", {}),
        ("mine.halves:Holder.inner", {}),
    ],
)
def test_a_workload_from_outside_is_a_class_a_function_or_an_object(
    project: Path, reference: str, options: dict[str, object]
) -> None:
    workload = load_workload(reference, options)

    assert isinstance(workload, Workload)
    assert evaluate(workload, workload.model(), workload.evaluation_data())["ratio"] == 0.5


@pytest.mark.parametrize(
    ("reference", "options", "told"),
    [
        ("digit", {}, r"'digit' is neither built in \(digits, digits_linear, digits_cnn, breast_cancer, still\)"),
        ("mine.halves", {}, "package.module:object"),
        (":x", {}, "package.module:object"),
        ("absent.module:x", {}, "'absent'.*start from the directory"),
        ("mine.greedy:x", {}, "'surely_not_installed'.*install it"),
        ("mine.torn:x", {}, "importing mine.torn failed: SyntaxError"),
        ("mine.halves:Absent", {}, "has no 'Absent'"),
        ("mine.halves:nothing", {}, "lacks name, recipe, model"),
        ("mine.halves:Broken", {}, "TrainingRecipe, not dict"),
        ("mine.halves:Nameless", {}, "name .* must be a text"),
        ("mine.halves:ready", {"width": 3}, "takes no options"),
        ("mine.halves:Halves", {"depth": 3}, "accepts width.*depth"),
        ("mine.halves:made", {}, "accepts width.*missing"),
        ("mine.halves:failing", {}, "failed: KeyError.*no data here"),
        ("digits", {"split": 1}, "accepts partition, clients, seed"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    project: Path, reference: str, options: dict[str, object], told: str
) -> None:
    with pytest.raises(WorkloadError, match=told) as refusal:
        load_workload(reference, options)

    assert str(refusal.value).startswith("workload")
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("fields", [{"batch_size": 0}, {"local_epochs": 0}, {"clipping_norm": 0.0}])
def test_a_recipe_that_means_nothing_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(WorkloadError, match=next(iter(fields))):
        TrainingRecipe(**fields)  # type: ignore[arg-type]


class Squares(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A dataset that knows single items only."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([float(index)]), torch.tensor(index * index)


def test_batches_of_tensors_and_of_single_items_are_the_same() -> None:
    tensors = TensorDataset(torch.arange(5.0).unsqueeze(1), torch.arange(5) ** 2)

    for one, other in zip(batches(tensors, 2), batches(Squares(), 2), strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
    assert [len(targets) for _, targets in batches(Squares(), 2)] == [2, 2, 1]


def test_shuffled_batches_hold_every_example_once_and_follow_the_generator() -> None:
    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [int(value) for _, targets in batches(Squares(), 2, generator) for value in targets]

    assert sorted(order(0)) == [0, 1, 4, 9, 16]
    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(10)}) > 1


def test_evaluation_weights_batches_by_their_size_and_leaves_the_model_as_it_was() -> None:
    workload = Digits(partition="iid", clients=2)
    model = nn.Sequential(workload.model(), nn.Dropout(0.5))
    data = workload.client_data("client-1", None)  # 719 images: a full batch and a smaller one
    model.train()

    result = evaluate(workload, model, data)

    model.eval()
    with torch.no_grad():
        outputs = model(data.tensors[0])
    assert result["loss"] == pytest.approx(float(workload.loss(outputs, data.tensors[1])), rel=1e-6)
    assert result["accuracy"] == pytest.approx(workload.metrics(outputs, data.tensors[1])["accuracy"], rel=1e-6)


def test_data_that_cannot_be_counted_or_evaluated_are_refused() -> None:
    workload = Digits()
    model = workload.model().train()

    with pytest.raises(WorkloadError, match="no length"):
        example_count(Dataset())
    with pytest.raises(WorkloadError, match="nothing to evaluate"):
        evaluate(workload, model, TensorDataset(torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64)))
    assert model.training
