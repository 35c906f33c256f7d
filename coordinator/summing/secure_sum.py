"""How do members' masked words become their group's sum?

Words are integers mod 2**b, so addition is exact, and the order of arrival changes nothing. In a group of one the sum
is the words. Otherwise the secrets that the members revealed take off what the masks left: the self masks of those who
arrived, and the pair masks toward those who did not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared.codec.quantize import Words
from shared.crypto.keys import agree, pair_mask_key, self_mask_key
from shared.crypto.masks import MaskKeys, add_masks, unmasking_keys
from shared.errors import LocalProtocolError


def add_words(total: Words, words: Words) -> None:
    """Add `words` to `total` mod 2**b, in place.

    Args:
        total: (length,) unsigned, writable.
        words: the same shape and dtype.

    Raises:
        LocalProtocolError: shapes or dtypes differ.
    """
    if total.shape != words.shape or total.dtype != words.dtype:
        raise LocalProtocolError(
            f"cannot add {words.dtype} words of shape {words.shape} to {total.dtype} {total.shape}"
        )
    np.add(total, words, out=total)


def open_sum(masked: Sequence[Words], keys: MaskKeys) -> Words:
    """Add up the words of those who arrived and take their masks off; the first vector is overwritten and returned."""
    total = masked[0]
    for words in masked[1:]:
        add_words(total, words)
    add_masks(total, keys)
    return total


def rebuilt_mask_keys(
    transcript: bytes,
    participants_digest: bytes,
    clients: Sequence[str],
    masking_keys: Sequence[bytes],
    self_seeds: Mapping[int, bytes],
    masking_seeds: Mapping[int, bytes],
) -> MaskKeys:
    """Keys of all masks that are left in the sum of those who arrived.

    Args:
        transcript: H (32 bytes).
        participants_digest: of P, over which the masks were computed (32 bytes).
        clients, masking_keys: ids and public masking keys in roster order.
        self_seeds: for each place that arrived its self-mask seed.
        masking_seeds: for each other participant's place the seed of its masking key.

    Raises:
        RemoteProtocolError: a member's public key is not one.
    """
    selves = [self_mask_key(seed, transcript, clients[place]) for place, seed in self_seeds.items()]
    dropped = {}
    for place, seed in masking_seeds.items():
        pairs = {}
        for other in self_seeds:
            names = (clients[place], clients[other])
            pairs[other] = pair_mask_key(agree(seed, masking_keys[other]), transcript, names, participants_digest)
        dropped[place] = pairs
    return unmasking_keys(selves, dropped)
