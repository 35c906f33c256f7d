"""How fast is an aggregate of n vectors of a million coordinates, beside Flower's, byzfl's and one read of the input?

One thread everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.aggregator.mixing import nnm_trimmed_mean
from coordinator.aggregator.robust import coordinate_median, trimmed_mean
from coordinator.aggregator.weighted_mean import MeanAccumulator
from shared.codec.flatten import FloatVector
from shared.codec.quantize import Bits, SumFormat, Words, quantize, signed_view, write_slots
from tests.bench.measure import HotPath, Run, peer

DIMENSION = 1_000_000
TRIM = 3
PEER_BYTES_MAX = 2**31
LIMIT, FLOWER, BYZFL = "one read of the input", "flower", "byzfl"
FLOAT_FLOWER = "flower, of float32"


def hot_paths() -> Iterator[HotPath]:
    """Every rule, over 16 and 64 groups."""
    for groups in (16, 64):
        vectors = made_up(groups)
        yield trimmed(vectors, wanted=12.0 if groups == 16 else 7.0)
        yield median(vectors)
        yield mixing(vectors)
        yield mean(vectors, 16, wanted=8.0)
        yield mean(vectors, 32, wanted=None)


def made_up(groups: int) -> list[FloatVector]:
    """Group means as they might be: Gaussian, a few orders of magnitude apart."""
    source = np.random.default_rng(groups)
    return [source.standard_normal(DIMENSION, dtype=np.float32) * np.float32(1e-3) for _ in range(groups)]


def read_all(arrays: Sequence[npt.NDArray[Any]]) -> Run:
    """Touch every value once."""
    return lambda: max(float(array.max()) for array in arrays)


def title(rule: str, vectors: Sequence[FloatVector]) -> str:
    """What the table calls it."""
    return f"{rule}, n = {len(vectors)}, d = 1e6"


def trimmed(vectors: list[FloatVector], wanted: float) -> HotPath:
    """Coordinate-wise trimmed mean."""
    flower, byzfl = peer("flwr.server.strategy.aggregate"), peer("byzfl")
    results = [([vector], 1) for vector in vectors]
    share = (TRIM + 0.5) / len(vectors)
    stacked = np.stack(vectors) if byzfl else None
    return HotPath(
        name=title("trimmed mean", vectors),
        ours=lambda: trimmed_mean(vectors, TRIM),
        peers={
            FLOWER: (lambda: flower.aggregate_trimmed_avg(results, share)) if flower else None,
            BYZFL: (lambda: byzfl.TrMean(f=TRIM)(stacked)) if byzfl else None,
        },
        limit_name=LIMIT,
        limit=read_all(vectors),
        wanted={FLOWER: wanted},
    )


def median(vectors: list[FloatVector]) -> HotPath:
    """Coordinate-wise median."""
    flower, byzfl = peer("flwr.server.strategy.aggregate"), peer("byzfl")
    results = [([vector], 1) for vector in vectors]
    stacked = np.stack(vectors) if byzfl else None
    return HotPath(
        name=title("median", vectors),
        ours=lambda: coordinate_median(vectors),
        peers={
            FLOWER: (lambda: flower.aggregate_median(results)) if flower else None,
            BYZFL: (lambda: byzfl.Median()(stacked)) if byzfl else None,
        },
        limit_name=LIMIT,
        limit=read_all(vectors),
    )


def mixing(vectors: list[FloatVector]) -> HotPath:
    """Nearest-neighbor mixing, then the trimmed mean. Flower has no mixing; byzfl's takes n * n * d floats."""
    fits = len(vectors) ** 2 * DIMENSION * 4 <= PEER_BYTES_MAX
    byzfl = peer("byzfl")
    stacked = np.stack(vectors) if byzfl and fits else None
    run: Run | None = (lambda: byzfl.TrMean(f=TRIM)(byzfl.NNM(f=TRIM)(stacked))) if byzfl else None
    return HotPath(
        name=title("mixing and trimmed mean", vectors),
        ours=lambda: nnm_trimmed_mean(vectors, TRIM),
        peers={BYZFL: run} if fits else {},
        limit_name=LIMIT,
        limit=read_all(vectors),
    )


def mean(vectors: list[FloatVector], bits: Bits, wanted: float | None) -> HotPath:
    """The example-weighted mean of the same updates: ours from the words that arrive, Flower's from float32 arrays.

    As the coordinator does, one accumulator serves mean after mean; what it keeps between them is counted.
    """
    flower = peer("flwr.server.strategy.aggregate")
    form = SumFormat(count=DIMENSION, bits=bits, members=1, clipping_norm=2e-3 * math.sqrt(DIMENSION))
    weights = np.random.default_rng(0).uniform(0.1, 1.0, len(vectors)).tolist()
    words = [words_of(vector, form, weight) for vector, weight in zip(vectors, weights, strict=True)]
    results = [([vector], round(weight * 1000)) for vector, weight in zip(vectors, weights, strict=True)]

    accumulator = MeanAccumulator(DIMENSION, len(words), form.clipping_norm)

    def add_up() -> FloatVector:
        accumulator.start(len(words), form.clipping_norm)
        for one, weight in zip(words, weights, strict=True):
            accumulator.add(one, form, weight)
        return accumulator.take()

    return HotPath(
        name=title(f"weighted mean of {bits}-bit words", vectors),
        ours=add_up,
        peers={FLOAT_FLOWER: (lambda: flower.aggregate(results)) if flower else None},
        limit_name=LIMIT,
        limit=read_all([signed_view(one) for one in words]),
        kept=lambda: accumulator.nbytes,
        wanted={} if wanted is None else {FLOAT_FLOWER: wanted},
    )


def words_of(vector: FloatVector, form: SumFormat, weight: float) -> Words:
    """A client's words."""
    words: Words = np.empty(form.length, dtype=form.word_type)
    quantize(vector, weight, form, np.random.default_rng(0), words)
    write_slots(words, form, weight, {}, True)
    return words
