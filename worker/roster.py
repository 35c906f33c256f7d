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
from shared.wire.group_messages import Member, Roster
from shared.wire.messages import Offer
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
    check_draw(roster, chain.version, draw.groups)
    check_size(len(group.members), plan)
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
    check_distinct(clients, offers)
    return place, offers


def check_draw(roster: Roster, version: int, groups: int) -> None:
    """The roster says of its draw what our log says.

    Raises:
        RemoteProtocolError: `WRONG_PARENT`.
    """
    if roster.version != version or roster.groups != groups:
        raise RemoteProtocolError(RefusalReason.WRONG_PARENT, "the roster contradicts its draw")


def check_size(members: int, plan: Plan) -> None:
    """The draw may make groups of this size.

    Raises:
        RemoteProtocolError: `OUT_OF_RANGE`.
    """
    if not plan.group_size <= members <= plan.members_max:
        detail = f"{members} members, the plan has {plan.group_size} to {plan.members_max}"
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, detail)


def check_round(client: str, offer: Offer, chain: ChainState, plan: Plan) -> None:
    """The offer is for this attempt at this version: one of a draw before serves no more.

    In asynchronous mode it outlives attempts, and versions up to the staleness that is allowed.

    Raises:
        RemoteProtocolError: `STALE`.
    """
    if plan.round.mode == "async":
        if not 0 <= chain.version - offer.trained_version <= plan.round.staleness_max:
            raise RemoteProtocolError(RefusalReason.STALE, f"{client} offers what is too stale")
    elif (offer.trained_version, offer.attempt) != (chain.version, chain.attempt):
        raise RemoteProtocolError(RefusalReason.STALE, f"{client} offers for another round")


def check_model(client: str, offer: Offer, chain: ChainState) -> None:
    """The offer was trained on the model that our own log holds.

    Raises:
        RemoteProtocolError: `WRONG_PARENT`.
    """
    if offer.trained_head != chain.head_of(offer.trained_version):
        raise RemoteProtocolError(RefusalReason.WRONG_PARENT, f"{client} was shown another model")


def _open_offer(member: Member, ground: Ground) -> Offer:
    """A member's offer, signed under its identity key, for the model that our own log holds."""
    opened = ground.opener.open(member.offer)
    offer = opened.message
    if not isinstance(offer, Offer) or opened.sender != member.client:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, f"no offer of {member.client}")
    check_round(member.client, offer, ground.chain, ground.plan)
    check_model(member.client, offer, ground.chain)
    if (offer.keys is None) != (ground.plan.group_size == 1):
        raise RemoteProtocolError(RefusalReason.MALFORMED, f"{member.client} offers without one-time keys")
    return offer


def check_distinct(clients: list[str], offers: tuple[Offer, ...]) -> None:
    """Nobody stands in a roster twice, and no one-time key does.

    Raises:
        RemoteProtocolError: `DUPLICATE`.
    """
    keys = [key for offer in offers if offer.keys for key in (offer.keys.sealing, offer.keys.masking)]
    if len(set(clients)) != len(clients) or len(set(keys)) != len(keys):
        raise RemoteProtocolError(RefusalReason.DUPLICATE, "a client or a one-time key stands in the roster twice")
