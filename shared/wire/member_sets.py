"""How is a set of members written? One bit per place in their roster, the lowest bit first, nothing beyond n."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from shared.errors import RefusalReason, RemoteProtocolError


def encode_members(places: Iterable[int], members: int) -> bytes:
    """Encode places (0 to `members` - 1) as ceil(members / 8) bytes."""
    bits = 0
    for place in places:
        bits |= 1 << place
    return bits.to_bytes(-(-members // 8), "little")


def decode_members(data: bytes, members: int) -> frozenset[int]:
    """Decode what `encode_members` wrote; every set has exactly one form.

    Raises:
        RemoteProtocolError: another length (`WRONG_SIZE`), or a place that no member has (`OUT_OF_RANGE`).
    """
    if len(data) != -(-members // 8):
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"a set of {members} members in {len(data)} bytes")
    bits = int.from_bytes(data, "little")
    if bits >> members:
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"a member beyond the {members} of the roster")
    return frozenset(place for place in range(members) if bits >> place & 1)


def participants_digest(places: Iterable[int], members: int) -> bytes:
    """What stands for a set of participants in key derivations (32 bytes)."""
    return hashlib.sha256(encode_members(places, members)).digest()
