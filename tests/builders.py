"""What many tests begin with: a federation's keys in memory, sealed messages, a tiny plan, a model log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np

from shared.crypto.signing import SigningKey, VerificationCache
from shared.directory import Directory, sign_directory
from shared.identity import COORDINATOR
from shared.incoming import keys_of
from shared.membership import Membership
from shared.modellog.chain import GENESIS, ChainState
from shared.modellog.entries import SealedEntry, hashes_of, seal_entry
from shared.modellog.reader import LogEvent, LogReader, weights_digest
from shared.plan import Plan, make_plan
from shared.transport.port import Delivery
from shared.wire.framing import Opener, pack_batches, seal
from shared.wire.log_messages import ChangeEntry, DrawEntry, Entry, SnapshotEntry, TermEntry, VoidEntry
from shared.wire.messages import ClientState, Message, Offer, RunState, Status
from shared.wire.topology import Names

FEDERATION = "test"
FEDERATION_ID = UUID(int=5)


def signing_key(number: int) -> SigningKey:
    """A key pair that is the same in every run."""
    return SigningKey.from_seed(number.to_bytes(32, "big"))


ENROLMENT = signing_key(2)


@dataclass(frozen=True)
class Federation:
    """A directory and all private keys behind it."""

    directory: Directory
    coordinator: SigningKey
    clients: Mapping[str, SigningKey]
    enrolment: SigningKey = ENROLMENT

    @property
    def names(self) -> Names:
        return Names(self.directory.federation)

    def seal(self, message: Message) -> bytes:
        """Seal as the coordinator."""
        return seal(message, sender=COORDINATOR, federation=self.directory.federation_id, key=self.coordinator)

    def seal_as(self, client: str, message: Message) -> bytes:
        """Seal as a client."""
        return seal(message, sender=client, federation=self.directory.federation_id, key=self.clients[client])

    def opener(self) -> Opener:
        """A new opener with an empty cache."""
        return Opener(self.directory.federation_id, keys_of(self.members()), VerificationCache())

    def members(self) -> Membership:
        """What a process knows of the directory when it starts."""
        return Membership(self.signed, self.enrolment.public)

    def reader(self) -> LogReader:
        """A new reader of the log, with members and an opener of its own."""
        members = self.members()
        return LogReader(Opener(self.directory.federation_id, keys_of(members), VerificationCache()), members)

    @cached_property
    def signed(self) -> bytes:
        """The directory's file."""
        return sign_directory(self.directory, self.enrolment)


def make_federation(
    clients: int = 3, *, sites: int = 1, revoked: tuple[str, ...] = (), name: str = FEDERATION
) -> Federation:
    """Clients `client-0`, `client-1`, … spread over the sites `site-0`, `site-1`, …; their keys never change."""
    coordinator = signing_key(1)
    keys = {f"client-{number}": signing_key(100 + number) for number in range(clients)}
    directory = Directory.model_validate(
        {
            "federation": name,
            "federation_id": FEDERATION_ID,
            "number": 1,
            "coordinator_key": coordinator.public.raw.hex(),
            "sites": {f"site-{number}": {"broker_user": f"user-{number}"} for number in range(sites)},
            "clients": {
                client: {"site": f"site-{number % sites}", "key": key.public.raw.hex()}
                for number, (client, key) in enumerate(keys.items())
            },
            "revoked": frozenset(revoked),
        }
    )
    return Federation(directory, coordinator, keys)


def tiny_plan(dimension: int = 8, **fields: Any) -> Plan:
    """A sound plan: half of `dimension` coordinates, trim 0, plain FedAvg. `fields` replace or add to it."""
    return make_plan(
        **{
            "federation": FEDERATION,
            "federation_id": FEDERATION_ID,
            "workload": "tests:tiny",
            "layout_digest": "0" * 64,
            "dimension": dimension,
            "group_size": 1,
            "weight_records_max": 10,
            "codec": {"selection": "random", "density": 0.5},
            "aggregation": {"rule": "trimmed-mean", "trim": 0},
            **fields,
        }
    )


def make_offer(version: int = 0, head: bytes = bytes(32), **fields: Any) -> Offer:
    """An offer of an update trained on `version`, made by the entry `head`."""
    return Offer(
        **{
            "attempt": 0,
            "trained_version": version,
            "trained_head": head,
            "counter": 1,
            "nonce": bytes(16),
            "worker": "w-0",
            **fields,
        }
    )


def make_status(state: ClientState = ClientState.IDLE, sequence: int = 1, **fields: Any) -> Status:
    """A sign of life of a client that follows the log."""
    return Status(
        **{
            "sequence": sequence,
            "counter": 0,
            "state": state,
            "version": 0,
            "worker": "w-0",
            "log_position": "following",
            **fields,
        }
    )


def make_delivery(body: bytes, queue: str = "queue", offset: int | None = None) -> Delivery:
    """One broker message as a transport hands it over."""
    return Delivery(queue=queue, body=body, routing_key=queue, redelivered=False, handle=None, offset=offset)


