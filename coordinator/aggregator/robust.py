"""How do several group means become one aggregate that a few of them cannot spoil?

Pure kernels on arrays. All give the same bits whatever order the groups came in, and none copies its input: they work
through columns in tiles that stay in the cache, and need at most 3 MiB beside the result.
Every input has to be finite; a gate in front drops what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.codec.flatten import FloatVector
from shared.errors import LocalProtocolError

_NETWORK_ROWS_MAX = 32
_TILE_COLUMNS = 16 * 1024  # rows of 64 KiB: wide enough that calls into numpy do not dominate
_SORTED_TILE_BYTES = 2 * 1024 * 1024  # calls into numpy cost more than what leaves the second-level cache
_ROW_PADDING = 16  # float32 elements: rows a power of two apart would all fall into the same cache sets

Comparator = tuple[int, int, bool, bool]
"""(wire of the smaller, wire of the larger, smaller needed, larger needed)."""

Step = tuple[np.ufunc, int, int, int]
"""(minimum or maximum, two rows to read, row to write)."""


def trimmed_mean(vectors: Sequence[FloatVector], trim: int) -> FloatVector:
    """Per coordinate drop the `trim` largest and smallest of m values and average the rest.

    The middle values are added themselves. (The total minus the extremes would be wrong by what one extreme
    value rounds away.)

    Args:
        vectors: m arrays of (k,) float32, finite.
        trim: b, 0 <= 2b < m.

    Returns:
        (k,) float32, the same bits for every order of `vectors`.

    Raises:
        LocalProtocolError: nothing would be left, lengths differ, or a value is not finite.

    Reference: Yin et al., Byzantine-Robust Distributed Learning (2018), definition 2.
    """
    count = checked_count(vectors)
    if not 0 <= 2 * trim < len(vectors):
        raise LocalProtocolError(f"trimming 2 x {trim} of {len(vectors)} vectors leaves nothing")
    result = np.empty(count, dtype=np.float32)
    if len(vectors) <= _NETWORK_ROWS_MAX:
        _trim_by_network(vectors, trim, result)
    else:
        _trim_by_sorting(vectors, trim, result)
    result += np.float32(0.0)  # -0.0 becomes 0.0: which of two equal zeros survives a minimum depends on their order
    return result


def coordinate_median(vectors: Sequence[FloatVector]) -> FloatVector:
    """Per coordinate return the middle one of m values, or the mean of the two middle ones if m is even.

    Args:
        vectors: m arrays of (k,) float32, finite.

    Returns:
        (k,) float32, the same bits for every order of `vectors`.

    Raises:
        LocalProtocolError: there are no vectors, lengths differ, or a value is not finite.

    Reference: Yin et al., Byzantine-Robust Distributed Learning (2018), definition 1.
    """
    return trimmed_mean(vectors, max(0, len(vectors) - 1) // 2)


@lru_cache(maxsize=64)
def comparators(rows: int, trim: int) -> tuple[Comparator, ...]:
    """Return the part of Batcher's odd-even merge sort that brings ranks trim .. rows-trim-1 into order.

    A comparator stays if one of its outputs is used later, and computes only those that are.

    Reference: Batcher, Sorting Networks and Their Applications (1968).
    """
    network: list[tuple[int, int]] = []
    _merge_sort(list(range(1 << (rows - 1).bit_length())), network)
    needed = set(range(trim, rows - trim))
    kept: list[Comparator] = []
    # Wires beyond the last row would carry +inf: they never move down, so their comparators do nothing.
    for low, high in reversed([pair for pair in network if pair[1] < rows]):
        if low in needed or high in needed:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


def _merge_sort(wires: list[int], network: list[tuple[int, int]]) -> None:
    if len(wires) > 1:
        half = len(wires) // 2
        _merge_sort(wires[:half], network)
        _merge_sort(wires[half:], network)
        _merge(wires, network)


def _merge(wires: list[int], network: list[tuple[int, int]]) -> None:
    if len(wires) == 2:
        network.append((wires[0], wires[1]))
    elif len(wires) > 2:
        _merge(wires[0::2], network)
        _merge(wires[1::2], network)
        network.extend(zip(wires[1:-1:2], wires[2::2], strict=True))


@lru_cache(maxsize=64)
def _compile(rows: int, trim: int) -> tuple[tuple[Step, ...], tuple[int, ...], int]:
    """Assign rows of memory to the comparators' wires.

    Rows 0 .. rows-1 are the input and are never written; a scratch row is used again once both its readers are done.

    Returns:
        The steps (ufunc, source, source, target); the rows that end up holding the middle ranks, ascending; how many
        rows there are.
    """
    wires = list(range(rows))
    free: list[int] = []
    total = rows
    steps: list[Step] = []
    for low, high, low_needed, high_needed in comparators(rows, trim):
        smaller, larger = wires[low], wires[high]
        for wire, needed, ufunc in ((low, low_needed, np.minimum), (high, high_needed, np.maximum)):
            if needed:
                if not free:
                    free.append(total)
                    total += 1
                wires[wire] = free.pop()
                steps.append((ufunc, smaller, larger, wires[wire]))
        free.extend(row for row in (smaller, larger) if row >= rows)
    return tuple(steps), tuple(wires[trim : rows - trim]), total


def _trim_by_network(vectors: Sequence[FloatVector], trim: int, result: FloatVector) -> None:
    rows, count = len(vectors), len(result)
    steps, middle, total = _compile(rows, trim)
    width = min(count, _TILE_COLUMNS)
    scratch = np.empty((total - rows, width + _ROW_PADDING), dtype=np.float32)
    for start in range(0, count, width):
        size = min(width, count - start)
        tile = [vector[start : start + size] for vector in vectors]
        for row in tile:
            require_finite(row)
        tile.extend(scratch[:, :size])
        for ufunc, first, second, target in steps:
            ufunc(tile[first], tile[second], out=tile[target])
        _average([tile[row] for row in middle], result[start : start + size])


def _average(rows: list[FloatVector], out: FloatVector) -> None:
    """Write the mean of sorted rows. Added as a tree, so float32 errs by log2 of their number."""
    total = _tree_sum(rows)
    np.multiply(total, np.float32(1.0 / len(rows)), out=out)


def _tree_sum(rows: list[FloatVector]) -> FloatVector:
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    total: FloatVector = _tree_sum(rows[:half]) + _tree_sum(rows[half:])
    return total


def _trim_by_sorting(vectors: Sequence[FloatVector], trim: int, result: FloatVector) -> None:
    rows, count = len(vectors), len(result)
    width = min(count, max(256, _SORTED_TILE_BYTES // (4 * rows)))
    tile = np.empty((rows, width + _ROW_PADDING), dtype=np.float32)
    for start in range(0, count, width):
        size = min(width, count - start)
        columns = tile[:, :size]
        for row, vector in zip(columns, vectors, strict=True):
            np.copyto(row, vector[start : start + size])
        columns.sort(axis=0)
        # Whatever is not finite has been sorted to an end, NaN behind infinity.
        require_finite(columns[0])
        require_finite(columns[-1])
        total = _folded(columns[trim : rows - trim])
        np.multiply(total, np.float32(1.0 / (rows - 2 * trim)), out=result[start : start + size])


def _folded(rows: npt.NDArray[np.float32]) -> FloatVector:
    """Add rows up as a tree, in their own memory: one call for each halving, not one for each row."""
    left = len(rows)
    while left > 1:
        half = left // 2
        rows[:half] += rows[left - half : left]
        left -= half
    first: FloatVector = rows[0]
    return first


def checked_count(vectors: Sequence[FloatVector]) -> int:
    """Return k of m > 0 vectors (k,) of float32.

    Raises:
        LocalProtocolError: they are something else.
    """
    if not vectors:
        raise LocalProtocolError("an aggregate of no vectors")
    count = len(vectors[0])
    for vector in vectors:
        if vector.shape != (count,) or vector.dtype != np.float32:
            raise LocalProtocolError(f"{vector.dtype} of shape {vector.shape} among float32 vectors of {count} values")
    return count


def require_finite(values: npt.NDArray[np.floating[Any]]) -> None:
    """
    Raises:
        LocalProtocolError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise LocalProtocolError("a value that is not finite reached the aggregation; a gate has to drop it before")
