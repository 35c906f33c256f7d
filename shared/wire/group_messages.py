"""What a group's members and the stage that sums it say to each other, and how a group ends: one type per arrow."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from shared.identity import Name
from shared.wire.messages import (
    MEMBERS_MAX,
    OFFER_BYTES_MAX,
    PIECES_MAX,
    GroupCount,
    GroupIndex,
    Hash,
    Kind,
    Message,
    PieceBytes,
    Role,
    Version,
)

SHARE_BYTES = 33
"""One Shamir share on the wire."""

SHARE_BOX_BYTES = 2 * SHARE_BYTES + 16
"""The two shares that a dealer seals to one receiver."""

COMMITMENTS_BYTES = 64
"""A dealer's commitments to the two shares of one member."""

MemberSet = Annotated[bytes, Field(min_length=1, max_length=MEMBERS_MAX // 8)]


class Shares(Message):
    """A dealer's secrets, shared: what each other member of the roster, in its order, is to keep.

    `boxes` are sealed to their receivers; `commitments` are to the shares of every member, the dealer's own too.
    """

    kind: ClassVar[Kind] = Kind.SHARES
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    boxes: Annotated[bytes, Field(max_length=MEMBERS_MAX * SHARE_BOX_BYTES)]
    commitments: Annotated[bytes, Field(max_length=MEMBERS_MAX * COMMITMENTS_BYTES)]
    seed_commitment: Hash


class Words(Message):
    """One piece of a member's integer words, little endian, masked over the participants that it names."""

    kind: ClassVar[Kind] = Kind.WORDS
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    participants: MemberSet
    part: Annotated[int, Field(ge=0, lt=PIECES_MAX)]
    parts: Annotated[int, Field(ge=1, le=PIECES_MAX)]
    body: PieceBytes


class Agreement(Message):
    """A member's signature, once, under who took part in its group and whose words arrived."""

    kind: ClassVar[Kind] = Kind.AGREEMENT
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    participants: MemberSet
    arrived: MemberSet


class Reveal(Message):
    """A member's share of one secret of every participant, in roster order; `NO_SHARE` where it holds none."""

    kind: ClassVar[Kind] = Kind.REVEAL
    signed_by: ClassVar[Role] = Role.CLIENT

    transcript: Hash
    shares: Annotated[bytes, Field(max_length=MEMBERS_MAX * SHARE_BYTES)]


class Member(BaseModel):
    """One member of a group: its signed offer, and the worker process that speaks for it."""

    model_config = Message.model_config

    client: Name
    site: Name
    worker: Name
    offer: Annotated[bytes, Field(max_length=OFFER_BYTES_MAX)]

    @property
    def offer_digest(self) -> bytes:
        """SHA-256 of the offer's frame (32 bytes)."""
        return hashlib.sha256(self.offer).digest()


class Group(BaseModel):
    """One group of a draw and the Merkle path that proves it belongs to it."""

    model_config = Message.model_config

    index: GroupIndex
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=MEMBERS_MAX)]
    path: Annotated[tuple[Hash, ...], Field(max_length=32)]

    @property
    def leaf(self) -> tuple[tuple[str, bytes], ...]:
        """(client, offer digest) of the members: what the draw's Merkle tree and the group's transcript hold."""
        return tuple((member.client, member.offer_digest) for member in self.members)


class GroupMessage(Message):
    """What a summing stage says to one member of a group; the answer goes to that stage."""

    client: Name
    stage: Name


class Roster(GroupMessage):
    """Opens one group for one of its members."""

    kind: ClassVar[Kind] = Kind.ROSTER

    draw: Hash
    version: Version
    group: Group
    groups: GroupCount


class Participants(GroupMessage):
    """Names those whose shares arrived, and hands over what each other one of them sealed to this member.

    `boxes` and `commitments` stand in the order of the roster, one per other participant; a box that is lost is empty.
    """

    kind: ClassVar[Kind] = Kind.PARTICIPANTS

    transcript: Hash
    participants: MemberSet
    boxes: Annotated[tuple[Annotated[bytes, Field(max_length=SHARE_BOX_BYTES)], ...], Field(max_length=MEMBERS_MAX)]
    commitments: Annotated[
        tuple[Annotated[bytes, Field(max_length=COMMITMENTS_BYTES)], ...], Field(max_length=MEMBERS_MAX)
    ]


class Arrived(GroupMessage):
    """Names those whose words arrived, for the member to agree to."""

    kind: ClassVar[Kind] = Kind.ARRIVED

    transcript: Hash
    participants: MemberSet
    arrived: MemberSet


class Unmask(GroupMessage):
    """Shows that enough members have agreed (their frames), and asks for this member's shares."""

    kind: ClassVar[Kind] = Kind.UNMASK

    transcript: Hash
    agreements: Annotated[
        tuple[Annotated[bytes, Field(max_length=OFFER_BYTES_MAX)], ...], Field(max_length=MEMBERS_MAX)
    ]


class GroupJob(Message):
    """Some groups of one draw, for whichever summing stage takes them."""

    kind: ClassVar[Kind] = Kind.GROUP_JOB

    draw: Hash
    version: Version
    groups: GroupCount
    members: Annotated[tuple[Group, ...], Field(min_length=1, max_length=1024)]


class GroupEnd(Message):
    """How a group ended, from the stage that summed it to the aggregator.

    `unheard` members owed an answer at the end, `blamed` ones broke the protocol.
    """

    stage: Name
    draw: Hash
    group: GroupIndex
    unheard: tuple[Name, ...]
    blamed: tuple[Name, ...]


class Sum(GroupEnd):
    """One piece of a group's sum: words of the members `arrived`, without those `dropped`, added mod 2**b."""

    kind: ClassVar[Kind] = Kind.SUM

    arrived: tuple[Name, ...]
    dropped: tuple[Name, ...]
    part: Annotated[int, Field(ge=0, lt=PIECES_MAX)]
    parts: Annotated[int, Field(ge=1, le=PIECES_MAX)]
    body: PieceBytes


class GivenUp(GroupEnd):
    """A group ended without a sum."""

    kind: ClassVar[Kind] = Kind.GIVEN_UP

    reason: Annotated[str, Field(max_length=500)]
