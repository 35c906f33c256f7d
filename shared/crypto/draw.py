"""How a draw cuts a pool of offers into groups, and the leaf that stands for a group in its Merkle tree.

Both are functions of public values, so that anybody who holds the offers can check the draw.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from itertools import pairwise

_ORDER = b"comitia/1/draw order\0"
_LEAF = b"comitia/1/draw group\0"


def draw_order(version_head: bytes, offers: Sequence[bytes]) -> list[int]:
    """A pseudorandom order of the offers, decided by the head and by the whole set of offers.

    Args:
        version_head: hash of the entry that made the version (32 bytes).
        offers: digests of the offers, each once (32 bytes each).

    Returns:
        Positions into `offers`. The order of `offers` does not change who meets whom.
    """
    pool = hashlib.sha256(b"".join(sorted(offers))).digest()
    key = hashlib.sha256(_ORDER + version_head + pool).digest()
    return sorted(range(len(offers)), key=lambda i: hmac.digest(key, offers[i], "sha256"))


def cut_groups(count: int, group_size: int) -> list[range]:
    """Cut `count` drawn offers into groups of `group_size`; left-overs spread over the groups, one each.

    With fewer than `group_size` offers there is one group. No group reaches twice `group_size`.
    """
    groups = max(1, count // group_size)
    smaller, larger = divmod(count, groups)
    bounds = [i * smaller + min(i, larger) for i in range(groups + 1)]
    return [range(a, b) for a, b in pairwise(bounds)]


def group_leaf(index: int, members: Sequence[tuple[str, bytes]]) -> bytes:
    """The bytes that stand for one group: its index and, in roster order, (client, offer digest) of its members."""
    parts = [_LEAF, index.to_bytes(4, "little")]
    for client, offer in members:
        name = client.encode()
        parts += (len(name).to_bytes(1, "little"), name, offer)
    return b"".join(parts)
