"""What is the example-weighted mean of all members, if group sums are added up as they come and none is kept?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.codec.flatten import FloatVector
from shared.codec.quantize import BLOCK, SignedWords, SumFormat, Words, signed_view
from shared.errors import LocalProtocolError

_SMALL_COUNT = 2**22
_NARROW_MEMBERS_MAX = 256
_NARROW_SUMS_MAX = 2**16 - 1  # sums of as many 16-bit words fit 32 bits, even if all are forged
_RUN_COUNT = 128 * 1024  # what was read to find the largest is still in the second-level cache when it is added

_Integers = npt.NDArray[np.signedinteger[Any]]


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

    One accumulator serves one mean after the other (`start`) and keeps its memory: to be given fresh pages by the
    operating system takes longer than to add 16 vectors up.

    Reference: McMahan et al., Communication-Efficient Learning of Deep Networks (2017), algorithm 1.
    """

    def __init__(self, count: int, members_max: int, clipping_norm: float) -> None:
        """Be ready for the first mean; `count` is k, the others as in `start`."""
        self._count = count
        self._totals: dict[float, _Integers] = {}
        self._idle: list[_Integers] = []
        self._pending: SignedWords | None = None
        self.start(members_max, clipping_norm)

    def start(self, members_max: int, clipping_norm: float) -> None:
        """Begin a mean; whatever was added and not taken is forgotten, and what was taken last is overwritten.

        Args:
            members_max: how many members there are at most in all groups together.
            clipping_norm: what no value of one member exceeds.
        """
        narrow = self._count > _SMALL_COUNT and members_max <= _NARROW_MEMBERS_MAX
        self._common_type = np.dtype(np.int32 if narrow else np.int64)
        self._members_max = self._members_left = members_max
        # Forged words may reach 2**(b-1), up to twice the honest bound: one bit is left for that, one is the sign.
        self._common_scale = 2.0 ** (self._common_type.itemsize * 8 - 2) / (members_max * clipping_norm)
        self._idle += self._totals.values()
        self._totals = {}
        self._pending_scale = 0.0
        # For each run of pending sums what none of them exceeds; 0 says that there are none.
        self._reach = [0] * -(-self._count // _RUN_COUNT)
        self._weights: list[float] = []

    @property
    def groups(self) -> int:
        """How many group sums were added."""
        return len(self._weights)

    @property
    def nbytes(self) -> int:
        """What it holds, and keeps from one mean to the next."""
        pending = 0 if self._pending is None else self._pending.nbytes
        return pending + sum(array.nbytes for array in (*self._totals.values(), *self._idle))

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
        """End this mean: nothing can be added any more until `start`.

        Returns:
            sum(w * u) / sum(w) as (k,) float32, in the accumulator's own memory: valid until `start`.

        Raises:
            LocalProtocolError: nothing was added.
        """
        if not self._weights:
            raise LocalProtocolError("a mean of no groups")
        if self._pending_scale in self._totals:
            self._carry_all()
        summands = {**self._totals}
        if self._pending is not None and self._pending_scale:
            summands.setdefault(self._pending_scale, self._pending)
        wide = [integers for integers in summands.values() if integers.itemsize >= 4]
        if not wide:
            wide = [self._memory(np.dtype(np.int32))]
            self._idle += wide
        result = wide[0].view(np.float32)[: self._count]
        # fsum is correctly rounded, hence independent of order.
        weight = math.fsum(self._weights)
        _scale_and_add([(1.0 / (scale * weight), integers) for scale, integers in sorted(summands.items())], result)
        self._weights, self._members_left = [], 0
        return result

    def _total(self, scale: float, dtype: np.dtype[Any]) -> _Integers:
        if scale not in self._totals:
            self._totals[scale] = self._memory(dtype)
            self._totals[scale].fill(0)
        return self._totals[scale]

    def _memory(self, dtype: np.dtype[Any]) -> _Integers:
        for place, array in enumerate(self._idle):
            if array.dtype == dtype:
                return self._idle.pop(place)
        return np.empty(self._count, dtype=dtype)

    def _add_exactly(self, signed: SignedWords, scale: float) -> None:
        if self._pending is None or signed.dtype != self._pending.dtype or scale != self._pending_scale:
            self._carry_all()
            self._pending_scale = scale
        if self._pending is None or signed.dtype != self._pending.dtype:
            self._pending = np.empty(self._count, dtype=signed.dtype)
        largest = np.iinfo(signed.dtype).max
        for run, start in enumerate(range(0, self._count, _RUN_COUNT)):
            words = signed[start : start + _RUN_COUNT]
            sums = self._pending[start : start + _RUN_COUNT]
            reach = max(int(np.maximum.reduce(words)), -int(np.minimum.reduce(words)))
            if self._reach[run] and self._reach[run] + reach > largest:
                self._carry(run)
            if self._reach[run]:
                np.add(sums, words, out=sums)
            else:
                np.copyto(sums, words)
            self._reach[run] += reach

    def _carry_all(self) -> None:
        for run, reach in enumerate(self._reach):
            if reach:
                self._carry(run)

    def _carry(self, run: int) -> None:
        assert self._pending is not None
        part = slice(run * _RUN_COUNT, (run + 1) * _RUN_COUNT)
        narrow = self._pending.itemsize == 2 and self._members_max <= _NARROW_SUMS_MAX
        total = self._total(self._pending_scale, np.dtype(np.int32 if narrow else np.int64))[part]
        np.add(total, self._pending[part], out=total)
        self._reach[run] = 0


def _scale_and_add(summands: Sequence[tuple[float, _Integers]], result: FloatVector) -> None:
    """Write the sum of factor * integers. The result may lie where one of the summands begins, if it is as wide."""
    block, scaled = np.empty((2, min(BLOCK, len(result))), dtype=np.float64)
    for start in range(0, len(result), BLOCK):
        # A float32 block ends where its integers begin or earlier, so writing forward destroys nothing unread.
        part = block[: min(BLOCK, len(result) - start)]
        for number, (factor, integers) in enumerate(summands):
            summand = scaled[: len(part)] if number else part
            np.copyto(summand, integers[start : start + BLOCK])
            summand *= factor
            if number:
                part += summand
        np.copyto(result[start : start + BLOCK], part, casting="same_kind")


def _add_rescaled(signed: SignedWords, factor: float, total: npt.NDArray[np.signedinteger[Any]]) -> None:
    block = np.empty(min(BLOCK, len(total)), dtype=np.float64)
    for start in range(0, len(total), BLOCK):
        part = block[: min(BLOCK, len(total) - start)]
        np.multiply(signed[start : start + BLOCK], factor, out=part, dtype=np.float64)
        np.rint(part, out=part)
        total[start : start + BLOCK] += part.astype(total.dtype)
