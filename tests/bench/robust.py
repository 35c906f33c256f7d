"""How fast is an aggregate of n vectors of a million coordinates, beside Flower's, byzfl's and one read of the input?

One thread everywhere, where a library lets itself be told.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from rich.console import Console

from coordinator.aggregator.mixing import nnm_trimmed_mean
from coordinator.aggregator.robust import MeanAccumulator, coordinate_median, trimmed_mean
from shared.codec.flatten import FloatVector
from shared.codec.quantize import SumFormat, Words, quantize, write_slots
from tests.bench.measure import Run, measure, peer, table

DIMENSION = 1_000_000
TRIM = 3
PEER_BYTES_MAX = 2**31
OURS, LIMIT = "comitia", "one read of the input"
FLOWER, BYZFL = "flower", "byzfl"


def bench_robust(console: Console) -> None:
    """Print one table per rule and number of groups."""
    torch.set_num_threads(1)
    for groups in (16, 64):
        vectors = made_up(groups)
        for name, paths in (
            ("trimmed mean", trimmed_paths(vectors)),
            ("median", median_paths(vectors)),
            ("mixing and trimmed mean", mixing_paths(vectors)),
            ("weighted mean, from 16-bit words", mean_paths(vectors)),
        ):
            title = f"{name}: {groups} groups, {DIMENSION:,} coordinates, trim {TRIM}"
            console.print(table(title, measure(paths), ours=OURS, limit=LIMIT))


def made_up(groups: int) -> list[FloatVector]:
    """Group means as they might be: Gaussian, a few orders of magnitude apart."""
    source = np.random.default_rng(groups)
    return [source.standard_normal(DIMENSION, dtype=np.float32) * np.float32(1e-3) for _ in range(groups)]


def read_all(vectors: list[FloatVector]) -> float:
    """Touch every value once."""
    return max(float(vector.max()) for vector in vectors)


def trimmed_paths(vectors: list[FloatVector]) -> dict[str, Run | None]:
    """Coordinate-wise trimmed mean."""
    flower, byzfl = peer("flwr.server.strategy.aggregate"), peer("byzfl")
    results = [([vector], 1) for vector in vectors]
    share = (TRIM + 0.5) / len(vectors)
    stacked = np.stack(vectors) if byzfl else None
    return {
        OURS: lambda: trimmed_mean(vectors, TRIM),
        FLOWER: (lambda: flower.aggregate_trimmed_avg(results, share)) if flower else None,
        BYZFL: (lambda: byzfl.TrMean(f=TRIM)(stacked)) if byzfl else None,
        LIMIT: lambda: read_all(vectors),
    }


def median_paths(vectors: list[FloatVector]) -> dict[str, Run | None]:
    """Coordinate-wise median."""
    flower, byzfl = peer("flwr.server.strategy.aggregate"), peer("byzfl")
    results = [([vector], 1) for vector in vectors]
    stacked = np.stack(vectors) if byzfl else None
    return {
        OURS: lambda: coordinate_median(vectors),
        FLOWER: (lambda: flower.aggregate_median(results)) if flower else None,
        BYZFL: (lambda: byzfl.Median()(stacked)) if byzfl else None,
        LIMIT: lambda: read_all(vectors),
    }


def mixing_paths(vectors: list[FloatVector]) -> dict[str, Run | None]:
    """Nearest-neighbor mixing, then the trimmed mean. Flower has no mixing; byzfl's takes n * n * d floats."""
    byzfl = peer("byzfl") if len(vectors) ** 2 * DIMENSION * 4 <= PEER_BYTES_MAX else None
    stacked = np.stack(vectors) if byzfl else None
    return {
        OURS: lambda: nnm_trimmed_mean(vectors, TRIM),
        **({BYZFL: lambda: byzfl.TrMean(f=TRIM)(byzfl.NNM(f=TRIM)(stacked))} if byzfl else {}),
        LIMIT: lambda: read_all(vectors),
    }


def mean_paths(vectors: list[FloatVector]) -> dict[str, Run | None]:
    """The example-weighted mean: ours from the words that arrive, Flower's from float32 arrays."""
    flower = peer("flwr.server.strategy.aggregate")
    form = SumFormat(count=DIMENSION, bits=16, members=1, clipping_norm=2e-3 * math.sqrt(DIMENSION))
    source = np.random.default_rng(0)
    weights = source.uniform(0.1, 1.0, len(vectors)).tolist()
    words = [words_of(vector, form, weight) for vector, weight in zip(vectors, weights, strict=True)]
    results = [([vector], round(weight * 1000)) for vector, weight in zip(vectors, weights, strict=True)]

    def add_up() -> FloatVector:
        accumulator = MeanAccumulator(DIMENSION, len(words), form.clipping_norm)
        for one, weight in zip(words, weights, strict=True):
            accumulator.add(one, form, weight)
        return accumulator.take()

    return {
        OURS: add_up,
        FLOWER: (lambda: flower.aggregate(results)) if flower else None,
        LIMIT: lambda: read_all(vectors),
    }


def words_of(vector: FloatVector, form: SumFormat, weight: float) -> Words:
    """A client's words."""
    words: Words = np.empty(form.length, dtype=form.word_type)
    quantize(vector, weight, form, np.random.default_rng(0), words)
    write_slots(words, form, weight, {}, True)
    return words
