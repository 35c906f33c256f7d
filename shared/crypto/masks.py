"""Which masks hide a member's words, how are they added, and which take them off a group's sum?

    member_mask_keys(position, self_key, {position: pair_key}) -> MaskKeys       what a member adds
    unmasking_keys(self_keys, {dropped: {arrived: pair_key}}) -> MaskKeys        what the sum still needs
    add_masks(words, keys)                                                       both, in place, mod 2**b

Each of two members has the same pair key; the earlier one in the roster adds its mask, the later one subtracts it, so
that they vanish from the sum. The sum of who arrived still holds their self masks, and the pair masks toward those who
did not arrive. Those are exactly what a dropped member would have taken off: it adds its pair masks as if it had sent
zeros, with no self mask.

All masks go over a block of the vector while it is in the cache. Quantizing is a pass of its own: doing both to a block
at once was measured and never quicker, because the two then share the cache.

Reference: K. Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017),
section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from shared.codec.quantize import Words
from shared.crypto.prg import BLOCK_BYTES, Keystream
from shared.errors import LocalProtocolError

_WORD_TYPES = (np.dtype("<u2"), np.dtype("<u4"))


@dataclass(frozen=True, slots=True)
class MaskKeys:
    """Keystream keys (32 bytes each) of the masks to add and of those to subtract; never shown by `repr`."""

    plus: tuple[bytes, ...] = field(repr=False)
    minus: tuple[bytes, ...] = field(repr=False)


def member_mask_keys(position: int, self_key: bytes, pair_keys: Mapping[int, bytes]) -> MaskKeys:
    """Return what the member at `position` of the roster adds to its words.

    Args:
        self_key: key of its own mask.
        pair_keys: for the position of every other participant the key that both share.

    Raises:
        LocalProtocolError: a pair of a member with itself.
    """
    pairs = _pair_masks(position, pair_keys)
    return MaskKeys((self_key, *pairs.plus), pairs.minus)


def unmasking_keys(self_keys: Iterable[bytes], dropped: Mapping[int, Mapping[int, bytes]]) -> MaskKeys:
    """Return what turns the sum of the masked words of those who arrived into the sum of their words.

    Args:
        self_keys: one for each participant who arrived.
        dropped: for the position of each participant who did not: for the position of each who did, their pair key.

    Raises:
        LocalProtocolError: a pair of two dropped members; their masks are not in the sum.
    """
    plus: list[bytes] = []
    minus = list(self_keys)
    for position, pair_keys in dropped.items():
        if not dropped.keys().isdisjoint(pair_keys):
            raise LocalProtocolError(f"member {position} shares no mask of this sum with another dropped member")
        pairs = _pair_masks(position, pair_keys)
        plus += pairs.plus
        minus += pairs.minus
    return MaskKeys(tuple(plus), tuple(minus))


def _pair_masks(position: int, pair_keys: Mapping[int, bytes]) -> MaskKeys:
    """Plus toward later members, minus toward earlier ones."""
    if position in pair_keys:
        raise LocalProtocolError(f"member {position} shares no mask with itself")
    return MaskKeys(
        plus=tuple(key for other, key in pair_keys.items() if other > position),
        minus=tuple(key for other, key in pair_keys.items() if other < position),
    )


def add_masks(words: Words, keys: MaskKeys) -> None:
    """Add all masks of `keys` to `words`, in place, mod 2**b.

    Args:
        words: (length,) of `SumFormat.word_type`, slots included; writable.
        keys: what to add and subtract. A key masks one vector, once.

    Raises:
        LocalProtocolError: not unsigned words of 16 or 32 bits, or a key of another size.
    """
    if words.dtype not in _WORD_TYPES:
        raise LocalProtocolError(f"masks are words of 16 or 32 bits, not {words.dtype}")
    plus = [Keystream(key) for key in keys.plus]
    minus = [Keystream(key) for key in keys.minus]
    scratch: Words = np.empty(BLOCK_BYTES // words.itemsize, dtype=words.dtype)
    for start in range(0, len(words), len(scratch)):
        part = words[start : start + len(scratch)]
        mask = scratch[: len(part)]
        for stream in plus:
            stream.fill(mask)
            np.add(part, mask, out=part)
        for stream in minus:
            stream.fill(mask)
            np.subtract(part, mask, out=part)
