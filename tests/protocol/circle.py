"""One group with all its parties: real members and a real summing stage, and a post between them that tests control.

`Circle` founds a federation whose one open draw is one group. Members answer the stage through `post`, a queue of
letters; `run` delivers them in order, as long as `passes` lets them through. Time is what tests say it is.
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from coordinator.events import (
    CoordinatorEffect,
    DrawMade,
    GroupGivenUp,
    GroupReplyArrived,
    GroupSummed,
    JobArrived,
    Tell,
    Tick,
)
from coordinator.summing import secure_sum
from coordinator.summing.stage import SummingStage
from shared.codec.quantize import SumFormat
from shared.crypto import keys, merkle
from shared.crypto.draw import group_leaf
from shared.effects import Note, Publish, Receipt
from shared.rounds import ground_of, transcript_of
from shared.wire.framing import Opened
from shared.wire.group_messages import Group, GroupJob, GroupMessage, Member
from shared.wire.log_messages import DrawEntry
from shared.wire.messages import Message, Offer
from tests.builders import LogBook, make_delivery, make_federation, tiny_plan
from worker.events import SpendUpdate, WorkerEffect
from worker.member import GroupMember
from worker.policy import Policy
from worker.seat import Seat
from worker.steps import MemberState
from worker.stored_update import StoredUpdate, TaskId, UpdateId, UpdateMeta
from worker.update import PreparedUpdate, prepare_words

D = 8


@contextmanager
def remembered_agreements() -> Iterator[None]:
    """Makes groups of the same offers cheap: X25519 is a pure function, and is computed once for the same keys."""
    with pytest.MonkeyPatch.context() as patch:
        agree = functools.cache(keys.agree)
        patch.setattr(keys.OneTimeKeys, "sealing_secret", lambda own, public: agree(own.sealing_seed, public))
        patch.setattr(keys.OneTimeKeys, "masking_secret", lambda own, public: agree(own.masking_seed, public))
        patch.setattr(secure_sum, "agree", agree)
        yield


def entropy_of(*seed: object) -> Callable[[int], bytes]:
    """Bytes that are the same in every run, and different at every call."""
    state = hashlib.shake_256(repr(seed).encode())
    calls = iter(range(1 << 30))

    def draw(count: int) -> bytes:
        fork = state.copy()
        fork.update(next(calls).to_bytes(8, "big"))
        return fork.digest(count)

    return draw


@dataclass(frozen=True)
class Letter:
    """One message on its way: to a member's client, or from one to the stage (`to` is empty; `stage` names it)."""

    sender: str
    to: str
    message: Message
    frame: bytes
    stage: str = ""


class Party:
    """A member with its update and its disk. `spent` is what was marked as spent before words left."""

    def __init__(self, circle: Circle, client: str, values: np.ndarray, policy: Policy) -> None:
        self.client = client
        self.circle = circle
        self.update = StoredUpdate(
            update_id=UpdateId(1),
            meta=UpdateMeta(
                task=TaskId(0, 0), trained_head=circle.book.chain.version_head, num_examples=10, metrics={}
            ),
            values=np.asarray(values, dtype=np.float32),
        )
        self.words: np.ndarray | None = None
        self.spent: list[int] = []
        self.notes: list[Note] = []
        federation = circle.federation
        self.machine = GroupMember(
            Seat(client, "site-0", f"w-{client}", lambda message: federation.seal_as(client, message)),
            federation.names,
            circle.book.reader,
            circle.opener,
            policy,
            rounding=np.random.default_rng([circle.seed, *client.encode()]),
            encode=self._encode,
            entropy=entropy_of(circle.seed, client),
        )

    def _encode(self, *args: Any, **kwargs: Any) -> PreparedUpdate:
        """The tap: what this member would send without masks."""
        prepared = prepare_words(*args, **kwargs)
        self.words = prepared.words.copy()
        return prepared

    def offer(self) -> bytes:
        """Make an offer with fresh keys."""
        chain = self.circle.book.chain
        offer = Offer(
            attempt=chain.attempt,
            trained_version=chain.version,
            trained_head=chain.version_head,
            counter=1,
            nonce=bytes(16),
            worker=f"w-{self.client}",
            keys=self.machine.draw_keys(),
        )
        frame = self.circle.federation.seal_as(self.client, offer)
        self.machine.offered(frame)
        return frame

    def take(self, message: GroupMessage) -> list[Letter]:
        """Handle a message of a stage and do what the disk is asked for; returns the answers."""
        update = None if self.spent else self.update
        return self._post(self.machine.handle(message, update))

    def _post(self, effects: Iterable[WorkerEffect]) -> list[Letter]:
        letters: list[Letter] = []
        for effect in list(effects):
            match effect:
                case Publish(routing_key=key, frame=frame):
                    stage = key.split(".")[-2]
                    letters.append(Letter(self.client, "", self.circle.open(frame).message, frame, stage))
                case SpendUpdate(update_id):
                    self.spent.append(update_id)
                    letters += self._post(self.machine.spent())
                case Note():
                    self.notes.append(effect)
        return letters

    @property
    def refusals(self) -> list[str]:
        """What this member has refused, in words."""
        return [str(note.fields["detail"]) for note in self.notes if note.event == "refused"]

    @property
    def state(self) -> MemberState:
        return self.machine.state


