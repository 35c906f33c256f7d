"""A coordinator that lies, and all that it can compute from what members send it.

`Hub` says whatever a script asks for to members, one by one, validly signed. It knows all secrets of the colluding
members and signs in their name. `smallest_sum` tries every reconstruction: it returns the smallest set of members that
holds the victim and whose sum of words can be opened, and that sum. The victim is isolated if that set is itself alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shared.crypto import shamir
from shared.crypto.commitments import COMMITMENT_BYTES, Secret, share_commitment
from shared.crypto.keys import OneTimeKeys, agree, pair_mask_key, public_of, self_mask_key
from shared.crypto.masks import add_masks, member_mask_keys
from shared.errors import RemoteProtocolError
from shared.wire.group_messages import (
    SHARE_BOX_BYTES,
    SHARE_BYTES,
    Agreement,
    Arrived,
    Group,
    GroupMessage,
    Participants,
    Reveal,
    Roster,
    Shares,
    Unmask,
    Words,
)
from shared.wire.member_sets import decode_members, encode_members, participants_digest
from shared.wire.messages import Message, Offer, PublicKeys
from tests.protocol.circle import Circle, Letter, Party
from worker.dealing import Ring, open_shares

Place = int


@dataclass(frozen=True)
class Opening:
    """A sum that was opened: of whose words, and which words."""

    members: frozenset[Place]
    words: np.ndarray


@dataclass
class Heard:
    """What the coordinator has of one group (one transcript hash)."""

    clients: tuple[str, ...]
    keys: tuple[PublicKeys, ...]
    threshold: int
    dealt: dict[Place, Shares] = field(default_factory=dict)
    words: dict[Place, Words] = field(default_factory=dict)
    agreements: dict[tuple[Place, bytes], bytes] = field(default_factory=dict)
    reveals: list[tuple[Place, Reveal]] = field(default_factory=list)
    shares: dict[tuple[Secret, Place], dict[Place, bytes]] = field(default_factory=lambda: defaultdict(dict))


class Hub:
    """The coordinator of a circle. It can say anything, in any order, to anyone, and forgets nothing."""

    def __init__(self, circle: Circle, colluders: Iterable[str] = ()) -> None:
        self.circle = circle
        self.colluders = frozenset(colluders)
        self.secrets: dict[bytes, OneTimeKeys] = {}
        self.masking_seeds: dict[bytes, bytes] = {}
        self.groups: dict[bytes, Heard] = {}
        for client in self.colluders:
            self.corrupt(circle.parties[client])

    def corrupt(self, party: Party) -> None:
        """Take the secrets of this member's open offer."""
        keys = party.machine._keys
        assert keys is not None
        self.know(keys)

    def know(self, keys: OneTimeKeys) -> None:
        """These private keys are the coordinator's own, or a colluder's."""
        self.secrets[keys.masking_public] = keys
        self.masking_seeds[keys.masking_public] = keys.masking_seed

    # ── saying ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def say(self, message: GroupMessage) -> list[Message]:
        """Say it, signed, and hear the answers; messages that this federation cannot open do not arrive."""
        circle = self.circle
        frame = circle.federation.seal(message)
        try:
            opened = circle.open(frame)
        except RemoteProtocolError:
            return []
        assert isinstance(opened.message, GroupMessage)
        return [self.hear(letter) for letter in circle.parties[message.client].take(opened.message)]

    def open_group(self, group: Group, offers: Sequence[PublicKeys] | None = None, t: int | None = None) -> bytes:
        """Remember a group; returns its transcript hash."""
        circle, members = self.circle, len(group.members)
        transcript = self.transcript_of(group)
        clients = tuple(member.client for member in group.members)
        keys = tuple(offers or (_keys_of(circle, member.offer) for member in group.members))
        self.groups.setdefault(transcript, Heard(clients, keys, t or circle.plan.threshold(members)))
        return transcript

    def transcript_of(self, group: Group) -> bytes:
        circle, before = self.circle, self.circle.group
        circle.group = group
        try:
            return circle.transcript
        finally:
            circle.group = before

    def roster(self, group: Group, to: Iterable[str], stage: str = "stage-a") -> None:
        """Open a group for some of its members."""
        circle, groups = self.circle, circle_groups(self.circle)
        for client in to:
            version = circle.book.chain.version
            draw = circle.entry.digest
            self.say(Roster(client=client, stage=stage, draw=draw, version=version, group=group, groups=groups))

    def participants(
        self, transcript: bytes, client: str, participants: Iterable[Place], stage: str = "stage-a"
    ) -> list[Message]:
        """Name participants to one member, with the boxes that those have sealed to it."""
        heard, places = self.groups[transcript], sorted(participants)
        me = heard.clients.index(client)
        dealers = [place for place in places if place != me]
        boxes = tuple(_box(heard.dealt[dealer], dealer, me) if dealer in heard.dealt else b"" for dealer in dealers)
        commitments = tuple(
            _commitments(heard.dealt[dealer], me) if dealer in heard.dealt else b"" for dealer in dealers
        )
        named = encode_members(places, len(heard.clients))
        return self.say(
            Participants(
                client=client,
                stage=stage,
                transcript=transcript,
                participants=named,
                boxes=boxes,
                commitments=commitments,
            )
        )

    def arrived(
        self,
        transcript: bytes,
        client: str,
        participants: Iterable[Place],
        arrived: Iterable[Place],
        stage: str = "stage-a",
    ) -> list[Message]:
        """Name to one member who is said to have arrived; the colluders sign the same, whatever it is."""
        members = len(self.groups[transcript].clients)
        named, came = encode_members(participants, members), encode_members(arrived, members)
        for place, colluder in enumerate(self.groups[transcript].clients):
            if colluder in self.colluders:
                agreement = Agreement(transcript=transcript, participants=named, arrived=came)
                frame = self.circle.federation.seal_as(colluder, agreement)
                self.groups[transcript].agreements[place, named + came] = frame
        return self.say(Arrived(client=client, stage=stage, transcript=transcript, participants=named, arrived=came))

    def unmask(
        self,
        transcript: bytes,
        client: str,
        participants: Iterable[Place],
        arrived: Iterable[Place],
        stage: str = "stage-a",
        frames: Sequence[bytes] | None = None,
    ) -> list[Message]:
        """Ask one member to reveal, with every agreement to these sets that there is (or with `frames`)."""
        heard = self.groups[transcript]
        sets = encode_members(participants, len(heard.clients)) + encode_members(arrived, len(heard.clients))
        said = tuple(frame for (_, about), frame in heard.agreements.items() if about == sets)
        shown = said if frames is None else tuple(frames)
        return self.say(Unmask(client=client, stage=stage, transcript=transcript, agreements=shown))

    # ── hearing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, letter: Letter) -> Message:
        """Keep what a member sent."""
        message = letter.message
        heard = (
            self.groups.get(message.transcript) if isinstance(message, Shares | Words | Agreement | Reveal) else None
        )
        if heard is None:
            return message
        place = heard.clients.index(letter.sender)
        match message:
            case Shares():
                heard.dealt[place] = message
            case Words():
                heard.words[place] = message
            case Agreement():
                heard.agreements[place, message.participants + message.arrived] = letter.frame
            case Reveal():
                heard.reveals.append((place, message))
        return message

    # ── computing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def smallest_sum(self, victim: str) -> Opening | None:
        """The smallest opened sum that holds a victim's words, over all groups; None if there is none."""
        for transcript in self.groups:
            self.collect(transcript)
        found = [self._open(t, heard, victim) for t, heard in self.groups.items() if victim in heard.clients]
        opened = [opening for opening in found if opening is not None]
        return min(opened, key=lambda opening: len(opening.members), default=None)

    def strip(self, transcript: bytes, place: Place) -> np.ndarray | None:
        """A member's words without all masks that what was collected takes off; None if not even its own mask goes."""
        stripped = self._strip(transcript, self.groups[transcript], place)
        return None if stripped is None else stripped[0]

    def collect(self, transcript: bytes) -> None:
        """Sort all shares that were revealed or dealt to colluders by what they are shares of; rebuild masking keys."""
        heard = self.groups[transcript]
        for receiver, keys in enumerate(heard.keys):
            for dealer, shares in heard.dealt.items() if keys.masking in self.secrets else ():
                if dealer != receiver:
                    ring = Ring(transcript, heard.threshold, heard.clients, heard.keys, receiver)
                    box, commitments = _box(shares, dealer, receiver), _commitments(shares, receiver)
                    pair = open_shares(ring, self.secrets[keys.masking], dealer, box, commitments)
                    for share in pair:
                        self._sort(transcript, receiver, dealer, share)
        for receiver, reveal in heard.reveals:
            for start in range(0, len(reveal.shares), SHARE_BYTES):
                # Whatever it is, and whoever dealt it: the dealers' commitments tell.
                for dealer in heard.dealt:
                    self._sort(transcript, receiver, dealer, reveal.shares[start : start + SHARE_BYTES])
        for place, keys in enumerate(heard.keys):
            seed = self._rebuild(heard, Secret.MASKING_KEY, place)
            if seed is not None and public_of(seed) == keys.masking:
                self.masking_seeds[keys.masking] = seed

    def _sort(self, transcript: bytes, receiver: Place, dealer: Place, share: bytes) -> None:
        heard = self.groups[transcript]
        commitments = _commitments(heard.dealt[dealer], receiver)
        for number, kind in enumerate((Secret.SELF_MASK, Secret.MASKING_KEY)):
            committed = commitments[number * COMMITMENT_BYTES : (number + 1) * COMMITMENT_BYTES]
            if share_commitment(transcript, kind, dealer, receiver, share) == committed:
                heard.shares[kind, dealer][receiver + 1] = share

    def _rebuild(self, heard: Heard, kind: Secret, dealer: Place) -> bytes | None:
        shares = heard.shares[kind, dealer]
        if len(shares) < heard.threshold:
            return None
        return shamir.combine(dict(list(shares.items())[: heard.threshold]), heard.threshold)

    def _open(self, transcript: bytes, heard: Heard, victim: str) -> Opening | None:
        """Words whose pair masks are not known must be added to each other, until all that is left is known."""
        start = heard.clients.index(victim)
        needed, waiting = {start}, [start]
        total: np.ndarray | None = None
        while waiting:
            place = waiting.pop()
            stripped = self._strip(transcript, heard, place)
            if stripped is None:
                return None
            words, masked_with = stripped
            for other in masked_with:
                if other not in heard.words or heard.words[other].participants != heard.words[place].participants:
                    return None
            waiting += masked_with - needed
            needed |= masked_with
            total = words if total is None else total + words
        assert total is not None
        return Opening(frozenset(needed), total)

    def _strip(self, transcript: bytes, heard: Heard, place: Place) -> tuple[np.ndarray, set[Place]] | None:
        """Take a member's own mask and all known pair masks off; with whom its words are still masked."""
        seed, words = self._rebuild(heard, Secret.SELF_MASK, place), heard.words.get(place)
        if seed is None or words is None:
            return None
        participants = decode_members(words.participants, len(heard.clients))
        digest = participants_digest(participants, len(heard.clients))
        secrets = {other: self._secret_of(heard, place, other) for other in participants - {place}}
        pairs = {
            other: pair_mask_key(secret, transcript, (heard.clients[place], heard.clients[other]), digest)
            for other, secret in secrets.items()
            if secret is not None
        }
        form = self.circle.form
        mask = np.zeros(form.length, dtype=form.word_type)
        add_masks(mask, member_mask_keys(place, self_mask_key(seed, transcript, heard.clients[place]), pairs))
        body: np.ndarray = np.frombuffer(words.body, dtype=form.word_type)
        return body - mask, set(secrets.keys() - pairs.keys())

    def _secret_of(self, heard: Heard, one: Place, other: Place) -> bytes | None:
        for mine, theirs in ((one, other), (other, one)):
            seed = self.masking_seeds.get(heard.keys[mine].masking)
            if seed is not None:
                return agree(seed, heard.keys[theirs].masking)
        return None


def circle_groups(circle: Circle) -> int:
    """How many groups the open draw has."""
    assert circle.book.chain.draw is not None
    return circle.book.chain.draw.groups


def _keys_of(circle: Circle, frame: bytes) -> PublicKeys:
    offer = circle.open(frame).message
    assert isinstance(offer, Offer)
    assert offer.keys is not None
    return offer.keys


def _box(shares: Shares, dealer: Place, receiver: Place) -> bytes:
    at = (receiver - (receiver > dealer)) * SHARE_BOX_BYTES
    return shares.boxes[at : at + SHARE_BOX_BYTES]


def _commitments(shares: Shares, receiver: Place) -> bytes:
    return shares.commitments[receiver * 2 * COMMITMENT_BYTES : (receiver + 1) * 2 * COMMITMENT_BYTES]
