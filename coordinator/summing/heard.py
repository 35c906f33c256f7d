"""What have the members of one group said so far? One of each message per member, checked against what came before.

Bounded by the group: nothing of a member is kept twice, and a vector takes its memory when its first piece comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.codec.quantize import SumFormat
from shared.codec.quantize import Words as WordVector
from shared.crypto import shamir
from shared.crypto.commitments import COMMITMENT_BYTES, NO_SHARE, Secret, seed_commitment, share_commitment
from shared.errors import RefusalReason, RemoteProtocolError
from shared.wire.group_messages import SHARE_BOX_BYTES, Agreement, Reveal, Shares, Words
from shared.wire.member_sets import decode_members
from shared.wire.pieces import PieceCollector, check_piece


@dataclass(slots=True)
class MaskedWords:
    """One member's words as they come in, masked over the participants that they name."""

    participants: bytes
    pieces: PieceCollector


class Heard:
    """The members' messages by their places in the roster."""

    def __init__(
        self, members: int, form: SumFormat, transcript: bytes, floor: int, believed: int = 2, positions_bytes: int = 0
    ) -> None:
        """
        Args:
            floor: fewest members that an honest one lets itself be summed with, itself included.
            believed: so many members have to say the same of what another stage has chosen.
        """
        self._floor = floor
        self._believed = believed
        self._size = form.length * form.word_type.itemsize + positions_bytes
        self._members = members
        self._form = form
        self._transcript = transcript
        self.shares: dict[int, Shares] = {}
        self.words: dict[int, MaskedWords] = {}
        self.agreements: dict[int, tuple[tuple[bytes, bytes], bytes]] = {}
        self.reveals: set[int] = set()
        self.revealed: dict[int, dict[int, bytes]] = {}

    # ── what is taken ────────────────────────────────────────────────────────────────────────────────────────────────

    def take_shares(self, place: int, shares: Shares) -> None:
        """
        Raises:
            RemoteProtocolError: said before, or not one box and two commitments per member.
        """
        _once(place, self.shares)
        sizes = (len(shares.boxes), len(shares.commitments))
        if sizes != ((self._members - 1) * SHARE_BOX_BYTES, self._members * 2 * COMMITMENT_BYTES):
            raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"{sizes} bytes of boxes and commitments")
        self.shares[place] = shares

    def take_words(self, place: int, words: Words) -> None:
        """Take one piece of a member's words.

        Raises:
            RemoteProtocolError: of another size, said before, or masked over a set that cannot be or over two sets.
        """
        # Before anything is kept: memory is taken for a vector that can be one.
        check_piece(self._size, words.part, words.parts, len(words.body))
        coming = self.words.get(place)
        if coming is None:
            self._check_bound(place, words.participants)
            coming = self.words[place] = MaskedWords(words.participants, PieceCollector(self._size))
        if words.participants != coming.participants:
            raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "masked over two sets of participants")
        coming.pieces.put(words.part, words.parts, words.body)

    def take_agreement(self, place: int, agreement: Agreement, frame: bytes) -> None:
        """
        Raises:
            RemoteProtocolError: said before, or sets that cannot be.
        """
        _once(place, self.agreements)
        participants = decode_members(agreement.participants, self._members)
        if not self._check_bound(place, agreement.arrived) <= participants:
            raise RemoteProtocolError(RefusalReason.MALFORMED, "who arrived is not among the participants")
        self.agreements[place] = ((agreement.participants, agreement.arrived), frame)

    def _check_bound(self, place: int, named: bytes) -> frozenset[int]:
        """The members that one says to be bound to. Sets that honest members refuse must not be taken for a choice
        that another stage has made before."""
        bound = decode_members(named, self._members)
        if place not in bound or len(bound) < self._floor:
            raise RemoteProtocolError(RefusalReason.MALFORMED, "bound to a set without itself, or to too few members")
        return bound

    def take_reveal(self, place: int, reveal: Reveal, dealers: Sequence[int], arrived: Collection[int]) -> bool:
        """Take a member's shares of one secret of each dealer: its self mask if it is among `arrived`, or its key.

        Returns:
            Whether there was one of every dealer.

        Raises:
            RemoteProtocolError: said before; or one is not the share that its dealer committed to (`BAD_SEAL`), or
                none at all: whoever reveals that breaks the protocol.
        """
        _once(place, self.reveals)
        self.reveals.add(place)
        shares = dict(self._checked(place, reveal, dealers, arrived))
        for dealer, share in shares.items():
            # Shares are the values of a polynomial at 1, 2, …; at 0 stands the secret.
            self.revealed.setdefault(dealer, {})[place + 1] = share
        return len(shares) == len(dealers)

    def _checked(
        self, place: int, reveal: Reveal, dealers: Sequence[int], arrived: Collection[int]
    ) -> Iterator[tuple[int, bytes]]:
        size = shamir.SHARE_BYTES
        if len(reveal.shares) != len(dealers) * size:
            raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"{len(reveal.shares)} bytes of shares")
        for number, dealer in enumerate(dealers):
            share = reveal.shares[number * size : (number + 1) * size]
            if share == NO_SHARE:
                continue
            shamir.check_share(share)
            secret = Secret.SELF_MASK if dealer in arrived else Secret.MASKING_KEY
            committed = self._commitment(dealer, secret, place)
            if committed and committed != share_commitment(self._transcript, secret, dealer, place, share):
                raise RemoteProtocolError(RefusalReason.BAD_SEAL, f"not the share that member {dealer} dealt")
            yield dealer, share

    def _commitment(self, dealer: int, secret: Secret, receiver: int) -> bytes:
        """What a dealer committed to; empty if it spoke to a stage that is gone, and is gone too."""
        both = self.commitments(dealer, receiver)
        return both[:COMMITMENT_BYTES] if secret is Secret.SELF_MASK else both[COMMITMENT_BYTES:]

    # ── what follows ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def complete(self) -> frozenset[int]:
        """Places whose words are all there."""
        return frozenset(place for place, coming in self.words.items() if coming.pieces.complete)

    def claimed_participants(self) -> frozenset[int]:
        """The participants that most members are bound to already, as another stage has named them; empty if those who
        say so may all be lying. (Fewer than that are no loss: others who dealt to that stage alone need more holders.)
        """
        words = {place: coming.participants for place, coming in self.words.items()}
        claims = words | {place: named[0] for place, (named, _) in self.agreements.items()}
        claim, claimants = _commonest(tuple(claims.values()))
        return decode_members(claim, self._members) if claimants >= self._believed else frozenset()

    def claimed_arrived(self, participants: bytes) -> frozenset[int]:
        """Who arrived, as most of those say who agreed over these participants, if all their words are here; empty if
        those who say so may all be lying."""
        claim, claimants = _commonest([named[1] for named, _ in self.agreements.values() if named[0] == participants])
        claimed = decode_members(claim, self._members) if claimants >= self._believed else frozenset()
        return claimed if claimed <= self.complete else frozenset()

    def agreed(self, participants: bytes, arrived: frozenset[int], named: bytes) -> dict[int, bytes]:
        """Frames of the agreements to (P, A), `named` being A's encoding, of members of A."""
        ours = (participants, named)
        return {place: frame for place, (said, frame) in self.agreements.items() if said == ours and place in arrived}

    def drop_other_words(self, participants: bytes) -> None:
        """Forget words that are masked over others than these."""
        self.words = {place: coming for place, coming in self.words.items() if coming.participants == participants}

    def vectors(self, arrived: Collection[int]) -> list[WordVector]:
        """The words of those who arrived, in roster order, as views of the buffers that they came into."""
        word_type, length = self._form.word_type, self._form.length
        buffers = [self.words[place].pieces.buffer for place in sorted(arrived)]
        return [np.frombuffer(buffer, dtype=word_type, count=length) for buffer in buffers]

    def behind(self, place: int) -> bytes:
        """What follows a member's words: its positions, where clients choose their own."""
        return bytes(self.words[place].pieces.buffer[self._form.length * self._form.word_type.itemsize :])

    def secret_of(self, dealer: int, threshold: int) -> bytes | None:
        """A dealer's secret, rebuilt from the first t shares; None if no 32 bytes come out."""
        shares = self.revealed[dealer]
        try:
            return shamir.combine({x: shares[x] for x in sorted(shares)[:threshold]}, threshold)
        except RemoteProtocolError:
            return None

    def is_seed_of(self, dealer: int, seed: bytes) -> bool:
        """Whether this is the self-mask seed that the dealer committed to, as far as its commitment is known."""
        dealt = self.shares.get(dealer)
        return dealt is None or dealt.seed_commitment == seed_commitment(self._transcript, dealer, seed)

    def box(self, dealer: int, receiver: int) -> bytes:
        """What a dealer sealed to a receiver; empty if its shares are not here."""
        dealt, place = self.shares.get(dealer), receiver - (receiver > dealer)
        return b"" if dealt is None else dealt.boxes[place * SHARE_BOX_BYTES : (place + 1) * SHARE_BOX_BYTES]

    def commitments(self, dealer: int, receiver: int) -> bytes:
        """A dealer's commitments to both shares of a receiver; empty if its shares are not here."""
        dealt, size = self.shares.get(dealer), 2 * COMMITMENT_BYTES
        return b"" if dealt is None else dealt.commitments[receiver * size : (receiver + 1) * size]


def _once(item: int, said: Collection[int]) -> None:
    if item in said:
        raise RemoteProtocolError(RefusalReason.DUPLICATE, "said before")


def _commonest(claims: Sequence[bytes]) -> tuple[bytes, int]:
    """The commonest of them, and how many there are of it; of equally common ones the largest set, so that every stage
    chooses alike."""
    counts = Counter(claims)
    best = lambda claim: (counts[claim], int.from_bytes(claim, "little").bit_count(), claim)  # noqa: E731
    commonest = max(counts, key=best, default=b"")
    return commonest, counts[commonest]
