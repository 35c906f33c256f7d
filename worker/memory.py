"""What does a client's state directory remember? A copy in memory is opened, so the directory is only ever read.

No lock is taken: the worker that holds the directory goes on. The files are read again if one changed meanwhile.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np

from shared.errors import StateError
from shared.identity import ClientId
from worker.ledger import LedgerEnd, LedgerRecord, SpentMark, read_ledger
from worker.state import ClientState
from worker.storage import MemoryStorage
from worker.stored_update import StoredUpdate, TaskId

_TRIES = 20
_IDENTITY, _LEDGER = "identity.json", "ledger.log"
# The ledger last: what the slots say of it was written before them.
_FILES = (_IDENTITY, "update.0", "update.1", "progress.0", "progress.1", "residual.0", "residual.1", _LEDGER)


@dataclass(frozen=True, slots=True)
class ClientMemory:
    """A client's state at one moment. `records` is the whole ledger, oldest first."""

    client: str
    federation: UUID
    counter: int
    last_task: TaskId | None
    unspent: StoredUpdate | None
    records: tuple[LedgerRecord, ...]

    @property
    def spent(self) -> tuple[SpentMark, ...]:
        """All updates that have left."""
        return tuple(record for record in self.records if isinstance(record, SpentMark))

    @property
    def unspent_norm(self) -> float | None:
        """L2 norm of the unspent update, before clipping."""
        return None if self.unspent is None else math.sqrt(float(np.sum(np.square(self.unspent.values, dtype="f8"))))


def read_client(path: Path) -> ClientMemory:
    """Read a state directory without changing it.

    Raises:
        StateError: it is none, it cannot be read, or it is damaged.
    """
    files = _copy(path)
    if _IDENTITY not in files:
        raise StateError(f"{path}: no client's state directory (it has no {_IDENTITY})")
    client, federation = _identity(path, files[_IDENTITY])
    storage = MemoryStorage(str(path))
    for name, content in files.items():
        storage.replace(name, content)
    state = ClientState(storage, client=client, federation=federation)
    records, _ = read_ledger(files[_LEDGER], LedgerEnd())
    return ClientMemory(client, federation, state.counter, state.last_task, state.unspent(), tuple(records))


def _copy(path: Path) -> dict[str, bytes]:
    """The files as they were at one moment."""
    if not path.is_dir():
        raise StateError(f"{path}: there is no such state directory")
    try:
        for _ in range(_TRIES):
            before = _stamps(path)
            files = {name: (path / name).read_bytes() for name in _FILES if name in before}
            if _stamps(path) == before:
                return files
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
    raise StateError(f"{path}: changes faster than it can be read; try again")


def _stamps(path: Path) -> dict[str, tuple[int, int]]:
    found = {name: (path / name).stat() for name in _FILES if (path / name).exists()}
    return {name: (status.st_mtime_ns, status.st_size) for name, status in found.items()}


def _identity(path: Path, content: bytes) -> tuple[ClientId, UUID]:
    try:
        fields = json.loads(content)
        return ClientId(fields["client"]), UUID(fields["federation"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path / _IDENTITY}: does not say whose state this is") from error