class Circle:
    """A group of `members` clients, its draw in the log, and its stage."""

    def __init__(
        self,
        members: int,
        *,
        max_colluders: int = 1,
        updates: np.ndarray | None = None,
        seed: int = 0,
        policy: Policy | None = None,
        step_s: float = 10.0,
        group_size: int | None = None,
        **plan: Any,
    ) -> None:
        self.seed = seed
        self.federation = make_federation(members)
        self.opener = self.federation.opener()
        fields: dict[str, Any] = {
            "codec": {"selection": "dense", "density": 1.0, "bits": 32},
            "round": {"rounds": 50, "group_step_s": step_s},
            **plan,
        }
        self.plan = tiny_plan(D, group_size=group_size or members, max_colluders=max_colluders, **fields)
        self.book = LogBook(self.federation, self.plan)
        self.book.snapshot()
        rng = np.random.default_rng(seed)
        self.values = rng.normal(0, 0.1, (members, D)) if updates is None else updates
        self.clients = tuple(sorted(self.federation.clients))
        self.demands = policy or Policy(min_summed=2, min_members=2, max_colluders=max_colluders)
        self.group = self.draw(self._gather())
        self._set_out()

    def again(self) -> None:
        """Back to before the job, with the same offers: nothing was said, and no update is spent."""
        assert [member.offer for member in self.group.members] == self._gather()
        self._set_out()

    def _gather(self) -> list[bytes]:
        self.parties = {
            client: Party(self, client, self.values[number], self.demands) for number, client in enumerate(self.clients)
        }
        return [self.parties[client].offer() for client in self.clients]

    def _set_out(self) -> None:
        self.post: deque[Letter] = deque()
        self.results: list[GroupSummed | GroupGivenUp] = []
        self.notes: list[Note] = []
        self.stage = self.new_stage("stage-a")

    def draw(self, offers: Sequence[bytes]) -> Group:
        """Put a draw of one group of these offers (in this order) into the log."""
        return self.draw_groups([[(self.open(offer).sender, offer) for offer in offers]])[0]

    def draw_groups(self, named: Sequence[Sequence[tuple[str, bytes]]]) -> list[Group]:
        """Put a draw of these groups into the log; each is (client, its offer) in the order of its roster."""
        rosters = [
            tuple(Member(client=client, site="site-0", worker=f"w-{client}", offer=offer) for client, offer in group)
            for group in named
        ]
        bare = [Group(index=index, members=members, path=()) for index, members in enumerate(rosters)]
        leaves = [group_leaf(group.index, group.leaf) for group in bare]
        chain, offers = self.book.chain, sum(len(members) for members in rosters)
        self.entry = self.book.append(
            DrawEntry(
                parent=chain.head,
                term=0,
                version=chain.version,
                groups=len(bare),
                offers=offers,
                root=merkle.root(leaves),
            )
        )
        return [group.model_copy(update={"path": merkle.path(leaves, group.index)}) for group in bare]

    def open(self, frame: bytes) -> Opened:
        return self.opener.open(frame)

    def new_stage(self, name: str) -> SummingStage:
        """A stage that knows the draw but has no job yet."""
        stage = SummingStage(name, self.plan, self.book.reader, self.opener, self.federation.seal)
        stage.handle(DrawMade(self.entry.digest, self.book.chain.version, 1, self.clients), 0.0)
        return stage

    @property
    def job(self) -> GroupJob:
        return GroupJob(draw=self.entry.digest, version=self.book.chain.version, groups=1, members=(self.group,))

    @property
    def transcript(self) -> bytes:
        ground = ground_of(self.book.reader, self.entry.digest)
        return transcript_of(ground, self.entry.digest, self.book.chain.version, self.group)

    @property
    def form(self) -> SumFormat:
        return self.plan.sum_format(len(self.group.members), self.book.chain.clipping_norm)

    def start(self, now: float = 0.0) -> None:
        """Give the stage its job."""
        self.drive(self.stage.handle(JobArrived(self.job, Receipt(make_delivery(b""), 1)), now))

    def drive(self, effects: Iterable[CoordinatorEffect]) -> None:
        """Post what the stage sends, keep what it tells."""
        for effect in effects:
            match effect:
                case Publish(frame=frame):
                    message = self.open(frame).message
                    assert isinstance(message, GroupMessage)
                    self.post.append(Letter("stage", message.client, message, frame))
                case Tell(GroupSummed() | GroupGivenUp() as result):
                    self.results.append(result)
                case Note():
                    self.notes.append(effect)

    def run(self, passes: Callable[[Letter], bool] = lambda _: True, now: float = 0.0) -> None:
        """Deliver letters, also those that follow, until none is left; a letter that does not pass is lost."""
        while self.post:
            letter = self.post.popleft()
            if not passes(letter):
                continue
            if letter.to:
                assert isinstance(letter.message, GroupMessage)
                self.post.extend(self.parties[letter.to].take(letter.message))
            else:
                self.drive(self.stage.handle(GroupReplyArrived(letter.sender, letter.message, letter.frame), now))

    def finish(
        self, passes: Callable[[Letter], bool] = lambda _: True, until: float = 60.0
    ) -> GroupSummed | GroupGivenUp:
        """Run, and let time pass, until the group has ended; returns how."""
        now = 0.0
        self.run(passes, now)
        while not self.results and now < until:
            now += 1.0
            self.tick(now)
            self.run(passes, now)
        (result,) = self.results
        return result

    def tick(self, now: float) -> None:
        """Let the stage know the time."""
        self.drive(self.stage.handle(Tick(), now))

    def plain_sum(self, clients: Iterable[str]) -> np.ndarray:
        """The sum of these members' words without any masks, mod 2**b."""
        total = np.zeros(self.form.length, dtype=self.form.word_type)
        for client in clients:
            words = self.parties[client].words
            assert words is not None
            total += words
        return total
