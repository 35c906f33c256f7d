"""Invariant: whatever arrives, every message is either opened or refused with a reason, and nothing is kept of it.

100,000 mutated messages: flipped bits, other lengths, cuts and splices of genuine frames and batches, and, behind
genuine signatures, the payloads of dishonest but enrolled senders. One seed decides them all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgpack
import numpy as np
import psutil
import pytest

from shared.crypto.signing import VERIFICATION_CACHE_ENTRIES, Purpose
from shared.effects import Note, Settle
from shared.errors import RemoteProtocolError
from shared.identity import COORDINATOR
from shared.incoming import open_delivery
from shared.modellog.chain import GENESIS
from shared.modellog.reader import Skipped
from shared.telemetry import Telemetry
from shared.wire.framing import MAGIC, WIRE_VERSION, pack_batches, split_batch
from shared.wire.group_messages import (
    Agreement,
    Arrived,
    GivenUp,
    Group,
    GroupJob,
    Member,
    Participants,
    Reveal,
    Roster,
    Shares,
    Sum,
    Unmask,
    Words,
)
from shared.wire.journal_messages import Record
from shared.wire.log_messages import DirectoryEntry, Mark, Piece, RunEntry
from shared.wire.messages import Candidacy, Control, Kind, Message, PublicKeys, Reminder, Role, RunState, Task
from shared.wire.registry import MESSAGE_TYPES
from tests.builders import (
    FEDERATION_ID,
    Federation,
    LogBook,
    make_delivery,
    make_federation,
    make_offer,
    make_status,
    tiny_plan,
)

MESSAGES = 100_000
WARM_UP = 5_000
FRAMES_PER_BATCH = 8
GROWTH_BYTES_MAX = 20 << 20

FEDERATION = make_federation(4, revoked=("client-3",))
H = bytes(range(32))
POINT = b"\x09".ljust(32, b"\0")


def genuine_messages() -> list[Message]:
    """One of each kind that is not an entry."""
    offer = make_offer(keys=PublicKeys(sealing=POINT, masking=POINT))
    member = Member(client="client-0", site="site-0", worker="w-0", offer=FEDERATION.seal_as("client-0", offer))
    group = Group(index=0, members=(member, member), path=(H, H))
    to_member = {"client": "client-0", "stage": "stage-0", "transcript": H}
    end = {"stage": "stage-0", "draw": H, "group": 0, "unheard": ("client-1",), "blamed": ("client-2",)}
    agreement = Agreement(transcript=H, participants=b"\7", arrived=b"\3")
    return [
        offer,
        make_status(reason="why"),
        Shares(transcript=H, boxes=bytes(164), commitments=bytes(192), seed_commitment=H),
        Words(transcript=H, participants=b"\7", part=0, parts=1, body=bytes(200)),
        agreement,
        Reveal(transcript=H, shares=bytes(99)),
        Task(client="client-0", version=1, attempt=0, head=H, snapshot_offset=0),
        Roster(client="client-0", draw=H, version=1, group=group, groups=1, stage="stage-0"),
        Participants(**to_member, participants=b"\7", boxes=(bytes(82),) * 2, commitments=(bytes(64),) * 2),
        Arrived(**to_member, participants=b"\7", arrived=b"\3"),
        Unmask(**to_member, agreements=(FEDERATION.seal_as("client-0", agreement),)),
        GroupJob(draw=H, version=1, groups=1, members=(group,)),
        Sum(**end, arrived=("client-0",), dropped=(), part=0, parts=1, body=bytes(200)),
        GivenUp(**end, reason="why"),
        Piece(body=bytes(200)),
        Mark(session=bytes(16)),
        Control(run=RunState.PAUSED, issued_us=7),
        Candidacy(session=bytes(16)),
        Record(entry=bytes(32), state=(bytes(32),), optimizer=None),
        Reminder(client="client-0", frame=FEDERATION.seal_as("client-0", offer)),
    ]


def seal(federation: Federation, message: Message) -> bytes:
    return federation.seal_as("client-0", message) if message.signed_by is Role.CLIENT else federation.seal(message)


def make_log() -> LogBook:
    book = LogBook(FEDERATION, tiny_plan(8))
    book.snapshot()
    book.step(np.ones(8, np.float32))
    book.draw()
    book.void()
    book.term()
    digest = FEDERATION.directory.digest()
    book.append(RunEntry(parent=GENESIS, term=0, run=RunState.PAUSED, issued_us=7, version=1))
    book.append(DirectoryEntry(parent=GENESIS, term=0, number=2, digest=digest), FEDERATION.signed)
    return book


# ── mutations ──


def flip(dice: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def splice(dice: random.Random, data: bytes) -> bytes:
    a, b = dice.randrange(len(data)), dice.randrange(len(data))
    return data[:a] + data[b:]


def lengthen(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.randbytes(dice.randint(1, 40)) + data[at:]


def overwrite(dice: random.Random, data: bytes) -> bytes:
    """Where a length or a type mark stands, the largest one."""
    at = dice.randrange(len(data))
    mark = dice.choice((b"\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x0f\xff\xff", b"\xc6\x00\x10\x00\x00"))
    return data[:at] + mark + data[at + len(mark) :]


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (flip, cut, splice, lengthen, overwrite)


def garbage(dice: random.Random, depth: int = 0) -> object:
    """Any value that msgpack can carry."""
    if depth < 4 and dice.random() < 0.3:
        items = [garbage(dice, depth + 1) for _ in range(dice.randrange(4))]
        return items if dice.random() < 0.5 else {dice.choice(("body", "term", "x", "version")): i for i in items}
    return dice.choice(
        (None, True, -1, 2**63, 0.5, float("nan"), float("inf"), "", "x" * 40, b"", H, dice.randbytes(9), 7)
    )


@dataclass
class Fuzzer:
    """Makes one broker message after the other."""

    dice: random.Random
    frames: list[bytes]
    made: int = 0
    behind_signature: int = 0
    payloads: dict[Kind, list[dict[str, object]]] = field(default_factory=dict)

    def frame(self) -> bytes:
        self.made += 1
        if self.dice.random() < 0.5:
            self.behind_signature += 1
            return self.dishonest_frame()
        return self.mutated(self.dice.choice(self.frames))

    def mutated(self, data: bytes) -> bytes:
        for _ in range(self.dice.choice((1, 1, 1, 2))):
            data = self.dice.choice(MUTATIONS)(self.dice, data) or b"?"
        return data

    def dishonest_frame(self) -> bytes:
        """A genuine signature, by whoever may sign the kind, over a payload that is none."""
        kind = self.dice.choice(list(self.payloads))
        fields = dict(self.dice.choice(self.payloads[kind]))
        if self.dice.random() < 0.5:
            fields[self.dice.choice(list(fields))] = garbage(self.dice)
            payload = msgpack.packb(fields)
        else:
            payload = self.mutated(msgpack.packb(fields))
        by_client = MESSAGE_TYPES[kind].signed_by is Role.CLIENT
        name = b"client-1" if by_client else COORDINATOR.encode()
        key = FEDERATION.clients["client-1"] if by_client else FEDERATION.coordinator
        head = bytes((WIRE_VERSION, kind, len(name))) + name
        return MAGIC + head + key.sign(Purpose.MESSAGE, FEDERATION_ID.bytes + head + payload) + payload

    def batch(self) -> tuple[bytes, int]:
        """A batch and how many messages were put in; one in ten is damaged as a whole."""
        frames = [self.frame() for _ in range(FRAMES_PER_BATCH)]
        body = b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)
        return self.mutated(body) if self.dice.random() < 0.1 else body, len(frames)


def make_fuzzer(seed: int, log: LogBook) -> Fuzzer:
    messages = genuine_messages()
    entries = [frame for body in log.stream for frame in split_batch(body)]
    messages += [FEDERATION.opener().open(frame).message for frame in entries]
    fuzzer = Fuzzer(random.Random(seed), [*(seal(FEDERATION, message) for message in messages), *entries])
    for message in messages:
        fuzzer.payloads.setdefault(message.kind, []).append(message.model_dump())
    # Whatever kinds there are, the fuzzer knows them.
    assert set(fuzzer.payloads) == set(MESSAGE_TYPES)
    return fuzzer


def frames_in(body: bytes) -> int:
    """How many messages a receiver finds in a broker message: 0 if it is no batch."""
    try:
        return len(split_batch(body))
    except RemoteProtocolError:
        return 0


@pytest.mark.slow
def test_nothing_that_arrives_stops_a_receiver_or_stays_in_its_memory() -> None:
    log = make_log()
    fuzzer = make_fuzzer(2024, log)
    reader = FEDERATION.reader()
    for offset, body in enumerate(log.stream):
        reader.feed(offset, body)
    opener, chain, weights = FEDERATION.opener(), reader.chain, reader.weights.tobytes()
    told: list[Note] = []
    telemetry = Telemetry(told.append)
    process, resident, grown = psutil.Process(), 0, 0
    opened = refused = skipped = broken = 0

    while fuzzer.made < MESSAGES:
        body, _ = fuzzer.batch()
        frames = frames_in(body)
        if fuzzer.dice.random() < 0.5:
            received, effects = open_delivery(opener, make_delivery(body))
            notes = [effect for effect in effects if isinstance(effect, Note)]
            settles = [effect for effect in effects if isinstance(effect, Settle)]
            for note in notes:
                telemetry.note(note)
            # Each message is opened, or counted and settled; what is no batch is one refusal and one dead letter.
            assert len(notes) == len(settles) == max(frames, 1) - len(received)
            assert all(settle.receipt.open == max(frames, 1) for settle in settles)
            opened, refused = opened + len(received), refused + len(notes)
        else:
            events = reader.feed(1_000_000, body)
            assert len(events) <= max(frames, 1)
            skipped += sum(isinstance(event, Skipped) for event in events)
        broken += frames == 0
        if fuzzer.made >= WARM_UP and fuzzer.made % 1000 < FRAMES_PER_BATCH:
            resident = resident or process.memory_info().rss
            grown = max(grown, process.memory_info().rss - resident)

    # The model log stands where it stood, and still goes on.
    assert reader.chain == chain
    assert reader.weights.tobytes() == weights
    (void_draw,) = pack_batches([log.draw().frame])
    reader.feed(1_000_001, void_draw)
    assert reader.chain.draw is not None
    # All counted, and explained once per reason.
    assert telemetry.counts["refused"] == refused
    assert len(told) == len({note.fields["reason"] for note in told})
    assert {note.fields["reason"] for note in told} >= {
        "malformed",
        "bad_signature",
        "unknown_sender",
        "wrong_version",
        "unknown_kind",
        "not_allowed",
    }
    # The fuzzer is worth its time: much gets behind the signature, some of it even decodes.
    assert fuzzer.behind_signature > 0.4 * MESSAGES
    assert min(opened, refused, skipped, broken) > 0.005 * MESSAGES
    assert len(opener.cache) <= VERIFICATION_CACHE_ENTRIES
    assert grown < GROWTH_BYTES_MAX
