"""The writing side of the model log: one entry at a time, each read back as accepted before the next is written.

Sealing an entry fixes its parent, so two entries on their way would contradict each other: `ready` says when the next
may be made. If the log refuses our entry, somebody else writes it: this session is over.
"""

from __future__ import annotations

import numpy as np

from shared.effects import Append
from shared.errors import ComitiaError, LocalProtocolError
from shared.modellog.chain import GENESIS, ChainState
from shared.modellog.entries import SealedEntry, Sealer, hashes_of, seal_entry
from shared.modellog.reader import Accepted, LogEvent, LogReader, Skipped, weights_digest
from shared.plan import Plan
from shared.wire.log_messages import Entry, SnapshotEntry
from shared.wire.messages import RunState


class Fenced(ComitiaError):
    """Another coordinator has taken over this federation: its term is higher, or its entry came first."""

    exit_code = 1


class LogWriter:
    """Seals entries on top of what the coordinator's own reader has accepted."""

    def __init__(self, log: LogReader, plan: Plan, seal: Sealer) -> None:
        self.log = log
        self._plan = plan
        self._seal = seal
        self._pending = b""

    @property
    def chain(self) -> ChainState | None:
        """Where the log stands, as read back."""
        return self.log.chain

    @property
    def ready(self) -> bool:
        """Whether an entry may be written now."""
        return not self._pending and self.log.chain is not None

    def append(self, entry: Entry, body: np.ndarray | bytes = b"", weights: np.ndarray | None = None) -> Append:
        """Seal an entry (its parent and term are filled in) and expect to read it back.

        Args:
            entry: a draft with any parent and term.
            body: what the entry carries; must stay unchanged until it was read back.
            weights: the model (float32 (d,)) that a change or a first snapshot leads to.

        Raises:
            LocalProtocolError: another entry is still on its way.
        """
        return Append(self.seal(entry, body, weights))

    def seal(
        self, entry: Entry, body: np.ndarray | bytes = b"", weights: np.ndarray | None = None, ahead: bytes = b""
    ) -> SealedEntry:
        """As `append`, but the sealed entry itself, for those who need its digest; `ahead` as in `seal_entry`."""
        chain = self.log.chain
        if self._pending:
            raise LocalProtocolError("an entry was to be written while another is on its way")
        if chain is not None:
            entry = entry.model_copy(update={"parent": chain.head, "term": entry.term or chain.term})
        sealed = seal_entry(entry, body, self._seal, ahead)
        self._pending = sealed.digest
        self.log.expect(sealed, weights)
        return sealed

    def snapshot(self, weights: np.ndarray) -> Append:
        """The whole model as an entry: the federation's first, or one of the present version."""
        chain = self.log.chain
        # A log that is founded begins with our own directory.
        signed = self.log.signed_directory if chain else self.log.members.signed
        directory = self.log.members.read(signed)
        entry = SnapshotEntry(
            parent=GENESIS,
            term=0 if chain else 1,
            version=chain.version if chain else 0,
            version_head=chain.version_head if chain else GENESIS,
            earlier_heads=chain.earlier_heads if chain else (),
            attempt=chain.attempt if chain else 0,
            weights_sha256=chain.weights_sha256 if chain else weights_digest(weights),
            clipping_norm=chain.clipping_norm if chain else self._plan.codec.clipping_norm,
            plan=self._plan.encode(),
            directory_number=directory.number,
            directory_digest=directory.digest(),
            directory=hashes_of(signed),
            run=chain.run if chain else RunState.RUNNING,
            controlled_us=chain.controlled_us if chain else 0,
        )
        body = np.ascontiguousarray(weights, dtype="<f4")
        return Append(self.seal(entry, body, None if chain else weights, signed))

    def observe(self, event: LogEvent) -> None:
        """Watch for our own entry coming back.

        Raises:
            Fenced: it was refused.
        """
        match event:
            case Accepted(digest=digest) if digest == self._pending:
                self._pending = b""
            case Skipped(digest=digest) if digest and digest == self._pending:
                raise Fenced(f"the model log refused our entry ({event.reason}): another coordinator writes it")
            case _:
                return
