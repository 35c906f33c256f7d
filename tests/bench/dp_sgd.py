"""How long does a step of DP-SGD take beside a plain one, and beside Opacus with gradients of every record?

A batch of 256 records of digits. The limit is what no private step can be quicker than: the gradient of the same batch
without privacy. Noise is left out on both sides of the peer's row: its generators are not comparable.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from shared.privacy.entropy import SecureSource
from shared.workloads.digits import Digits, DigitsCnn
from tests.bench.measure import HotPath, Run, peer
from worker.training.sample_gradients import ClippedSum

BATCH = 256
NORM = 1.0
TURNS = 31
REPEATS = 5
OPACUS, PLAIN = "opacus, hooks", "plain gradient"


def hot_paths() -> Iterator[HotPath]:
    """The two networks of digits, all coordinates and a quarter of them, and the noise."""
    for name, model, wanted in (("MLP", Digits().model(), 4.0), ("CNN", DigitsCnn().model(), 3.0)):
        yield step_path(name, model, 1.0, wanted)
        yield step_path(name, model, 0.25, None)
    yield noise_path()


def step_path(name: str, model: nn.Module, share: float, wanted: float | None) -> HotPath:
    """Clipped sums of one network; `wanted` is how many times the plain gradient they may take."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(BATCH, 64, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator)
    count = sum(one.numel() for one in model.parameters())
    moved = None if share == 1.0 else torch.rand(count, generator=generator) < share
    clipped = ClippedSum(model, nn.functional.cross_entropy, NORM, moved)

    def plain() -> None:
        torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))

    return HotPath(
        name=f"{REPEATS} DP-SGD steps, {name}, {'dense' if moved is None else 'restricted'}, batch {BATCH}",
        ours=repeated(lambda: clipped.of(x, y)),
        peers={OPACUS: opacus_step(model, x, y)},
        limit_name=PLAIN,
        limit=repeated(plain),
        limit_wanted=wanted,
        turns=TURNS,
    )


def opacus_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Run | None:
    """Gradients of all records in memory, their norms, the clipped sum."""
    opacus = peer("opacus.grad_sample")
    if opacus is None:
        return None
    wrapped = opacus.GradSampleModule(copy.deepcopy(model))
    parameters = list(wrapped.parameters())

    def step() -> None:
        wrapped.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook")
            torch.autograd.backward(nn.functional.cross_entropy(wrapped(x), y))
        norms = torch.stack([one.grad_sample.flatten(1).norm(dim=1) for one in parameters]).norm(dim=0)
        factors = (NORM / norms).clamp(max=1.0)
        for one in parameters:
            one.grad = torch.einsum("n,n...->...", factors, one.grad_sample)

    return repeated(step)


def noise_path() -> HotPath:
    """A million normal numbers: the secure ones beside numpy's."""
    source, plain = SecureSource.fresh(), np.random.default_rng(0)
    out = np.empty(1_000_000)
    return HotPath(
        name="1e6 normals from a cipher",
        ours=lambda: source.normals(out),
        limit_name="numpy's normals",
        limit=lambda: plain.standard_normal(out=out),
    )


def repeated(step: Run) -> Run:
    """Several times: one step is too short for the clock."""

    def run() -> None:
        for _ in range(REPEATS):
            step()

    return run
