"""What every party of a round computes for itself from plan and log, and takes from no message."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.codec.coordinates import coordinates_digest
from shared.crypto.transcript import GroupContext, group_transcript
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.wire.group_messages import Group


@dataclass(frozen=True, slots=True)
class Ground:
    """What a group stands on: the plan and directory it was made under, and the round's coordinates."""

    plan: Plan
    plan_digest: bytes
    directory_digest: bytes
    coordinates_digest: bytes


def ground_of(log: LogReader, draw: bytes) -> Ground:
    """The ground of the present round, whose draw has the entry `draw`, from a log reader that has begun."""
    assert log.plan is not None
    coordinates = log.coordinates_of(draw)
    # All coordinates: the plan's digest already says so.
    digest = bytes(32) if coordinates is None else coordinates_digest(coordinates, log.plan.dimension)
    return Ground(log.plan, log.plan_digest, log.directory_digest, digest)


def staleness_weight(staleness: int) -> float:
    """a in (0, 1], by which an update counts that is so many versions older than its draw.

    Reference: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation (2022), section 5.
    """
    return 1.0 / math.sqrt(1.0 + staleness)


def transcript_of(ground: Ground, draw: bytes, version: int, group: Group) -> bytes:
    """H of one group (32 bytes), see `shared.crypto.transcript`."""
    return group_transcript(
        GroupContext(
            federation=ground.plan.federation_id,
            plan_digest=ground.plan_digest,
            draw_hash=draw,
            group=group.index,
            version=version,
            directory_digest=ground.directory_digest,
            coordinates_digest=ground.coordinates_digest,
            threshold=ground.plan.threshold(len(group.members)),
            members=group.leaf,
        )
    )
