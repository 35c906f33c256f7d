"""What must hold before a member of a group masks, signs or reveals? One function per rule.

What each of them keeps a coordinator from, `shared/docs/threat-model.md` tells, and the tests of hostile coordinators
show: each attack there succeeds when its rule is switched off.
"""

from __future__ import annotations

from collections.abc import Collection

from shared.errors import RefusalReason, RemoteProtocolError
from shared.wire.group_messages import Agreement


def check_group(asked: bytes, ours: bytes, what: str) -> None:
    """A message names the transcript hash of our group, and with it plan, draw, model, coordinates, t and roster.

    Raises:
        RemoteProtocolError: it is of another group, version, or view of the plan (`WRONG_PARENT`).
    """
    if asked != ours:
        raise RemoteProtocolError(RefusalReason.WRONG_PARENT, f"{what} of another group")


def check_takes_part(place: int, participants: frozenset[int]) -> None:
    """We mask only over sets that hold us.

    Raises:
        RemoteProtocolError: `NOT_ALLOWED`.
    """
    if place not in participants:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "we are not among the participants")


def check_enough(members: Collection[int], floor: int, what: str) -> None:
    """Neither masks nor sums stand on fewer members than plan and policy ask for.

    Raises:
        RemoteProtocolError: `POLICY`.
    """
    if len(members) < floor:
        raise RemoteProtocolError(RefusalReason.POLICY, f"{len(members)} {what}, {floor} needed")


def check_same_participants(named: bytes, masked_over: bytes) -> None:
    """We sign only the participants that we masked over.

    Raises:
        RemoteProtocolError: `NOT_ALLOWED`.
    """
    if named != masked_over:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "other participants than we masked over")


def check_arrived_took_part(arrived: frozenset[int], participants: frozenset[int]) -> None:
    """Whose words arrived has dealt, and is one of those that we masked over.

    Raises:
        RemoteProtocolError: `NOT_ALLOWED`.
    """
    if not arrived <= participants:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "somebody arrived who is no participant")


def check_arrived(place: int, arrived: frozenset[int]) -> None:
    """We sign only that we arrived: nobody signs its own masking key away.

    Raises:
        RemoteProtocolError: `NOT_ALLOWED`.
    """
    if place not in arrived:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "we are not among those who arrived")


def is_same_agreement(message: Agreement, transcript: bytes, sets: bytes) -> bool:
    """Whether it is about the same group and the same sets."""
    return message.transcript == transcript and message.participants + message.arrived == sets


def may_agree(signer: str, arrived: Collection[str]) -> bool:
    """Whether a signature counts: only of those who are said to have arrived, who lose by a lie about it."""
    return signer in arrived


def check_quorum(signers: Collection[str], threshold: int) -> None:
    """Nothing is revealed before t distinct members have signed the same (H, P, A).

    Raises:
        RemoteProtocolError: `NOT_ALLOWED`.
    """
    if len(signers) < threshold:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, f"{len(signers)} valid agreements, {threshold} needed")