class LogBook:
    """A model log and its one honest writer. `stream[offset]` is the broker message at `offset`.

    `append` seals on top of what its own `reader` has accepted (parent and term are filled in) and reads it back.
    """

    def __init__(self, federation: Federation, plan: Plan, weights: np.ndarray | None = None) -> None:
        self.federation = federation
        self.plan = plan
        self.first_weights = np.zeros(plan.dimension, np.float32) if weights is None else weights
        self.stream: list[bytes] = []
        self.reader = federation.reader()

    @property
    def chain(self) -> ChainState:
        assert self.reader.chain is not None
        return self.reader.chain

    def write(self, *frames: bytes) -> list[LogEvent]:
        """Put frames into the stream as they are, and read them back."""
        events: list[LogEvent] = []
        for body in pack_batches(frames):
            self.stream.append(body)
            events += self.reader.feed(len(self.stream) - 1, body)
        return events

    def seal(self, entry: Entry, body: np.ndarray | bytes = b"") -> SealedEntry:
        """Seal a draft on top of the present head, without writing it. A term of 0 means the present one."""
        if self.reader.chain is not None:
            entry = entry.model_copy(update={"parent": self.chain.head, "term": entry.term or self.chain.term})
        ahead = b""
        if isinstance(entry, SnapshotEntry):
            ahead = self.reader.signed_directory or self.federation.signed
        return seal_entry(entry, body, self.federation.seal, ahead)

    def append(self, entry: Entry, body: np.ndarray | bytes = b"") -> SealedEntry:
        """Seal and write an entry."""
        sealed = self.seal(entry, body)
        self.write(*sealed.frames())
        return sealed

    def snapshot(self) -> SealedEntry:
        """The first snapshot of the federation, or one of the present version."""
        return self.append(*self.snapshot_draft())

    def draw(self, groups: int = 1, root: bytes = bytes(32)) -> SealedEntry:
        """Open a draw."""
        return self.append(self.draw_draft(groups, root))

    def change(self, weights: np.ndarray, groups: tuple[int, ...] = (0,), clipping_norm: float = 1.0) -> SealedEntry:
        """Close the draw with a step to `weights`; only the round's coordinates of them count if the plan is sparse."""
        return self.append(*self.change_draft(weights, groups, clipping_norm))

    def void(self, reason: str = "test") -> SealedEntry:
        """Close the draw without a step."""
        return self.append(self.void_draft(reason))

    def term(self, session: bytes = b"s" * 16) -> SealedEntry:
        """Another session takes over."""
        return self.append(TermEntry(parent=GENESIS, term=self.chain.term + 1, session=session))

    def step(self, weights: np.ndarray) -> SealedEntry:
        """A draw of one group and its change."""
        self.draw()
        return self.change(weights)

    # ── drafts: parent and term are not filled in ──

    def snapshot_draft(self) -> tuple[SnapshotEntry, np.ndarray]:
        chain = self.reader.chain
        weights = self.reader.weights if chain else self.first_weights
        signed = self.reader.signed_directory if chain else self.federation.signed
        directory = self.reader.members.read(signed)
        entry = SnapshotEntry(
            parent=GENESIS,
            term=0 if chain else 1,
            version=chain.version if chain else 0,
            version_head=chain.version_head if chain else GENESIS,
            earlier_heads=chain.earlier_heads if chain else (),
            attempt=chain.attempt if chain else 0,
            weights_sha256=weights_digest(weights),
            clipping_norm=chain.clipping_norm if chain else self.plan.codec.clipping_norm,
            plan=self.plan.encode(),
            directory_number=directory.number,
            directory_digest=directory.digest(),
            directory=hashes_of(signed),
            run=chain.run if chain else RunState.RUNNING,
            controlled_us=chain.controlled_us if chain else 0,
        )
        return entry, np.ascontiguousarray(weights, dtype="<f4")

    def draw_draft(self, groups: int = 1, root: bytes = bytes(32)) -> DrawEntry:
        return DrawEntry(parent=GENESIS, term=0, version=self.chain.version, groups=groups, offers=groups, root=root)

    def change_draft(
        self, weights: np.ndarray, groups: tuple[int, ...] = (0,), clipping_norm: float = 1.0
    ) -> tuple[ChangeEntry, np.ndarray]:
        positions = self.reader.coordinates
        after = np.array(weights, dtype="<f4")
        if positions is not None:
            after = self.reader.weights.copy()
            after[positions] = weights[positions]
        entry = ChangeEntry(
            parent=GENESIS,
            term=0,
            version=self.chain.version + 1,
            draw=self.chain.draw.entry if self.chain.draw else GENESIS,
            groups=groups,
            weights_sha256=weights_digest(after),
            clipping_norm=clipping_norm,
            coordinates="all" if positions is None else "round",
        )
        return entry, np.ascontiguousarray(after if positions is None else after[positions], dtype="<f4")

    def void_draft(self, reason: str = "test") -> VoidEntry:
        return VoidEntry(
            parent=GENESIS, term=0, draw=self.chain.draw.entry if self.chain.draw else GENESIS, reason=reason
        )
