"""What does nearest-neighbor mixing make of the group means, before they are trimmed?

Each of m vectors becomes the average of its m - b nearest, itself included. Honest vectors that differ because their
data do come closer together, so that an attacker who hides among them has less room; then the trimmed mean drops what
is still extreme.

Pure kernels on arrays. The vectors are first put into an order that depends on their values alone; everything behind
that computes with one fixed sequence, so the result has the same bits whatever order the groups came in.
Mixing and trimming share one pass over tiles of columns: the mixed vectors never exist as a whole. Matrix products are
torch's, on memory that torch allocated: its threads are set by the process (numpy's would spin on every core), and
the library may add in another order for memory that is aligned otherwise.

Reference: Allouah et al., Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity (2023), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cmp_to_key

import numpy as np
import numpy.typing as npt
import torch

from coordinator.aggregator.robust import checked_count, require_finite, trimmed_mean
from shared.codec.flatten import FloatVector
from shared.errors import LocalProtocolError

Selection = npt.NDArray[np.bool_]
"""(m, m): row i marks the vectors that vector i is mixed from."""

Distances = npt.NDArray[np.float64]

_TILE_BYTES = 2 * 1024 * 1024
_TILE_COLUMNS = (256, 16 * 1024)
_ROW_PADDING = 16  # float32 elements: rows a power of two apart would all fall into the same cache sets
_COMPARED_VALUES = 1024


def nnm_trimmed_mean(vectors: Sequence[FloatVector], trim: int) -> FloatVector:
    """Mix every vector with its m - b nearest, then take the coordinate-wise trimmed mean with the same b.

    Args:
        vectors: m arrays of (k,) float32, finite.
        trim: b, 0 <= 2b < m.

    Returns:
        (k,) float32, the same bits for every order of `vectors`. About 8 MiB and 32 m^2 bytes are used beside it.

    Raises:
        LocalProtocolError: nothing would be left, lengths differ, or a value is not finite.
    """
    count = checked_count(vectors)
    if not 0 <= 2 * trim < len(vectors):
        raise LocalProtocolError(f"mixing and trimming 2 x {trim} of {len(vectors)} vectors leaves nothing")
    if trim == 0:
        return trimmed_mean(vectors, 0)  # every mixed vector would be the mean of all
    ordered = canonical_order(vectors)
    mixture = Mixture(nearest(squared_distances(ordered), len(vectors) - trim))
    result = np.empty(count, dtype=np.float32)
    width = _tile_width(count, 4 * len(vectors))
    source, mixed = torch.empty((2, len(vectors), width + _ROW_PADDING))
    for start in range(0, count, width):
        size = min(width, count - start)
        rows = mixture.mix([vector[start : start + size] for vector in ordered], source[:, :size], mixed[:, :size])
        result[start : start + size] = trimmed_mean(list(rows.numpy()), trim)
    return result


def canonical_order(vectors: Sequence[FloatVector]) -> list[FloatVector]:
    """Sort vectors by their bytes. Two that differ mostly do so at once, so this reads next to nothing."""
    return sorted(vectors, key=cmp_to_key(_compare))


def _compare(left: FloatVector, right: FloatVector) -> int:
    for start in range(0, len(left), _COMPARED_VALUES):
        first = left[start : start + _COMPARED_VALUES].tobytes()
        second = right[start : start + _COMPARED_VALUES].tobytes()
        if first != second:
            return -1 if first < second else 1
    return 0


def squared_distances(vectors: Sequence[FloatVector]) -> Distances:
    """Return all squared L2 distances, (m, m) float64, from the Gram matrix in one pass over tiles of columns.

    Products of float32 are exact in float64, and a pair's distance is made of that pair's numbers alone, so a
    huge vector makes no other distance imprecise. Equal vectors may be a rounding error apart.

    Raises:
        LocalProtocolError: a value is not finite.
    """
    rows, count = len(vectors), len(vectors[0])
    width = _tile_width(count, 8 * rows)
    gram = torch.zeros((rows, rows), dtype=torch.float64)
    tile = torch.empty((rows, width), dtype=torch.float64)
    for start in range(0, count, width):
        columns = tile[:, : min(width, count - start)]
        for row, vector in zip(columns.numpy(), vectors, strict=True):
            np.copyto(row, vector[start : start + width])
        gram.addmm_(columns, columns.T)
    products: Distances = gram.numpy()
    lengths = products.diagonal()
    require_finite(lengths)
    return np.maximum(lengths[:, None] + lengths[None, :] - 2.0 * products, 0.0)


def nearest(distances: Distances, keep: int) -> Selection:
    """Mark in each row the `keep` smallest distances: itself always, of equal ones those with the lower index.

    Args:
        distances: (m, m), not negative.
        keep: 1 to m.
    """
    own = distances.copy()
    np.fill_diagonal(own, -1.0)
    chosen = np.argsort(own, axis=1, kind="stable")[:, :keep]
    selection = np.zeros(distances.shape, dtype=np.bool_)
    np.put_along_axis(selection, chosen, True, axis=1)
    return selection


class Mixture:
    """The averages that a selection asks for, each of the same number of vectors.

    What all rows have in common is added up once, and only what some leave out goes into a matrix product. Nothing is
    ever subtracted: the total minus a huge vector would be wrong by what that one rounds away.
    """

    def __init__(self, selection: Selection) -> None:
        shared = selection.all(axis=0)
        self._order = [*np.flatnonzero(shared), *np.flatnonzero(~shared)]
        self._shared = int(shared.sum())
        self._marks = torch.from_numpy(selection[:, ~shared].astype(np.float32))
        self._factor = np.float32(1.0 / selection[0].sum())

    def mix(self, vectors: Sequence[FloatVector], source: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write row i of `out` (m, w): the mean of the vectors (w,) that row i of the selection marks; return `out`.

        `source` (m, w) is overwritten. Values are divided before they are added, so no sum overflows.
        """
        rows = source.numpy()
        for row, index in zip(rows, self._order, strict=True):
            np.multiply(vectors[index], self._factor, out=row)
        torch.mm(self._marks, source[self._shared :], out=out)
        mixed = out.numpy()
        mixed += rows[: self._shared].sum(axis=0)
        return out


def _tile_width(count: int, column_bytes: int) -> int:
    narrowest, widest = _TILE_COLUMNS
    return min(count, max(narrowest, min(widest, _TILE_BYTES // column_bytes)))
