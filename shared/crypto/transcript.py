"""What exactly do the members of one group agree on? The transcript hash H, which binds all they sign and seal.

H goes into every signature, associated data and key derivation of the group: two members that hold different
views of the group (another roster, another plan, another model, another threshold) share no valid word.

The encoding is unambiguous: every field is a length (4 bytes, big endian) and its bytes, in a fixed order; integers are
8 bytes, big endian; the members stand behind their number. Two different contexts therefore never give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from shared.identity import ClientId

DIGEST_BYTES = 32

_TAG = b"comitia/1/group"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupContext:
    """All that the members of a group must see alike. Digests are SHA-256 (32 bytes).

    `draw_hash` is the hash of the draw's log entry, `group` the group's index in that draw, `version` the draw's
    model version, `threshold` t; `members` are (client, digest of its offer) in the order of the roster.
    """

    federation: UUID
    plan_digest: bytes
    draw_hash: bytes
    group: int
    version: int
    directory_digest: bytes
    coordinates_digest: bytes
    threshold: int
    members: tuple[tuple[ClientId, bytes], ...]


def group_transcript(context: GroupContext) -> bytes:
    """Hash a group's context (32 bytes).

    Guarantee: collision-free as far as SHA-256 is, since the encoding is injective.

    Raises:
        ValueError: a digest is not 32 bytes, or an integer is negative or above 64 bits.
    """
    transcript = hashlib.sha256()
    for field in _fields(context):
        transcript.update(len(field).to_bytes(4, "big"))
        transcript.update(field)
    return transcript.digest()


def _fields(context: GroupContext) -> Iterator[bytes]:
    yield _TAG
    yield context.federation.bytes
    yield _digest(context.plan_digest)
    yield _digest(context.draw_hash)
    yield _integer(context.group)
    yield _integer(context.version)
    yield _digest(context.directory_digest)
    yield _digest(context.coordinates_digest)
    yield _integer(context.threshold)
    yield _integer(len(context.members))
    for client, offer_digest in context.members:
        yield client.encode()
        yield _digest(offer_digest)


def _digest(value: bytes) -> bytes:
    if len(value) != DIGEST_BYTES:
        raise ValueError(f"a digest has {DIGEST_BYTES} bytes, not {len(value)}")
    return value


def _integer(value: int) -> bytes:
    if not 0 <= value < 1 << 64:
        raise ValueError("an integer of the transcript lies outside 64 bits")
    return value.to_bytes(8, "big")
