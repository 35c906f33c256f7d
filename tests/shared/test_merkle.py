"""The tree is RFC 6962's, every leaf can be proved, and nothing else can."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto import merkle
from shared.errors import RefusalReason, RemoteProtocolError

# Leaves, roots of the first 1 to 8 leaves, and inclusion paths (leaf from 0, tree size): the reference vectors of
# Certificate Transparency (google/certificate-transparency, cpp/merkletree/merkle_tree_test.cc), which all
# implementations of RFC 6962 share.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}

trees = st.lists(st.binary(max_size=4), min_size=1, max_size=40)


def reference_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + reference_root(leaves[:split]) + reference_root(leaves[split:])).digest()


def test_roots_are_those_of_certificate_transparency() -> None:
    assert merkle.root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [merkle.root(LEAVES[: n + 1]).hex() for n in range(8)] == ROOTS


def test_paths_are_those_of_certificate_transparency() -> None:
    found = {(leaf, size): [node.hex() for node in merkle.path(LEAVES[:size], leaf)] for leaf, size in PATHS}
    assert found == PATHS


@given(leaves=trees)
def test_roots_and_paths_hold_for_every_size(leaves: list[bytes]) -> None:
    root = merkle.root(leaves)
    assert root == reference_root(leaves)
    assert merkle.paths(leaves) == tuple(merkle.path(leaves, index) for index in range(len(leaves)))
    for index, leaf in enumerate(leaves):
        merkle.verify_path(root, leaf, index, len(leaves), merkle.path(leaves, index))


@given(leaves=trees, data=st.data())
def test_another_leaf_root_or_path_is_refused(leaves: list[bytes], data: st.DataObject) -> None:
    root, count = merkle.root(leaves), len(leaves)
    index = data.draw(st.integers(0, count - 1))
    path = merkle.path(leaves, index)
    forgeries = [(root, leaves[index] + b"x", index, count, path), (bytes(32), leaves[index], index, count, path)]
    forgeries.append((root, leaves[index], index, count, (*path, bytes(32))))
    if path:
        turned = bytes([path[-1][0] ^ 1]) + path[-1][1:]
        forgeries.append((root, leaves[index], index, count, (*path[:-1], turned)))
        forgeries.append((root, leaves[index], index, count, path[:-1]))
        forgeries.append((root, leaves[index], index, count, (*path[:-1], path[-1][:31])))
    for forgery in forgeries:
        with pytest.raises(RemoteProtocolError):
            merkle.verify_path(*forgery)


@pytest.mark.parametrize("index", range(8))
def test_a_path_proves_one_place_only(index: int) -> None:
    root, path = merkle.root(LEAVES), merkle.path(LEAVES, index)
    for other in set(range(8)) - {index}:
        with pytest.raises(RemoteProtocolError):
            merkle.verify_path(root, LEAVES[index], other, 8, path)


@pytest.mark.parametrize(("index", "count"), [(-1, 8), (8, 8), (0, 0)])
def test_places_outside_the_tree_are_refused(index: int, count: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        merkle.verify_path(merkle.root(LEAVES), LEAVES[0], index, count, merkle.path(LEAVES, 0))
    assert caught.value.reason is RefusalReason.MALFORMED
    with pytest.raises(IndexError):
        merkle.path(LEAVES[:count], index)


def test_an_inner_node_does_not_pass_for_a_leaf() -> None:
    # Without the prefixes, the two hashes of a pair, joined, would be a "leaf" one level up (RFC 6962, section 2.1).
    inner = b"".join(hashlib.sha256(b"\0" + leaf).digest() for leaf in LEAVES[:2])
    with pytest.raises(RemoteProtocolError) as caught:
        merkle.verify_path(merkle.root(LEAVES[:4]), inner, 0, 2, merkle.path(LEAVES[:4], 0)[1:])
    assert caught.value.reason is RefusalReason.NOT_ALLOWED
