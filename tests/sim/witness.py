"""Who sees everything that leaves, and everything that is on a disk: the invariants, checked after every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coordinator.events import GroupSummed
from shared.crypto.signing import VerificationCache
from shared.modellog.reader import Accepted, LogReader
from shared.plan import Plan
from shared.rounds import Ground, ground_of, transcript_of
from shared.transport.memory import MemoryBroker
from shared.wire.framing import Opener, split_batch
from shared.wire.group_messages import Agreement, Group, GroupJob, Reveal, Shares, Sum, Words
from shared.wire.log_messages import ChangeEntry, DrawEntry, VoidEntry
from shared.wire.member_sets import decode_members
from shared.wire.messages import Kind, Offer
from tests.builders import Federation
from worker.ledger import LedgerEnd, LedgerRecord, SpentMark, read_ledger
from worker.state import ClientState
from worker.storage import MemoryStorage

_WATCHED = {Kind.OFFER, Kind.SHARES, Kind.WORDS, Kind.AGREEMENT, Kind.REVEAL, Kind.GROUP_JOB, Kind.SUM}
_KIND_AT = 4


class Violation(AssertionError):
    """Something that must hold does not."""


def tag_of(state: ClientState) -> float | None:
    """The update that waits on a client's disk, by its tag."""
    unspent = state.unspent()
    return None if unspent is None else unspent.meta.metrics["loss"]


class _Trusting(VerificationCache):
    """Verifies nothing: what leaves is looked at, whoever signed it; verifying would cost more than the run."""

    def verify(self, *signed: Any) -> None:
        return


@dataclass(slots=True)
class _Drawn:
    """What is known of one group of a draw."""

    draw: bytes
    version: int
    group: Group
    offers: Mapping[str, Offer]


@dataclass(slots=True)
class _ClientRecord:
    """What one client has let out, and what its disk has held."""

    counter: int = 0
    offered: float | None = None
    offered_version: int = 0
    offered_head: bytes = b""
    encoded: tuple[float, np.ndarray] | None = None
    ledger: bytes = b""
    records: list[LedgerRecord] = field(default_factory=list)
    keys: dict[bytes, bytes] = field(default_factory=dict)
    left: dict[float, bytes] = field(default_factory=dict)

    @property
    def marks(self) -> list[SpentMark]:
        return [record for record in self.records if isinstance(record, SpentMark)]


