"""The sum of one group, coordinator's side: what its members said so far, and what they are asked next (sans-I/O).

`coordinator.summing.steps` is the table of its states. The truth about a group is with its members: each step of theirs
runs once. So a stage that takes a group over from another begins with the roster as well; members answer with
everything they have sent before, later steps first, and the commonest set of participants, or of participants and who
arrived, is adopted if more say so than may be lying: at most one (P, A) of a group ever gets t agreements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.events import CoordinatorEffect, GroupGivenUp, GroupReplyArrived, GroupSummed, Tell
from coordinator.summing.heard import Heard
from coordinator.summing.secure_sum import open_sum, rebuilt_mask_keys
from coordinator.summing.steps import TRANSITIONS, GroupState, GroupStep
from shared.codec.quantize import SumFormat
from shared.crypto.keys import public_of
from shared.effects import Publish, note
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError
from shared.wire.group_messages import (
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
from shared.wire.member_sets import encode_members, participants_digest

REPEAT_S = 2.0
"""A member that has not answered is sent the last message again after this time."""


_BREACHES = {RefusalReason.WRONG_SIZE, RefusalReason.OUT_OF_RANGE, RefusalReason.MALFORMED, RefusalReason.BAD_SEAL}
"""No honest member's message is refused for these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSetting:
    """What is fixed for one group. `masking_keys` are the members' public ones, empty in a group of one.

    `threshold` is t; a sum of fewer than `floor` updates is not opened; `believed` members are not all lying; `step_s`
    is the deadline of each state; `address` publishes a message to a member. `positions_bytes` follow the words where
    clients choose their own coordinates, in groups of one.
    """

    draw: bytes
    version: int
    groups: int
    group: Group
    stage: str
    form: SumFormat
    transcript: bytes
    threshold: int
    floor: int
    believed: int
    masking_keys: tuple[bytes, ...]
    step_s: float
    address: Callable[[int, GroupMessage], Publish]
    positions_bytes: int = 0


