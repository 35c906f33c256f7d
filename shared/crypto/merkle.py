"""How one group proves that it belongs to a draw whose entry names only a root: the Merkle tree of RFC 6962.

Leaves and inner nodes are hashed under different prefixes, so that neither can pass for the other. A level's odd last
node moves up unchanged, which gives exactly the tree of the RFC for every number of leaves.

Reference: B. Laurie, A. Langley, E. Kasper, "Certificate Transparency", RFC 6962, section 2.1; verification as in
RFC 9162, section 2.1.3.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from shared.errors import RefusalReason, RemoteProtocolError

HASH_BYTES = 32
_LEAF = b"\x00"
_NODE = b"\x01"


def root(leaves: Sequence[bytes]) -> bytes:
    """The tree's root (32 bytes). No leaves at all have the root SHA-256(b"")."""
    return _levels(leaves)[-1][0] if leaves else hashlib.sha256().digest()


def path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings (32 bytes each, from the leaf upward) that lead from leaf `index` to the root."""
    return _path(_levels(leaves), index)


def paths(leaves: Sequence[bytes]) -> tuple[tuple[bytes, ...], ...]:
    """`path` of every leaf; hashes the tree only once."""
    levels = _levels(leaves)
    return tuple(_path(levels, index) for index in range(len(leaves)))


def verify_path(root: bytes, leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> None:
    """Return if `leaf` is number `index` of the `count` leaves under `root`.

    Raises:
        RemoteProtocolError: index outside the tree or a path of the wrong length (`MALFORMED`),
            or a path that leads to another root (`NOT_ALLOWED`).
    """
    if not 0 <= index < count:
        raise RemoteProtocolError(RefusalReason.MALFORMED, f"leaf {index} of {count}")
    node = _hash_leaf(leaf)
    siblings = iter(path)
    wrong_path = f"Merkle path of {len(path)} hashes, for leaf {index} of {count}"
    last = count - 1
    while last:
        # The odd last node of a level has no sibling and moves up as it is.
        if index % 2 or index < last:
            sibling = next(siblings, None)
            if sibling is None or len(sibling) != HASH_BYTES:
                raise RemoteProtocolError(RefusalReason.MALFORMED, wrong_path)
            node = _hash_node(sibling, node) if index % 2 else _hash_node(node, sibling)
        index //= 2
        last //= 2
    if next(siblings, None) is not None:
        raise RemoteProtocolError(RefusalReason.MALFORMED, wrong_path)
    if node != root:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "the Merkle path leads to another root")


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    levels = [[_hash_leaf(leaf) for leaf in leaves]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        above = [_hash_node(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
        levels.append(above + below[2 * len(above) :])
    return levels


def _path(levels: Sequence[Sequence[bytes]], index: int) -> tuple[bytes, ...]:
    if not 0 <= index < len(levels[0]):
        raise IndexError(f"leaf {index} of {len(levels[0])}")
    siblings = ((index >> height) ^ 1 for height in range(len(levels) - 1))
    return tuple(level[at] for level, at in zip(levels, siblings, strict=False) if at < len(level))


def _hash_leaf(leaf: bytes) -> bytes:
    return hashlib.sha256(_LEAF + leaf).digest()


def _hash_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()