class Witness:
    """Sees every publish before it is on its way, every sum before it is used, and the log past all faults."""

    def __init__(
        self, keys: Federation, plan: Plan, broker: MemoryBroker, storages: Mapping[str, MemoryStorage]
    ) -> None:
        self._names = keys.names
        self._plan = plan
        self._broker = broker
        self._storages = storages
        members = keys.members()
        trusting = Opener(keys.directory.federation_id, lambda role, sender: keys.coordinator.public, _Trusting())
        self._opener = trusting
        self.log = LogReader(trusting, members)
        self._offset = 0
        self.positions: dict[bytes, int] = {}
        self._head = b""
        self._groups_counted: set[tuple[bytes, int]] = set()
        self._grounds: dict[bytes, tuple[Ground, int, int]] = {}
        self._jobs: dict[bytes, dict[int, Group]] = defaultdict(dict)
        self._drawn: dict[bytes, _Drawn] = {}
        self._by_index: dict[tuple[bytes, int], bytes] = {}
        self._clients = {client: _ClientRecord() for client in storages}
        self._bodies: dict[tuple[str, bytes, int], bytes] = {}
        self._plain: dict[tuple[str, bytes], np.ndarray] = {}
        self._agreed: dict[bytes, dict[str, bytes]] = defaultdict(dict)
        self._opened: dict[bytes, tuple[str, ...]] = {}
        self._released: dict[bytes, dict[int, str]] = defaultdict(dict)
        self.sums = 0
        self.voids = 0

    @property
    def version(self) -> int:
        """The newest version of the log."""
        return -1 if self.log.chain is None else self.log.chain.version

    # ── what leaves ──────────────────────────────────────────────────────────────────────────────────────────────────

    def encoded(self, client: str, tag: float, words: np.ndarray) -> None:
        """A client has turned its update, known by `tag`, into plain words: nothing of it may have left before."""
        self._clients[client].encoded = (tag, words)

    def published(self, body: bytes, unspent: Mapping[str, float | None]) -> None:
        """Something is about to leave a process; `unspent` is which update each of its clients has on its disk."""
        for frame in split_batch(body):
            if frame[_KIND_AT] not in _WATCHED:
                continue
            opened = self._opener.open(frame)
            match opened.message:
                case Offer() as offer:
                    self._see_offer(opened.sender, offer, opened.digest, unspent.get(opened.sender))
                case GroupJob() as job:
                    self._see_job(job)
                case Shares() as shares:
                    self._see_shares(opened.sender, shares)
                case Words() as words:
                    self._see_words(opened.sender, words)
                case Agreement() as agreement:
                    self._see_agreement(opened.sender, agreement)
                case Reveal() as reveal:
                    self._see_reveal(opened.sender, reveal)
                case Sum() as message:
                    self._see_sum(message)

    def _see_offer(self, client: str, offer: Offer, digest: bytes, unspent: float | None) -> None:
        record = self._clients[client]
        record.counter = max(record.counter, offer.counter)
        disk = ClientState(self._storages[client].synced(), client=client, federation=self._opener.federation)
        if disk.counter < offer.counter or tag_of(disk) != unspent:
            raise Violation(f"{client}: offers what a power cut would take (counter {offer.counter})")
        if unspent is not None:
            record.offered, record.offered_version = unspent, offer.trained_version
            record.offered_head = offer.trained_head
        for key in () if offer.keys is None else (offer.keys.sealing, offer.keys.masking):
            if record.keys.setdefault(key, digest) != digest:
                raise Violation(f"{client}: keys of one offer in another (counter {offer.counter})")

    def _see_job(self, job: GroupJob) -> None:
        known = self._jobs[job.draw]
        for group in job.members:
            if known.setdefault(group.index, group) != group:
                raise Violation(f"group {group.index} of a draw has two rosters")
        self._resolve(job.draw)

    def _resolve(self, draw: bytes) -> None:
        """Once draw and jobs are known: which transcript is of which group."""
        if draw not in self._grounds:
            return
        ground, version, offers = self._grounds[draw]
        groups = self._jobs[draw]
        members = [member for group in groups.values() for member in group.members]
        if len({member.client for member in members}) != len(members):
            raise Violation("a client stands twice in one draw")
        if len({member.offer_digest for member in members}) != len(members) or len(members) > offers:
            raise Violation(f"{len(members)} offers in the groups of a draw of {offers}")
        for index, group in groups.items():
            if (draw, index) in self._by_index:
                continue
            transcript = transcript_of(ground, draw, version, group)
            opened = {member.client: self._opener.open(member.offer).message for member in group.members}
            drawn = {client: offer for client, offer in opened.items() if isinstance(offer, Offer)}
            self._drawn[transcript] = _Drawn(draw, version, group, drawn)
            self._by_index[draw, index] = transcript

    def _group(self, transcript: bytes, what: str) -> _Drawn:
        self.read_log()
        if transcript not in self._drawn:
            raise Violation(f"{what} for a group that no draw of the log has")
        return self._drawn[transcript]

    def _see_shares(self, client: str, shares: Shares) -> None:
        offer = self._group(shares.transcript, "shares").offers[client]
        assert offer.keys is not None
        served = self._bodies.setdefault((client, offer.keys.masking, -1), shares.transcript)
        if served != shares.transcript:
            raise Violation(f"{client}: the keys of one offer served two rosters")

    def _see_words(self, client: str, words: Words) -> None:
        transcript, record = words.transcript, self._clients[client]
        self._group(transcript, "words")
        body = words.participants + words.body
        if self._bodies.setdefault((client, transcript, words.part), body) != body:
            raise Violation(f"{client}: two different words for one group")
        if (client, transcript) in self._plain:
            return
        if record.encoded is None:
            raise Violation(f"{client}: words of no update")
        tag, plain = record.encoded
        self._plain[client, transcript] = plain
        if record.left.setdefault(tag, transcript) != transcript:
            raise Violation(f"{client}: one update in the words of two groups")
        self._read_ledger(client)
        if len(record.marks) < len(record.left):
            raise Violation(
                f"{client}: {len(record.left)} updates have left, {len(record.marks)} are marked on the disk"
            )
        if self._plan.privacy.level != "off" and any(mark.charge is None for mark in record.marks):
            raise Violation(f"{client}: an update was spent without a charge")

    def _see_agreement(self, client: str, agreement: Agreement) -> None:
        sets = agreement.participants + agreement.arrived
        if self._agreed[agreement.transcript].setdefault(client, sets) != sets:
            raise Violation(f"{client}: two agreements in one group")

    def _see_reveal(self, client: str, reveal: Reveal) -> None:
        transcript, members = reveal.transcript, len(self._group(reveal.transcript, "shares of secrets").offers)
        agreed = self._agreed[transcript]
        sets = agreed.get(client)
        if sets is None:
            raise Violation(f"{client}: revealed shares without having agreed")
        signers = sum(other == sets for other in agreed.values())
        if signers < self._plan.threshold(members):
            raise Violation(f"{client}: revealed shares after {signers} agreements")
        half = len(sets) // 2
        participants, arrived = decode_members(sets[:half], members), decode_members(sets[half:], members)
        for place in participants:
            kind = "self mask" if place in arrived else "masking key"
            if self._released[transcript].setdefault(place, kind) != kind:
                raise Violation(f"both kinds of share of one client were released (place {place})")

    # ── sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _see_sum(self, message: Sum) -> None:
        form = self._plan.sum_format(len(message.arrived) + len(message.dropped), self._plan.codec.clipping_norm)
        size = form.length * form.word_type.itemsize
        words = np.frombuffer(message.body[:size], dtype=form.word_type)
        self._check_sum(message.draw, message.group, message.arrived, words)

    def summed(self, event: GroupSummed) -> None:
        """A sum reaches an aggregator, wherever it was made."""
        self._check_sum(event.draw, event.group, event.arrived, event.words)

    def _check_sum(self, draw: bytes, group: int, arrived: tuple[str, ...], words: np.ndarray) -> None:
        self.read_log()
        transcript = self._by_index.get((draw, group))
        if transcript is None:
            raise Violation(f"a sum of group {group}, which no draw of the log has")
        if self._opened.setdefault(transcript, arrived) != arrived:
            raise Violation(
                f"two sums of group {group} of different members: their difference would show who is in one"
            )
        parts = [self._plain.get((client, transcript)) for client in arrived]
        if any(part is None for part in parts):
            raise Violation(f"a sum of group {group} holds a client that has sent no words")
        expected = np.add.reduce([part for part in parts if part is not None], dtype=words.dtype)
        if not np.array_equal(expected, words):
            raise Violation(f"the sum of group {group} is not the sum of its members' words")
        self.sums += 1

    # ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _read_ledger(self, client: str) -> None:
        """What is synced of a ledger only ever grows."""
        record, content = self._clients[client], self._storages[client].synced().read("ledger.log") or b""
        if content == record.ledger:
            return
        records, _ = read_ledger(content, LedgerEnd())
        if records[: len(record.records)] != record.records:
            raise Violation(f"{client}: its ledger has forgotten something")
        record.ledger, record.records = content, records

    def restarted(self, client: str, state: ClientState, unspent: float | None) -> None:
        """A client's directory was opened again, after whatever happened."""
        record = self._clients[client]
        self._read_ledger(client)
        if state.counter < record.counter:
            raise Violation(f"{client}: counter {state.counter} on the disk, {record.counter} was signed")
        if len(state.charges) < sum(one.charge is not None for one in record.records):
            raise Violation(f"{client}: spent privacy has fallen")
        if record.offered is None or record.offered in record.left or unspent == record.offered:
            return
        chain = self.log.chain
        assert chain is not None
        gone = len(record.marks) > len(record.left)
        if not gone and chain.head_of(record.offered_version) == record.offered_head and unspent is None:
            raise Violation(f"{client}: an unspent update of version {record.offered_version} was lost")

    # ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def read_log(self) -> None:
        """Read what is new, and check that it is one chain in which every version and group counts once."""
        for offset, body in self._broker.entries(self._names.log, self._offset):
            self._offset = offset + 1
            for event in self.log.feed(offset, body):
                if isinstance(event, Accepted):
                    self._see_entry(event)

    def _see_entry(self, event: Accepted) -> None:
        entry, digest = event.entry, event.digest
        if digest in self.positions:
            raise Violation(f"{type(entry).__name__} was accepted twice")
        if self._head and entry.parent != self._head:
            raise Violation(f"{type(entry).__name__} was accepted although its parent is not the head")
        self._head = digest
        self.positions[digest] = len(self.positions)
        match entry:
            case DrawEntry():
                ground = ground_of(self.log, digest)
                self._grounds[digest] = (ground, entry.version, entry.offers)
                self._resolve(digest)
            case ChangeEntry():
                groups = {(entry.draw, group) for group in entry.groups}
                if groups & self._groups_counted:
                    raise Violation("a group in two entries")
                self._groups_counted |= groups
            case VoidEntry():
                self.voids += 1
            case _:
                return

    def check_reader(self, who: str, log: LogReader) -> None:
        """Whether a process has read a part of the one chain, and come to the same model by it."""
        chain = log.chain
        if chain is None or chain.head in self.positions:
            return
        if not log._built_on:
            # Begun with the snapshot of a coordinator that had been replaced: nobody builds on it.
            return
        raise Violation(f"{who} stands at an entry that is not in the log's one chain: a fork")
