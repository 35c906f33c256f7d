"""How does a new directory reach a federation at work? As an entry of the model log, between two draws (sans-I/O).

The coordinator checks what it is given, as every reader of the log does again, and writes it when no draw is open: the
members of a group are bound to one directory. One that is older than the log's, or than another that waits, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.events import CoordinatorEffect, DirectoryArrived, EntryAccepted, Event, TookOffice
from coordinator.log_writer import LogWriter
from shared.effects import note
from shared.errors import DirectoryError
from shared.membership import Membership
from shared.modellog.chain import GENESIS
from shared.wire.log_messages import DirectoryEntry


class Enrolment:
    """Writes directories to the log; `members` is that of the coordinator's own reader."""

    def __init__(self, writer: LogWriter, members: Membership) -> None:
        self._writer = writer
        self._members = members
        self._waiting: bytes | None = None
        self._in_office = False

    def handle(self, event: Event, now: float) -> tuple[CoordinatorEffect, ...]:
        """The one door: an event at a time `now` (seconds, monotonic) gives effects."""
        match event:
            case DirectoryArrived(signed):
                told = tuple(self._on_directory(signed))
            case TookOffice():
                # The file that we were started with may be newer than the log.
                self._in_office = True
                self._waiting = self._waiting or self._members.signed
                told = ()
            case EntryAccepted(accepted) if isinstance(accepted.entry, DirectoryEntry):
                assert self._writer.chain is not None
                told = (note("directory_adopted", number=accepted.entry.number, version=self._writer.chain.version),)
            case _:
                told = ()
        return (*told, *self._maybe_write())

    def _on_directory(self, signed: bytes) -> Iterator[CoordinatorEffect]:
        chain = self._writer.chain
        try:
            directory = self._members.read(signed)
        except DirectoryError as error:
            yield note("directory_refused", "error", reason=str(error))
            return
        in_force = max(self._members.directory.number, chain.directory_number if chain else 0)
        newest = in_force if self._waiting is None else max(in_force, self._members.read(self._waiting).number)
        if directory.number < newest:
            state = "is in force" if newest == in_force else "waits for a draw to end"
            reason = f"it has number {directory.number}, and number {newest} {state}"
            yield note("directory_refused", "error", reason=reason)
        elif directory.number > newest:
            self._waiting = signed

    def _maybe_write(self) -> Iterator[CoordinatorEffect]:
        chain = self._writer.chain
        if self._waiting is None or not self._in_office or not self._writer.ready:
            return
        if chain is None or chain.draw is not None:
            return
        signed, self._waiting = self._waiting, None
        directory = self._members.read(signed)
        if directory.number > chain.directory_number:
            entry = DirectoryEntry(parent=GENESIS, term=0, number=directory.number, digest=directory.digest())
            yield self._writer.append(entry, signed)
