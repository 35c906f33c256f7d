"""What do messages of a plan look like, so that their bytes can be counted before there are any?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from shared.plan import Plan
from shared.wire.group_messages import COMMITMENTS_BYTES, SHARE_BOX_BYTES, SHARE_BYTES, Agreement, Reveal, Shares, Words
from shared.wire.log_messages import ChangeEntry, SnapshotEntry
from shared.wire.member_sets import encode_members
from shared.wire.messages import Message, Offer, PublicKeys, RunState

Where = Literal["round", "listed", "all"]
"""What a change entry's body covers."""

HASH = bytes(32)
POINT = b"\x09".ljust(32, b"\0")
"""A public key: X25519's base point."""

LARGE = (1 << 31) - 1
"""Stands for a counter that has risen: small numbers are encoded shorter."""


def offer(plan: Plan) -> Offer:
    """What a client offers with."""
    return Offer(
        attempt=0,
        trained_version=LARGE,
        trained_head=HASH,
        counter=LARGE,
        nonce=bytes(16),
        worker="w" + "0" * 12,
        keys=None if plan.group_size == 1 else PublicKeys(sealing=POINT, masking=POINT),
    )


def words(members: int) -> Callable[[bytes], Words]:
    """A piece of words with this body, in a group of `members`."""
    everybody = encode_members(range(members), members)
    return lambda body: Words(transcript=HASH, participants=everybody, part=0, parts=1, body=body)


def group_replies(plan: Plan, members: int) -> tuple[Message, ...]:
    """What a member sends beside its words; nothing in a group of one."""
    if plan.group_size == 1:
        return ()
    everybody = encode_members(range(members), members)
    return (
        Shares(
            transcript=HASH,
            boxes=bytes((members - 1) * SHARE_BOX_BYTES),
            commitments=bytes(members * COMMITMENTS_BYTES),
            seed_commitment=HASH,
        ),
        Agreement(transcript=HASH, participants=everybody, arrived=everybody),
        Reveal(transcript=HASH, shares=bytes(members * SHARE_BYTES)),
    )


def change(plan: Plan, groups: int, coordinates: Where) -> ChangeEntry:
    """A change without its body."""
    return ChangeEntry(
        parent=HASH,
        term=1,
        version=plan.round.rounds,
        draw=HASH,
        groups=tuple(range(groups)),
        weights_sha256=HASH,
        clipping_norm=plan.codec.clipping_norm,
        coordinates=coordinates,
    )


def snapshot(plan: Plan) -> SnapshotEntry:
    """A snapshot without its body."""
    return SnapshotEntry(
        parent=HASH,
        term=1,
        version=plan.round.rounds,
        version_head=HASH,
        earlier_heads=(HASH,) * min(plan.round.rounds, plan.round.staleness_max),
        attempt=0,
        weights_sha256=HASH,
        clipping_norm=plan.codec.clipping_norm,
        plan=plan.encode(),
        directory_number=1,
        directory_digest=HASH,
        directory=(HASH,),
        run=RunState.RUNNING,
        controlled_us=0,
    )
