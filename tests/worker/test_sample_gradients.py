"""Sums of clipped gradients: beside the obvious loop over records, and with records that would break them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shared.errors import WorkloadError
from worker.training.sample_gradients import ClippedSum, plain_layers

RECORDS = 7
NORM = 0.8


class Tied(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(torch.tanh(self.layer(x)))
        return out


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), (6,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 5)), (6,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5)
        ),
        (2, 4, 4),
    ),
    "strided cnn": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, bias=False), nn.Flatten(), nn.Linear(12, 5)),
        (2, 6, 6),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 5)), (6,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5)), (3, 6)),
    "tied": (Tied, (5,)),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        build, shape = MODELS[name]
        return build(), 2 * torch.randn(RECORDS, *shape), torch.randint(0, 5, (RECORDS,))


def one_by_one(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, moved: torch.Tensor | None
) -> tuple[torch.Tensor, list[float]]:
    """The obvious way."""
    total, norms = torch.zeros(sum(one.numel() for one in model.parameters())), []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradient = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, list(model.parameters()))])
        if moved is not None:
            gradient = gradient * moved
        norms.append(float(gradient.norm()))
        total += gradient * min(1.0, NORM / norms[-1])
    return total, norms


@pytest.mark.parametrize("share", [None, 0.3], ids=["all", "some"])
@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_that_of_the_records_one_by_one(name: str, share: float | None) -> None:
    model, x, y = made(name)
    count = sum(one.numel() for one in model.parameters())
    moved = None if share is None else torch.rand(count, generator=torch.Generator().manual_seed(1)) < share
    wanted, norms = one_by_one(model, x, y, moved)
    got = ClippedSum(model, nn.functional.cross_entropy, NORM, moved).of(x, y)

    assert max(norms) > NORM
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    if moved is not None:
        assert not got[~moved].any()


def test_the_usual_layers_take_the_fast_way_and_others_do_not() -> None:
    fast = {name: bool(plain_layers(made(name)[0])) for name in MODELS}
    assert fast == {
        "mlp": True,
        "no bias": True,
        "cnn": True,
        "strided cnn": True,
        "layer norm": False,
        "sequence": True,
        "tied": True,
    }


@pytest.mark.parametrize("name", ["mlp", "cnn", "layer norm"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_record_whose_gradient_is_not_finite_adds_nothing_or_its_bound(name: str, bad: float) -> None:
    model, x, y = made(name)
    clipped = ClippedSum(model, nn.functional.cross_entropy, NORM, None)
    without = clipped.of(x[1:], y[1:])
    x[0] = bad
    with_it = clipped.of(x, y)

    assert bool(with_it.isfinite().all())
    assert float((with_it - without).norm()) <= NORM


@pytest.mark.parametrize("name", ["mlp", "layer norm"])
def test_nobody_is_nothing(name: str) -> None:
    model, x, y = made(name)
    assert not ClippedSum(model, nn.functional.cross_entropy, NORM, None).of(x[:0], y[:0]).any()


def test_a_large_batch_is_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = made("mlp")
    whole = ClippedSum(model, nn.functional.cross_entropy, NORM, None).of(x, y)
    monkeypatch.setattr("worker.training.sample_gradients.CHUNK_VALUES", 2 * whole.numel())
    torch.testing.assert_close(ClippedSum(model, nn.functional.cross_entropy, NORM, None).of(x, y), whole)


def test_a_loss_that_looks_into_its_values_is_refused_with_the_remedy() -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.sum() if float(outputs.sum()) > 0 else -outputs.sum()

    model, x, y = made("mlp")
    with pytest.raises(WorkloadError, match="cannot be differentiated record by record"):
        ClippedSum(model, loss, NORM, None).of(x, y)


def test_a_loss_over_a_whole_batch_is_only_asked_about_single_records() -> None:
    """A mean weighted by class depends on the whole batch; of one record it is that record's loss."""
    weights = torch.tensor([1.0, 5.0, 1.0, 1.0, 9.0])

    def weighted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, weight=weights)

    model, x, y = made("mlp")
    got = ClippedSum(model, weighted, NORM, None).of(x, y)
    torch.testing.assert_close(got, one_by_one(model, x, y, None)[0], rtol=1e-3, atol=1e-4)
