"""What does a verified message mean for the coordinator? It depends on the queue that it came through."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.events import (
    ControlArrived,
    Event,
    GroupReplyArrived,
    JobArrived,
    OfferArrived,
    StatusArrived,
    SumArrived,
)
from shared.incoming import Received
from shared.wire.group_messages import Agreement, GivenUp, GroupJob, Reveal, Shares, Sum, Words
from shared.wire.messages import Control, Offer, Status
from shared.wire.topology import Names


def event_of(one: Received, queue: str, names: Names, stage_id: str, clock_us: Callable[[], int]) -> Event | None:
    """The event for the machines; None for a message that has no business in this queue."""
    opened = one.opened
    match opened.message:
        case Offer() as offer if queue == names.offers:
            return OfferArrived(opened.sender, offer, opened.digest, opened.frame, one.receipt)
        case Status() as status if queue == names.offers:
            return StatusArrived(opened.sender, status, opened.frame)
        case Control() as control if queue == names.offers:
            return ControlArrived(control, clock_us(), one.receipt)
        case GroupJob() as job if queue == names.groups:
            return JobArrived(job, one.receipt)
        case Sum() | GivenUp() as end if queue == names.sums:
            return SumArrived(end, one.receipt)
        case Shares() | Words() | Agreement() | Reveal() as reply if queue == names.stage(stage_id):
            return GroupReplyArrived(opened.sender, reply, opened.frame)
        case _:
            return None
