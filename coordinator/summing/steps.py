"""How far is the sum of one group, and what moves it?

    state      event                                      next       what is done
    ─────────  ─────────────────────────────────────────  ─────────  ────────────────────────────────────────
    shares     all have dealt, or deadline and enough     words      the others' boxes to each of them
    words      all words, or deadline and enough          agreement  who arrived, to each of those
    words      the words of a group of one                summed     nothing was masked
    agreement  t agreements to the same (P, A)            reveal     they go to those who signed them
    reveal     t shares of a secret of each participant   summed     secrets rebuilt, masks taken off
    any        deadline                                   given up   silent members are named
    reveal     a rebuilt secret is not the dealer's       given up   the dealer is named

Enough: as many as the plan lets be summed. Every 2 s the message of the present state goes again to who is silent.
"""

from __future__ import annotations

from enum import StrEnum


class GroupState(StrEnum):
    """How far the sum of one group is."""

    SHARES = "shares"
    WORDS = "words"
    AGREEMENT = "agreement"
    REVEAL = "reveal"
    SUMMED = "summed"
    GIVEN_UP = "given up"


class GroupStep(StrEnum):
    """What moves it."""

    DEALT = "dealt"
    ARRIVED = "arrived"
    AGREED = "agreed"
    OPENED = "opened"
    FAILED = "failed"


TRANSITIONS: dict[tuple[GroupState, GroupStep], tuple[GroupState, ...]] = {
    (GroupState.SHARES, GroupStep.DEALT): (GroupState.WORDS,),
    (GroupState.WORDS, GroupStep.ARRIVED): (GroupState.AGREEMENT, GroupState.SUMMED),
    (GroupState.AGREEMENT, GroupStep.AGREED): (GroupState.REVEAL,),
    (GroupState.REVEAL, GroupStep.OPENED): (GroupState.SUMMED,),
    **{
        (state, GroupStep.FAILED): (GroupState.GIVEN_UP,)
        for state in (GroupState.SHARES, GroupState.WORDS, GroupState.AGREEMENT, GroupState.REVEAL)
    },
}
