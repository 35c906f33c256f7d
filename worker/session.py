"""What does a member hold of one group, as long as the group's draw is open? Its secrets stand here, in memory only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.crypto.commitments import NO_SHARE
from shared.crypto.keys import OneTimeKeys
from shared.errors import RemoteProtocolError
from shared.modellog.entries import cut
from shared.wire.framing import Opener
from shared.wire.group_messages import Agreement, Group, Words
from shared.wire.pieces import piece_count
from worker import rules
from worker.dealing import Dealt, Ring, SharePair
from worker.steps import Step


@dataclass(slots=True)
class Session:
    """One group while its draw is open. `bound` holds what we answered to at each step, `answers` the frames."""

    draw: bytes
    group: Group
    ring: Ring
    floor: int
    stage: str
    keys: OneTimeKeys | None = field(repr=False)
    dealt: Dealt | None = field(default=None, repr=False)
    kept: dict[int, SharePair] = field(default_factory=dict, repr=False)
    participants: frozenset[int] = frozenset()
    arrived: frozenset[int] = frozenset()
    bound: dict[Step, Group | bytes] = field(default_factory=dict)
    answers: dict[Step, tuple[bytes, ...]] = field(default_factory=dict, repr=False)
    refused: Counter[Step] = field(default_factory=Counter)

    def was_answered(self, step: Step) -> bool:
        """Whether this step has run: none runs twice."""
        return step in self.bound

    def signer_of(self, frame: bytes, opener: Opener) -> str | None:
        """Who signed the same (H, P, A) as we did; None if nobody whose words arrived did so in this frame."""
        try:
            opened = opener.open(frame)
        except RemoteProtocolError:
            return None
        message, sets = opened.message, self.bound[Step.ARRIVED]
        assert isinstance(sets, bytes)
        if not isinstance(message, Agreement) or not rules.is_same_agreement(message, self.ring.transcript, sets):
            return None
        arrived = {self.ring.clients[place] for place in self.arrived}
        return opened.sender if rules.may_agree(opened.sender, arrived) else None

    def shares_to_reveal(self) -> Iterator[bytes]:
        """Of each participant one share: of its self mask if its words arrived, of its masking key if not."""
        assert self.dealt is not None
        for place in sorted(self.participants):
            pair = self.dealt.own if place == self.ring.me else self.kept.get(place)
            self_share, key_share = pair or (NO_SHARE, NO_SHARE)
            yield self_share if place in self.arrived else key_share


def words_of(transcript: bytes, participants: bytes, view: memoryview) -> Iterator[Words]:
    """The messages that carry a member's words, masked over `participants`."""
    parts = piece_count(view.nbytes)
    for part, piece in enumerate(cut(view)):
        yield Words(transcript=transcript, participants=participants, part=part, parts=parts, body=bytes(piece))
