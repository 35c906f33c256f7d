"""How does a dealer bind itself to the shares that it deals, so that a bad dealer or a wrong reveal is named?

A commitment is a hash over the group's transcript hash H, the dealer's place, and what is committed to. It binds as the
hash does. It hides because what stands behind it is uniformly random: a share is an element of a field of about
2**256, a seed 32 bytes.
"""

from __future__ import annotations

import hashlib
from enum import Enum

from shared.crypto.shamir import SHARE_BYTES

COMMITMENT_BYTES = 32

NO_SHARE = b"\xff" * SHARE_BYTES
"""Stands for a share that a member does not hold: above the field's prime, so it is never one."""

_TAG = b"comitia/1/commitment\0"


class Secret(Enum):
    """The two secrets of a dealer. Of one dealer, shares of only one of them are ever revealed."""

    SELF_MASK = b"self mask\0"
    MASKING_KEY = b"masking key\0"


def share_commitment(transcript: bytes, secret: Secret, dealer: int, receiver: int, share: bytes) -> bytes:
    """Commit to the share (33 bytes) of a dealer's secret that a receiver gets; places are those in the roster."""
    places = dealer.to_bytes(4, "big") + receiver.to_bytes(4, "big")
    return hashlib.sha256(_TAG + transcript + secret.value + places + share).digest()


def seed_commitment(transcript: bytes, dealer: int, seed: bytes) -> bytes:
    """Commit to a dealer's self-mask seed itself (32 bytes)."""
    return hashlib.sha256(_TAG + transcript + b"seed\0" + dealer.to_bytes(4, "big") + seed).digest()
