"""How far is a member in its group, and what moves it?

    state     event         next      what leaves
    ────────  ────────────  ────────  ──────────────────────────────────────────────────────────────────────────
    out       roster        shared    checked (`worker.roster`); shares of two secrets, sealed to each other member
    out       roster of 1   spending  as after `participants`: nothing is masked
    shared    participants  spending  words are made and masked over the participants; they wait for the disk
    spending  spent         masked    the words
    masked    arrived       agreed    a signature, once, under (H, P, A): participants and whose words arrived
    agreed    unmask        revealed  against t such signatures: of those in A the share of the self mask, of the other
                                      participants the share of the masking key; never both of one client
    any       closed        out       nothing: the secrets are forgotten

An event that is not in `TRANSITIONS` moves nothing.
"""

from __future__ import annotations

from enum import StrEnum


class MemberState(StrEnum):
    """How far a member is in its group."""

    OUT = "out"
    SHARED = "shared"
    SPENDING = "spending"
    MASKED = "masked"
    AGREED = "agreed"
    REVEALED = "revealed"


class Step(StrEnum):
    """What moves a member."""

    ROSTER = "roster"
    PARTICIPANTS = "participants"
    SPENT = "spent"
    ARRIVED = "arrived"
    UNMASK = "unmask"
    CLOSED = "closed"


TRANSITIONS: dict[tuple[MemberState, Step], tuple[MemberState, ...]] = {
    (MemberState.OUT, Step.ROSTER): (MemberState.SHARED, MemberState.SPENDING),
    (MemberState.SHARED, Step.PARTICIPANTS): (MemberState.SPENDING,),
    (MemberState.SPENDING, Step.SPENT): (MemberState.MASKED,),
    (MemberState.MASKED, Step.ARRIVED): (MemberState.AGREED,),
    (MemberState.AGREED, Step.UNMASK): (MemberState.REVEALED,),
    **{(state, Step.CLOSED): (MemberState.OUT,) for state in MemberState if state is not MemberState.OUT},
}
