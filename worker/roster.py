"""Is this group one that we may mask an update for? What a member checks, against its own log and policy.

Nothing is taken from the message that could be looked up: the draw, the model, the identities.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.crypto import merkle
from shared.crypto.draw import group_leaf
from shared.directory import Directory
from shared.errors import RefusalReason, RemoteProtocolError
from shared.modellog.chain import ChainState
from shared.plan import Plan
from shared.wire.framing import Opener
from shared.wire.messages import Member, Offer, Roster
from worker.policy import Policy


@dataclass(frozen=True, slots=True)
class Ground:
    """What a roster is checked against: our log, our plan, our directory, our policy."""

    chain: ChainState
    plan: Plan
    directory: Directory
    opener: Opener
    policy: Policy


def check_roster(roster: Roster, ground: Ground, client: str, offer: bytes | None) -> tuple[int, tuple[Offer, ...]]:
    """Return our place in a group of the open draw, and the offers of all members in its order.

    Args:
        roster: of the draw that the log has accepted last.
        ground: what it must agree with.
        client: who asks.
        offer: frame of its open offer, None if it has none.

    Raises:
        RemoteProtocolError: we do not take part; the reason and the detail say why.
    """
    chain, plan, group = ground.chain, ground.plan, roster.group
    draw = chain.draw
    assert draw is not None
    if roster.version != chain.version or roster.groups != draw.groups:
        raise RemoteProtocolError(RefusalReason.WRONG_PARENT, "the roster contradicts its draw")
    if not plan.group_size <= len(group.members) <= plan.members_max:
        detail = f"{len(group.members)} members, the plan has {plan.group_size} to {plan.members_max}"
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, detail)
    merkle.verify_path(draw.root, group_leaf(group.index, group.leaf), group.index, draw.groups, group.path)
    clients = [member.client for member in group.members]
    if clients.count(client) != 1:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "the roster is another client's")
    place = clients.index(client)
    if offer is None:
        raise RemoteProtocolError(RefusalReason.STALE, "no offer of this client is open")
    if group.members[place].offer != offer:
        raise RemoteProtocolError(RefusalReason.STALE, "the roster names another offer of this client")
    ground.policy.check_members(clients, ground.directory)
    offers = tuple(_open_offer(member, ground) for member in group.members)
    _check_distinct(clients, offers)
    return place, offers


def _open_offer(member: Member, ground: Ground) -> Offer:
    """A member's offer, signed under its identity key, for the model that our own log holds."""
    opened = ground.opener.open(member.offer)
    offer = opened.message
    if not isinstance(offer, Offer) or opened.sender != member.client:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, f"no offer of {member.client}")
    if (offer.trained_version, offer.attempt) != (ground.chain.version, ground.chain.attempt):
        raise RemoteProtocolError(RefusalReason.STALE, f"{member.client} offers for another round")
    if offer.trained_head != ground.chain.version_head:
        raise RemoteProtocolError(RefusalReason.WRONG_PARENT, f"{member.client} was shown another model")
    if (offer.keys is None) != (ground.plan.group_size == 1):
        raise RemoteProtocolError(RefusalReason.MALFORMED, f"{member.client} offers without one-time keys")
    return offer


def _check_distinct(clients: list[str], offers: tuple[Offer, ...]) -> None:
    keys = [key for offer in offers if offer.keys for key in (offer.keys.sealing, offer.keys.masking)]
    if len(set(clients)) != len(clients) or len(set(keys)) != len(keys):
        raise RemoteProtocolError(RefusalReason.DUPLICATE, "a client or a one-time key stands in the roster twice")
