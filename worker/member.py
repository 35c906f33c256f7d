"""A client's part in one group: the machine that holds the group's secrets, in memory only (sans-I/O).

Its states and what moves it stand in `worker.steps`; whatever does not stand there moves nothing. Every step runs once:
an identical repeat of what was answered is answered with the same bytes again, so that a stage which takes over finds
out where its members stand (the later steps' bytes first: they name P, or (P, A)). A different message for the same
step changes nothing and is refused; it is answered too, at most `ANSWERS_MAX` times a step.

Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), figure 4,
with its consistency round. What departs from it, and why, stands in `shared/docs/protocol.md`.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.codec.quantize import UniformSource
from shared.crypto.keys import OneTimeKeys
from shared.crypto.masks import add_masks
from shared.effects import Publish, note
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError
from shared.modellog.chain import ChainState
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.rounds import ground_of, staleness_weight, transcript_of
from shared.wire.framing import Opener
from shared.wire.group_messages import Agreement, Arrived, Group, GroupMessage, Participants, Reveal, Roster, Unmask
from shared.wire.member_sets import decode_members, encode_members
from shared.wire.messages import Offer, PublicKeys
from shared.wire.topology import Names
from worker import roster as rosters
from worker import rules
from worker.dealing import Entropy, Ring, deal, fresh_keys, mask_keys, open_shares, public_keys
from worker.events import SpendUpdate, WorkerEffect
from worker.policy import Policy
from worker.seat import Seat
from worker.session import Session, words_of
from worker.steps import TRANSITIONS, MemberState, Step
from worker.stored_update import StoredUpdate
from worker.update import Encode, PreparedUpdate, prepare_for_sum

ANSWERS_MAX = 10
"""Different messages for one step of a group that are still answered."""


_STEP_OF = {Participants: Step.PARTICIPANTS, Arrived: Step.ARRIVED, Unmask: Step.UNMASK}
_ANSWERED = (Step.ROSTER, Step.PARTICIPANTS, Step.ARRIVED, Step.UNMASK)


class GroupMember:
    """One client's part in its groups, one at a time."""

    def __init__(
        self,
        seat: Seat,
        names: Names,
        log: LogReader,
        opener: Opener,
        policy: Policy,
        *,
        rounding: UniformSource,
        encode: Encode,
        entropy: Entropy,
    ) -> None:
        """
        Args:
            seat: who speaks.
            names: the federation's addresses.
            log: the worker's reader (read only here).
            opener: verifies other members' offers and agreements.
            policy: what we demand of a group.
            rounding: randomness of stochastic rounding.
            encode: makes the words of an update.
            entropy: fresh random bytes of a cryptographic generator.
        """
        self._seat = seat
        self._names = names
        self._log = log
        self._opener = opener
        self._policy = policy
        self._rounding = rounding
        self._encode = encode
        self._entropy = entropy
        self._offer: bytes | None = None
        self._keys: OneTimeKeys | None = None
        self._held: Roster | None = None
        self._session: Session | None = None
        self.state = MemberState.OUT

    @property
    def is_awaited(self) -> bool:
        """Whether the sum of our group may need something more of us."""
        session = self._session
        return session is not None and session.keys is not None and self.state is not MemberState.REVEALED

    # ── offer, log, disk ─────────────────────────────────────────────────────────────────────────────────────────────

    def draw_keys(self) -> PublicKeys | None:
        """Fresh one-time keys for an offer that is about to be made; None where groups are of one."""
        assert self._log.plan is not None
        self._keys = None if self._log.plan.group_size == 1 else fresh_keys(self._entropy)
        return None if self._keys is None else public_keys(self._keys)

    def offered(self, frame: bytes | None) -> None:
        """This is our open offer from now on, made with the keys drawn last; None: there is none."""
        self._offer = frame

    def follow(self, chain: ChainState, update: StoredUpdate | None) -> Iterator[WorkerEffect]:
        """The log may have moved: a group whose draw is closed is over, a roster that came early is looked at.

        Raises:
            WorkloadError: as `handle`.
        """
        if self._session is not None and (chain.draw is None or chain.draw.entry != self._session.draw):
            self._session = None
            if self.state is not MemberState.OUT:  # else we had joined, but could not answer
                self._move(Step.CLOSED, MemberState.OUT)
        if self._held is not None and chain.draw is not None and self._held.draw == chain.draw.entry:
            held, self._held = self._held, None
            yield from self.handle(held, update)

    def spent(self) -> Iterator[WorkerEffect]:
        """The spent mark is on the disk: the words leave."""
        session = self._session
        if session is None or self.state is not MemberState.SPENDING:
            return
        self._move(Step.SPENT, MemberState.MASKED)
        yield from self._send(session, Step.PARTICIPANTS)

    # ── what a stage says ────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, message: GroupMessage, update: StoredUpdate | None) -> Iterator[WorkerEffect]:
        """Take a message of a summing stage.

        Args:
            message: verified; addressed to this client.
            update: the unspent one, which would be masked; under `top_k` with what is owed (`worker.feedback`).

        Raises:
            WorkloadError: the update cannot be sent; it is not spent.
        """
        try:
            if isinstance(message, Roster):
                yield from self._on_roster(message, update)
            else:
                yield from self._on_step(message, update)
        except RemoteProtocolError as error:
            yield self._refusal(error)

    def _on_roster(self, roster: Roster, update: StoredUpdate | None) -> Iterator[WorkerEffect]:
        session, chain = self._session, self._log.chain
        if session is not None and roster.draw == session.draw and session.was_answered(Step.ROSTER):
            session.stage = roster.stage
            yield from self._again(session, Step.ROSTER, roster.group)
            return
        if chain is None or chain.draw is None or chain.draw.entry != roster.draw:
            # Rosters leave together with the draw's entry, and may be faster than it.
            self._held = roster
            return
        session = self._join(roster, chain)
        self._session = session
        self._use_up_offer()
        session.bound[Step.ROSTER] = roster.group
        if session.keys is None:
            yield from self._mask(session, frozenset({0}), update)
            return
        session.dealt = deal(session.ring, session.keys, self._entropy)
        session.answers[Step.ROSTER] = (self._seat.seal(session.dealt.shares),)
        self._move(Step.ROSTER, MemberState.SHARED)
        yield from self._send(session, Step.ROSTER)

    def _use_up_offer(self) -> None:
        """The keys of an offer serve one roster and no other."""
        self._offer, self._keys = None, None

    def _join(self, roster: Roster, chain: ChainState) -> Session:
        assert self._log.plan is not None
        plan, group = self._log.plan, roster.group
        ground = rosters.Ground(chain, plan, self._log.directory, self._opener, self._policy)
        place, offers = rosters.check_roster(roster, ground, self._seat.client, self._offer)
        members = len(group.members)
        ring = Ring(
            transcript=transcript_of(ground_of(self._log, roster.draw), roster.draw, chain.version, group),
            threshold=plan.threshold(members),
            clients=tuple(member.client for member in group.members),
            keys=_keys_of(offers),
            me=place,
        )
        floor = max(plan.summed_floor(members), self._policy.summed_floor(members))
        return Session(roster.draw, group, ring, floor, roster.stage, self._keys)

    def _on_step(self, message: GroupMessage, update: StoredUpdate | None) -> Iterator[WorkerEffect]:
        session = self._session
        assert isinstance(message, Participants | Arrived | Unmask)
        if session is None:
            raise RemoteProtocolError(RefusalReason.WRONG_PARENT, f"{type(message).__name__} without a group")
        rules.check_group(message.transcript, session.ring.transcript, type(message).__name__)
        if len(session.ring.clients) == 1:
            raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "a group of one ends with its words")
        step = _STEP_OF[type(message)]
        if session.was_answered(step):
            session.stage = message.stage
            yield from self._again(session, step, _content(message))
            return
        if (self.state, step) not in TRANSITIONS:
            raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, f"{step} for a member that is {self.state}")
        session.stage = message.stage
        match message:
            case Participants():
                yield from self._on_participants(session, message, update)
            case Arrived():
                yield from self._on_arrived(session, message)
            case Unmask():
                yield from self._on_unmask(session, message)

    def _on_participants(
        self, session: Session, message: Participants, update: StoredUpdate | None
    ) -> Iterator[WorkerEffect]:
        ring, keys = session.ring, session.keys
        assert keys is not None
        participants = decode_members(message.participants, len(ring.clients))
        rules.check_takes_part(ring.me, participants)
        rules.check_enough(participants, session.floor, "participants")
        dealers = sorted(participants - {ring.me})
        if not len(dealers) == len(message.boxes) == len(message.commitments):
            raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"{len(message.boxes)} boxes of {len(dealers)} dealers")
        for dealer, box, commitments in zip(dealers, message.boxes, message.commitments, strict=True):
            try:
                session.kept[dealer] = open_shares(ring, keys, dealer, box, commitments)
            except RemoteProtocolError as error:
                # Without its share we can still be summed with it: the others' shares may be enough.
                yield note("no_share", "warning", client=self._seat.client, dealer=ring.clients[dealer], why=str(error))
        yield from self._mask(session, participants, update)

    def _mask(
        self, session: Session, participants: frozenset[int], update: StoredUpdate | None
    ) -> Iterator[WorkerEffect]:
        """Make the words that we are bound to from here on; they leave when the update is marked as spent."""
        plan, chain = self._log.plan, self._log.chain
        assert plan is not None
        assert chain is not None
        if update is None:
            raise RemoteProtocolError(RefusalReason.STALE, "there is no unspent update any more")
        form = plan.sum_format(len(session.ring.clients), chain.clipping_norm)
        coordinates = self._log.coordinates
        damping = staleness_weight(chain.version - update.meta.task.version)
        prepared, behind = prepare_for_sum(
            update, plan, coordinates, form, self._rounding, self._encode, damping=damping
        )
        if session.keys is not None and session.dealt is not None:
            add_masks(prepared.words, mask_keys(session.ring, session.keys, session.dealt.seed, participants))
        session.participants = participants
        named = encode_members(participants, len(session.ring.clients))
        session.bound[Step.PARTICIPANTS] = named
        body = prepared.words.data.cast("B")
        words = words_of(session.ring.transcript, named, memoryview(b"".join((body, behind))) if behind else body)
        session.answers[Step.PARTICIPANTS] = tuple(self._seat.seal(piece) for piece in words)
        step = Step.ROSTER if self.state is MemberState.OUT else Step.PARTICIPANTS
        self._move(step, MemberState.SPENDING)
        yield from self._tell(prepared, update, plan)
        yield SpendUpdate(update.update_id, prepared.residual)

    def _on_arrived(self, session: Session, message: Arrived) -> Iterator[WorkerEffect]:
        ring = session.ring
        arrived = decode_members(message.arrived, len(ring.clients))
        masked_over = session.bound[Step.PARTICIPANTS]
        assert isinstance(masked_over, bytes)
        rules.check_same_participants(message.participants, masked_over)
        rules.check_arrived_took_part(arrived, session.participants)
        rules.check_arrived(ring.me, arrived)
        rules.check_enough(arrived, session.floor, "arrived")
        session.arrived = arrived
        session.bound[Step.ARRIVED] = _content(message)
        agreement = Agreement(transcript=ring.transcript, participants=message.participants, arrived=message.arrived)
        session.answers[Step.ARRIVED] = (self._seat.seal(agreement),)
        self._move(Step.ARRIVED, MemberState.AGREED)
        yield from self._send(session, Step.ARRIVED)

    def _on_unmask(self, session: Session, message: Unmask) -> Iterator[WorkerEffect]:
        ring = session.ring
        if len(message.agreements) > len(ring.clients):
            raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, f"{len(message.agreements)} agreements")
        agreed = {
            signer for frame in message.agreements if (signer := session.signer_of(frame, self._opener)) is not None
        }
        rules.check_quorum(agreed, ring.threshold)
        session.bound[Step.UNMASK] = b""
        reveal = Reveal(transcript=ring.transcript, shares=b"".join(session.shares_to_reveal()))
        session.answers[Step.UNMASK] = (self._seat.seal(reveal),)
        self._move(Step.UNMASK, MemberState.REVEALED)
        yield from self._send(session, Step.UNMASK)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _again(self, session: Session, step: Step, content: Group | bytes) -> Iterator[WorkerEffect]:
        """A step that was answered before: the same bytes again, whatever is asked now."""
        if content != session.bound[step]:
            session.refused[step] += 1
            detail = f"another {step} after the one that was answered"
            yield self._refusal(RemoteProtocolError(RefusalReason.NOT_ALLOWED, detail))
            if session.refused[step] > ANSWERS_MAX:
                return
        if self.state is not MemberState.SPENDING or step is Step.ROSTER:
            yield from self._send(session, *reversed(_ANSWERED[_ANSWERED.index(step) :]))

    def _send(self, session: Session, *steps: Step) -> Iterator[WorkerEffect]:
        key = self._names.reply_key(session.stage, self._seat.site)
        for step in steps:
            if step is Step.PARTICIPANTS and self.state is MemberState.SPENDING:
                continue
            for frame in session.answers.get(step, ()):
                yield Publish(self._names.up, key, frame, persistent=False)

    def _refusal(self, error: RemoteProtocolError) -> WorkerEffect:
        return note("refused", "warning", sender=self._seat.client, reason=error.reason, detail=error.detail)

    def _tell(self, prepared: PreparedUpdate, update: StoredUpdate, plan: Plan) -> Iterator[WorkerEffect]:
        """What was cut on the way out is never silent."""
        client = self._seat.client
        if update.meta.num_examples > plan.weight_records_max:
            yield note("weight_capped", "warning", client=client)
        if prepared.clipped:
            yield note("update_clipped", "debug", client=client, norm=prepared.norm)
        if prepared.clamped:
            yield note("metrics_clamped", "warning", client=client, metrics=prepared.clamped)

    def _move(self, step: Step, state: MemberState) -> None:
        if state not in TRANSITIONS.get((self.state, step), ()):
            raise LocalProtocolError(f"a member that is {self.state} does not become {state} by {step}")
        self.state = state


def _keys_of(offers: tuple[Offer, ...]) -> tuple[PublicKeys, ...]:
    return tuple(offer.keys for offer in offers if offer.keys is not None)


def _content(message: Participants | Arrived | Unmask) -> bytes:
    """What a repeat of this message must say again. Boxes are not part of it: they are opened once."""
    match message:
        case Participants():
            return message.participants
        case Arrived():
            return message.participants + message.arrived
        case Unmask():
            return b""
