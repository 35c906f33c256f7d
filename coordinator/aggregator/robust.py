"""How do several group means become one aggregate?

Pure kernels on arrays. All give the same bits whatever order the groups came in, and none copies its input: they work
through columns in tiles that stay in the cache, and need at most 3 MiB beside the result.
Every input has to be finite; a gate in front drops what is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.codec.flatten import FloatVector
from shared.codec.quantize import BLOCK, SignedWords, SumFormat, Words, signed_view
from shared.errors import LocalProtocolError

_NETWORK_ROWS_MAX = 32
_TILE_COLUMNS = 16 * 1024  # rows of 64 KiB: wide enough that calls into numpy do not dominate
_SORTED_TILE_BYTES = 2 * 1024 * 1024  # calls into numpy cost more than what leaves the second-level cache
_ROW_PADDING = 16  # float32 elements: rows a power of two apart would all fall into the same cache sets
_SMALL_COUNT = 2**22
_NARROW_MEMBERS_MAX = 256
_NARROW_SUMS_MAX = 2**16 - 1  # sums of as many 16-bit words fit 32 bits, even if all are forged
_RUN_COUNT = (
    256 * 1024
)  # half a mebibyte or one of words: what was read to find the largest is still in the cache when it is added

Comparator = tuple[int, int, bool, bool]
"""(wire of the smaller, wire of the larger, smaller needed, larger needed)."""

Step = tuple[np.ufunc, int, int, int]
"""(minimum or maximum, two rows to read, row to write)."""


class MeanAccumulator:
    """The example-weighted mean over all members of all groups, added up as group sums come.

    Integers add exactly, so the result does not depend on order, and no group's vector is kept. A sum of all members
    cannot wrap.

    Words are added as they are, in integers of twice their width for each size of group that there is. Most words are
    small, so they are first added up in their own width, for as long as sums of the largest among them cannot wrap:
    that moves half the memory. Together 6 bytes per coordinate for words of 16 bits, 12 for words of 32.
    Above 4 million coordinates words of 32 bits become integers of one common fixed-point scale instead, whatever their
    groups' sizes: 8 bytes per coordinate, and the scale resolves far below a word; up to 256 members 4 bytes, at an
    error of the mean of at most members * C / (2**31 * mean weight).

    Reference: McMahan et al., Communication-Efficient Learning of Deep Networks (2017), algorithm 1.
    """

    def __init__(self, count: int, members_max: int, clipping_norm: float) -> None:
        narrow = count > _SMALL_COUNT and members_max <= _NARROW_MEMBERS_MAX
        self._count = count
        self._common_type = np.dtype(np.int32 if narrow else np.int64)
        self._members_max = self._members_left = members_max
        # Forged words may reach 2**(b-1), up to twice the honest bound: one bit is left for that, one is the sign.
        self._common_scale = 2.0 ** (self._common_type.itemsize * 8 - 2) / (members_max * clipping_norm)
        self._totals: dict[float, npt.NDArray[np.signedinteger[Any]]] = {}
        self._pending: SignedWords = np.zeros(0, dtype=np.int16)
        self._pending_scale = 0.0
        self._reach = [0] * -(-count // _RUN_COUNT)  # for each run of pending sums what none of them exceeds
        self._weights: list[float] = []

    @property
    def groups(self) -> int:
        """How many group sums were added."""
        return len(self._weights)

    def add(self, words: Words, form: SumFormat, weight: float) -> None:
        """Add one group's summed words; `weight` is what `open_slots` says of them.

        Raises:
            LocalProtocolError: the words do not fit, or there are more members than were announced.
        """
        if words.shape != (form.length,) or form.count != self._count:
            raise LocalProtocolError(f"{words.shape} words do not fit a mean over {self._count} coordinates")
        if form.members > self._members_left:
            raise LocalProtocolError(f"a group of {form.members}, but {self._members_left} members are left to add")
        signed = signed_view(words)[: form.count]
        if self._count <= _SMALL_COUNT or (form.bits == 16 and self._members_max <= _NARROW_SUMS_MAX):
            self._add_exactly(signed, form.scale)
        else:
            total = self._total(self._common_scale, self._common_type)
            _add_rescaled(signed, self._common_scale / form.scale, total)
        self._members_left -= form.members
        self._weights.append(weight)

    def take(self) -> FloatVector:
        """Return sum(w * u) / sum(w) as (k,) float32, if it fits in the accumulator's own memory, and end its life.

        Raises:
            LocalProtocolError: nothing was added.
        """
        if not self._weights:
            raise LocalProtocolError("a mean of no groups")
        if self._pending_scale in self._totals:
            self._carry_all()
        elif self._pending.size:
            self._totals[self._pending_scale] = self._pending
        # fsum is correctly rounded, hence independent of order.
        weight = math.fsum(self._weights)
        totals = [(1.0 / (scale * weight), total) for scale, total in sorted(self._totals.items())]
        first_factor, first = totals[0]
        result = np.empty(self._count, np.float32) if first.itemsize < 4 else first.view(np.float32)[: self._count]
        block, summand = np.empty((2, min(BLOCK, self._count)), dtype=np.float64)
        for start in range(0, self._count, BLOCK):
            # The float32 block ends where its integers begin or earlier, so writing forward destroys nothing unread.
            part = block[: min(BLOCK, self._count - start)]
            np.multiply(first[start : start + BLOCK], first_factor, out=part, dtype=np.float64)
            for factor, total in totals[1:]:
                part += np.multiply(total[start : start + BLOCK], factor, out=summand[: len(part)])
            np.copyto(result[start : start + BLOCK], part, casting="same_kind")
        self._weights, self._totals, self._pending = [], {}, np.zeros(0, dtype=np.int16)
        return result

    def _total(self, scale: float, dtype: np.dtype[Any]) -> npt.NDArray[np.signedinteger[Any]]:
        if scale not in self._totals:
            self._totals[scale] = np.zeros(self._count, dtype=dtype)
        return self._totals[scale]

    def _add_exactly(self, signed: SignedWords, scale: float) -> None:
        if scale != self._pending_scale or signed.dtype != self._pending.dtype:
            self._carry_all()
            self._pending_scale = scale
            if signed.dtype != self._pending.dtype or self._pending.size == 0:
                self._pending = np.zeros(self._count, dtype=signed.dtype)
        largest = np.iinfo(signed.dtype).max
        for run, start in enumerate(range(0, self._count, _RUN_COUNT)):
            words = signed[start : start + _RUN_COUNT]
            reach = max(int(words.max()), -int(words.min()))
            if self._reach[run] + reach > largest:
                self._carry(run)
            self._pending[start : start + _RUN_COUNT] += words
            self._reach[run] += reach

    def _carry_all(self) -> None:
        for run, reach in enumerate(self._reach):
            if reach:
                self._carry(run)

    def _carry(self, run: int) -> None:
        part = slice(run * _RUN_COUNT, (run + 1) * _RUN_COUNT)
        narrow = self._pending.itemsize == 2 and self._members_max <= _NARROW_SUMS_MAX
        total = self._total(self._pending_scale, np.dtype(np.int32 if narrow else np.int64))[part]
        np.add(total, self._pending[part], out=total)
        self._pending[part] = 0
        self._reach[run] = 0


def _add_rescaled(signed: SignedWords, factor: float, total: npt.NDArray[np.signedinteger[Any]]) -> None:
    block = np.empty(min(BLOCK, len(total)), dtype=np.float64)
    for start in range(0, len(total), BLOCK):
        part = block[: min(BLOCK, len(total) - start)]
        np.multiply(signed[start : start + BLOCK], factor, out=part, dtype=np.float64)
        np.rint(part, out=part)
        total[start : start + BLOCK] += part.astype(total.dtype)


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