class GroupSum:
    """One group, from its roster to its sum or its giving up."""

    def __init__(self, setting: GroupSetting) -> None:
        self._setting = setting
        self._clients = tuple(member.client for member in setting.group.members)
        self._places = {client: place for place, client in enumerate(self._clients)}
        members = len(self._clients)
        self._heard = Heard(
            members, setting.form, setting.transcript, setting.floor, setting.believed, setting.positions_bytes
        )
        self._participants: frozenset[int] = frozenset()
        self._arrived: frozenset[int] = frozenset()
        self._blamed: set[int] = set()
        self._nameable: frozenset[int] = frozenset()
        self._taken_over = False
        self._asked: set[int] = set()
        self._deadline = 0.0
        self._repeat_at = 0.0
        self._began: dict[GroupState, float] = {}
        self.state = GroupState.SHARES

    @property
    def index(self) -> int:
        """The group's number in its draw."""
        return self._setting.group.index

    @property
    def due(self) -> float:
        """When `tick` may have something to do, if nothing is heard before (seconds, monotonic)."""
        return min(self._deadline, self._repeat_at)

    @property
    def ended(self) -> bool:
        """Whether the group has its sum, or was given up."""
        return self.state in (GroupState.SUMMED, GroupState.GIVEN_UP)

    def start(self, now: float) -> Iterator[CoordinatorEffect]:
        """Open the group: the roster to every member."""
        everybody = range(len(self._clients))
        if not self._setting.masking_keys:
            self.state, self._participants = GroupState.WORDS, frozenset(everybody)
        self._begin_state(now)
        yield from self._ask(everybody)

    def handle(self, reply: GroupReplyArrived, now: float) -> Iterator[CoordinatorEffect]:
        """Take a member's answer; it was verified, and names this group's transcript."""
        place = self._places.get(reply.client)
        try:
            if place is None:
                raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "not a member of this group")
            yield from self._take(place, reply, now)
        except RemoteProtocolError as error:
            if place is not None and self._is_breach(error.reason):
                self._blamed.add(place)
            if error.reason is RefusalReason.DUPLICATE:
                yield note("repeated", "debug", client=reply.client, what=type(reply.message).__name__.lower())
            else:
                what = f"{type(reply.message).__name__.lower()} for group {self._setting.group.index}"
                detail = error.detail
                yield note("refused", "warning", sender=reply.client, reason=error.reason, what=what, detail=detail)
        yield from self._go_on(now)

    def _is_breach(self, reason: RefusalReason) -> bool:
        """Whether a message that is refused for this shows that its sender is dishonest.

        In a group that another stage began, a share that is not the one we were told of may be the one which its
        dealer told the other stage of: it is not used, and nobody is named.
        """
        return reason in _BREACHES and not (reason is RefusalReason.BAD_SEAL and self._taken_over)

    def tick(self, now: float) -> Iterator[CoordinatorEffect]:
        """Time has passed: go on without who is late, ask again, or give up."""
        yield from self._go_on(now)
        if not self.ended and now >= self._repeat_at:
            self._repeat_at = now + REPEAT_S
            yield from self._ask(self._silent())

    # ── what members say ─────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, place: int, reply: GroupReplyArrived, now: float) -> Iterator[CoordinatorEffect]:
        match reply.message:
            case Shares() as shares:
                if self.state is not GroupState.SHARES and place not in self._participants:
                    raise RemoteProtocolError(RefusalReason.LATE, "the participants are chosen")
                self._heard.take_shares(place, shares)
            case Words() as words:
                self._take_words(place, words, now)
            case Agreement() as agreement:
                self._heard.take_agreement(place, agreement, reply.frame)
            case Reveal() as reveal:
                yield from self._take_reveal(place, reveal)

    def _take_words(self, place: int, words: Words, now: float) -> None:
        if self.state not in (GroupState.SHARES, GroupState.WORDS):
            raise RemoteProtocolError(RefusalReason.LATE, "who arrived is settled")
        if self.state is GroupState.WORDS and words.participants != self._named_participants:
            raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "masked over other participants")
        self._heard.take_words(place, words)
        # A member that is still sending is not silent.
        self._repeat_at, self._deadline = now + REPEAT_S, max(self._deadline, now + REPEAT_S)

    def _take_reveal(self, place: int, reveal: Reveal) -> Iterator[CoordinatorEffect]:
        if self.state is not GroupState.REVEAL or place not in self._asked:
            raise RemoteProtocolError(RefusalReason.LATE, "nothing is to be revealed")
        try:
            whole = self._heard.take_reveal(place, reveal, sorted(self._participants), self._arrived)
        except RemoteProtocolError as error:
            if error.reason is not RefusalReason.DUPLICATE:
                # Replaced by the next members who have agreed.
                yield from self._ask(self._silent())
            raise
        if not whole:
            yield from self._ask(self._silent())

    # ── from state to state ──────────────────────────────────────────────────────────────────────────────────────────

    def _go_on(self, now: float) -> Iterator[CoordinatorEffect]:
        """Take every step that what was heard allows, and what the deadline asks for."""
        while not self.ended:
            before = self.state
            match self.state:
                case GroupState.SHARES:
                    yield from self._choose_participants(now)
                case GroupState.WORDS:
                    yield from self._settle_arrived(now)
                case GroupState.AGREEMENT:
                    yield from self._count_agreements(now)
                case GroupState.REVEAL:
                    yield from self._open(now)
            if self.state is before:
                break

    def _choose_participants(self, now: float) -> Iterator[CoordinatorEffect]:
        heard = self._heard
        if len(heard.shares) < len(self._clients) and now < self._deadline:
            return
        claimed, dealt = heard.claimed_participants(), frozenset(heard.shares)
        chosen = claimed or dealt
        if len(chosen) < self._setting.floor:
            yield self._give_up(f"shares of {len(chosen)} members, {self._setting.floor} needed")
            return
        # Of others we do not know what they have dealt, or to whom it was handed on.
        self._nameable = frozenset() if claimed else dealt
        self._participants, self._taken_over = chosen, bool(heard.words or heard.agreements)
        heard.drop_other_words(self._named_participants)
        self._move(GroupStep.DEALT, GroupState.WORDS, now)
        yield from self._ask(self._silent())

    def _settle_arrived(self, now: float) -> Iterator[CoordinatorEffect]:
        complete, claimed = self._heard.complete, self._heard.claimed_arrived(self._named_participants)
        if not claimed and complete != self._participants and now < self._deadline:
            return
        arrived = claimed or complete
        if len(arrived) < self._setting.floor:
            yield self._give_up(f"words of {len(arrived)} members, {self._setting.floor} needed")
            return
        self._arrived = arrived
        if self._setting.masking_keys:
            self._move(GroupStep.ARRIVED, GroupState.AGREEMENT, now)
            yield from self._ask(self._silent())
        else:
            self._move(GroupStep.ARRIVED, GroupState.SUMMED, now)
            yield Tell(self._summed(self._heard.vectors(arrived)[0], self._heard.behind(0)))

    def _count_agreements(self, now: float) -> Iterator[CoordinatorEffect]:
        agreed = self._agreed()
        if len(agreed) >= self._setting.threshold:
            self._asked = set(agreed)
            self._move(GroupStep.AGREED, GroupState.REVEAL, now)
            yield from self._ask(sorted(agreed))
            return
        claimed = self._heard.claimed_arrived(self._named_participants)
        if claimed and claimed != self._arrived and len(self._heard.agreements) > 2 * len(agreed):
            # Another stage had settled it before us: most members are bound to that.
            self._arrived = claimed
            yield from self._ask(self._silent())
        elif now >= self._deadline:
            yield self._give_up(f"{len(agreed)} agreements, {self._setting.threshold} needed")

    def _open(self, now: float) -> Iterator[CoordinatorEffect]:
        setting, needed, revealed = self._setting, self._setting.threshold, self._heard.revealed
        fewest = min(len(revealed.get(dealer, ())) for dealer in self._participants)
        if fewest < needed:
            if now >= self._deadline:
                self._blamed |= self._dealers_of_nothing()
                yield self._give_up(f"{fewest} shares of a member's secret, {needed} needed")
            return
        self_seeds: dict[int, bytes] = {}
        masking_seeds: dict[int, bytes] = {}
        for dealer in sorted(self._participants):
            seed = self._heard.secret_of(dealer, needed)
            if seed is not None and self._is_secret_of(dealer, seed):
                (self_seeds if dealer in self._arrived else masking_seeds)[dealer] = seed
        liars = self._participants - self_seeds.keys() - masking_seeds.keys()
        if liars:
            # Shares that were not checked against their dealer's word may be another member's lie.
            self._blamed |= liars & self._nameable
            yield self._give_up("a member shared another secret than its own")
            return
        named = participants_digest(self._participants, len(self._clients))
        keys = rebuilt_mask_keys(
            setting.transcript, named, self._clients, setting.masking_keys, self_seeds, masking_seeds
        )
        self._move(GroupStep.OPENED, GroupState.SUMMED, now)
        yield Tell(self._summed(open_sum(self._heard.vectors(self._arrived), keys)))

    def _dealers_of_nothing(self) -> set[int]:
        """Dealers of whom t members say that what was sealed to them is no share; fewer than t might be lying."""
        honest, revealed = self._heard.reveals - self._blamed, self._heard.revealed
        return {one for one in self._nameable if len(honest) - len(revealed.get(one, ())) >= self._setting.threshold}

    def _is_secret_of(self, dealer: int, seed: bytes) -> bool:
        if dealer in self._arrived:
            return self._heard.is_seed_of(dealer, seed)
        return public_of(seed) == self._setting.masking_keys[dealer]

    def _agreed(self) -> dict[int, bytes]:
        return self._heard.agreed(self._named_participants, self._arrived, self._named_arrived)

    # ── what members are asked ───────────────────────────────────────────────────────────────────────────────────────

    def _silent(self) -> list[int]:
        """Whom the present state waits for."""
        heard = self._heard
        match self.state:
            case GroupState.SHARES:
                waited = set(range(len(self._clients))) - heard.shares.keys()
            case GroupState.WORDS:
                waited = set(self._participants - heard.complete)
            case GroupState.AGREEMENT:
                waited = set(self._arrived) - heard.agreements.keys()
            case _:
                # Those who agreed after the first t are asked only if that was not enough.
                self._asked |= self._agreed().keys()
                waited = self._asked - heard.reveals
        return sorted(waited)

    def _ask(self, places: Sequence[int] | range) -> Iterator[CoordinatorEffect]:
        for place in places:
            yield self._setting.address(place, self._question(place))

    def _question(self, place: int) -> GroupMessage:
        """What the present state asks of one member."""
        setting, client = self._setting, self._clients[place]
        if self.state is GroupState.SHARES or not setting.masking_keys:
            return Roster(
                client=client,
                stage=setting.stage,
                draw=setting.draw,
                version=setting.version,
                group=setting.group,
                groups=setting.groups,
            )
        if self.state is GroupState.WORDS:
            return self._participants_message(place)
        if self.state is GroupState.AGREEMENT:
            return Arrived(
                client=client,
                stage=setting.stage,
                transcript=setting.transcript,
                participants=self._named_participants,
                arrived=self._named_arrived,
            )
        agreements = tuple(self._agreed().values())[: setting.threshold]
        return Unmask(client=client, stage=setting.stage, transcript=setting.transcript, agreements=agreements)

    def _participants_message(self, receiver: int) -> Participants:
        # What a dealer said to a stage that is gone may be lost: the others may hold enough shares of it.
        dealers = sorted(self._participants - {receiver})
        return Participants(
            client=self._clients[receiver],
            stage=self._setting.stage,
            transcript=self._setting.transcript,
            participants=self._named_participants,
            boxes=tuple(self._heard.box(dealer, receiver) for dealer in dealers),
            commitments=tuple(self._heard.commitments(dealer, receiver) for dealer in dealers),
        )

    @property
    def _named_participants(self) -> bytes:
        return encode_members(self._participants, len(self._clients))

    @property
    def _named_arrived(self) -> bytes:
        return encode_members(self._arrived, len(self._clients))

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _summed(self, words: np.ndarray, positions: bytes = b"") -> GroupSummed:
        dropped = set(range(len(self._clients))) - self._arrived
        silent = (self._arrived - self._heard.agreements.keys()) | (self._asked - self._heard.reveals)
        return GroupSummed(
            draw=self._setting.draw,
            group=self._setting.group.index,
            arrived=self._names_of(self._arrived),
            dropped=self._names_of(dropped),
            unheard=self._names_of(dropped | silent if self._setting.masking_keys else dropped),
            blamed=self._names_of(self._blamed),
            words=words,
            positions=positions,
            began={state.value: began for state, began in self._began.items()},
        )

    def _give_up(self, reason: str) -> CoordinatorEffect:
        silent = self._names_of(self._silent())
        self._move(GroupStep.FAILED, GroupState.GIVEN_UP, 0.0)
        return Tell(
            GroupGivenUp(
                draw=self._setting.draw,
                group=self._setting.group.index,
                reason=reason,
                silent=silent,
                blamed=self._names_of(self._blamed),
            )
        )

    def _names_of(self, places: Sequence[int] | set[int] | frozenset[int]) -> tuple[str, ...]:
        return tuple(self._clients[place] for place in sorted(places))

    def _begin_state(self, now: float) -> None:
        self._deadline, self._repeat_at = now + self._setting.step_s, now + REPEAT_S
        self._began[self.state] = now

    def _move(self, step: GroupStep, state: GroupState, now: float) -> None:
        if state not in TRANSITIONS.get((self.state, step), ()):
            raise LocalProtocolError(f"a group in {self.state} does not become {state} by {step}")
        self.state = state
        self._begin_state(now)
