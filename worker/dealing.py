"""What does a member make of its secrets for the others of its group, and of theirs for itself?

A *dealer* shares the seed of its self mask and the seed of its masking key among all members, itself included, and
seals each other one's pair of shares to it. All here are pure functions of secrets and of public values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shared.crypto import shamir
from shared.crypto.commitments import COMMITMENT_BYTES, Secret, seed_commitment, share_commitment
from shared.crypto.keys import OneTimeKeys, pair_mask_key, sealing_key, self_mask_key
from shared.crypto.masks import MaskKeys, member_mask_keys
from shared.crypto.sealing import TAG_BYTES, open_sealed, seal
from shared.crypto.shamir import SHARE_BYTES
from shared.errors import RefusalReason, RemoteProtocolError
from shared.wire.group_messages import Shares
from shared.wire.member_sets import participants_digest
from shared.wire.messages import PublicKeys

BOX_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""What one dealer seals to one receiver."""

Entropy = Callable[[int], bytes]
"""Gives so many fresh random bytes of a cryptographic generator."""

SharePair = tuple[bytes, bytes]
"""A receiver's shares of a dealer's self-mask seed and of its masking-key seed."""


def fresh_keys(entropy: Entropy) -> OneTimeKeys:
    """The key pairs of one offer. In memory only: never written, never logged."""
    return OneTimeKeys(sealing_seed=entropy(32), masking_seed=entropy(32))


def public_keys(keys: OneTimeKeys) -> PublicKeys:
    """Their public halves, which the offer carries."""
    return PublicKeys(sealing=keys.sealing_public, masking=keys.masking_public)


@dataclass(frozen=True, slots=True)
class Ring:
    """One group as all members see it: H, t, in roster order the members and their public keys; and `me`, our place."""

    transcript: bytes
    threshold: int
    clients: tuple[str, ...]
    keys: tuple[PublicKeys, ...]
    me: int

    @property
    def others(self) -> tuple[int, ...]:
        """All places but ours."""
        return tuple(place for place in range(len(self.clients)) if place != self.me)


@dataclass(frozen=True, slots=True)
class Dealt:
    """What we have dealt: the message to all, our self-mask seed, and the shares that we keep of our own secrets."""

    shares: Shares
    seed: bytes = field(repr=False)
    own: SharePair = field(repr=False)


def deal(ring: Ring, keys: OneTimeKeys, entropy: Entropy) -> Dealt:
    """Share our two secrets in a group.

    Raises:
        RemoteProtocolError: a member's public key is not one.
    """
    members, needed = len(ring.clients), shamir.randomness_bytes(ring.threshold)
    seed = entropy(shamir.SECRET_BYTES)
    self_shares = shamir.split(seed, ring.threshold, members, entropy(needed))
    key_shares = shamir.split(keys.masking_seed, ring.threshold, members, entropy(needed))
    boxes, commitments = [], []
    for place, pair in enumerate(zip(self_shares, key_shares, strict=True)):
        commitments.append(_commitments(ring, ring.me, place, pair))
        if place != ring.me:
            boxes.append(seal(_box_key(ring, keys, ring.me, place), b"".join(pair), ring.transcript))
    message = Shares(
        transcript=ring.transcript,
        boxes=b"".join(boxes),
        commitments=b"".join(commitments),
        seed_commitment=seed_commitment(ring.transcript, ring.me, seed),
    )
    return Dealt(message, seed, (self_shares[ring.me], key_shares[ring.me]))


def open_shares(ring: Ring, keys: OneTimeKeys, dealer: int, box: bytes, commitments: bytes) -> SharePair:
    """What `dealer` sealed to us.

    Args:
        box: from its `Shares`.
        commitments: those of the same message to our two shares.

    Raises:
        RemoteProtocolError: it does not open, holds no shares, or not the committed ones.
    """
    if len(box) != BOX_BYTES or len(commitments) != 2 * COMMITMENT_BYTES:
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"{len(box)} bytes sealed by {ring.clients[dealer]}")
    plain = open_sealed(_box_key(ring, keys, dealer, ring.me), box, ring.transcript)
    pair = (plain[:SHARE_BYTES], plain[SHARE_BYTES:])
    for share in pair:
        shamir.check_share(share)
    if _commitments(ring, dealer, ring.me, pair) != commitments:
        raise RemoteProtocolError(RefusalReason.BAD_SEAL, f"{ring.clients[dealer]} sealed other shares")
    return pair


def mask_keys(ring: Ring, keys: OneTimeKeys, seed: bytes, participants: frozenset[int]) -> MaskKeys:
    """Keys of the masks over our words: our self mask, and one per other participant.

    Raises:
        RemoteProtocolError: a member's public key is not one.
    """
    me, named = ring.clients[ring.me], participants_digest(participants, len(ring.clients))
    pairs = {}
    for place in sorted(participants - {ring.me}):
        secret = keys.masking_secret(ring.keys[place].masking)
        pairs[place] = pair_mask_key(secret, ring.transcript, (me, ring.clients[place]), named)
    return member_mask_keys(ring.me, self_mask_key(seed, ring.transcript, me), pairs)


def _commitments(ring: Ring, dealer: int, receiver: int, pair: SharePair) -> bytes:
    kinds = zip((Secret.SELF_MASK, Secret.MASKING_KEY), pair, strict=True)
    return b"".join(share_commitment(ring.transcript, kind, dealer, receiver, share) for kind, share in kinds)


def _box_key(ring: Ring, keys: OneTimeKeys, sender: int, receiver: int) -> bytes:
    """One key per group, sender and receiver: it seals one box and no other."""
    peer = sender if receiver == ring.me else receiver
    secret = keys.sealing_secret(ring.keys[peer].sealing)
    return sealing_key(secret, ring.transcript, ring.clients[sender], ring.clients[receiver])
