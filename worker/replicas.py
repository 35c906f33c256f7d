"""How do replicas of a worker find each other? By signs that they put up beside their clients' state directories.

In ``<state_dir>/.replicas`` (no client can be called so) every replica has two files: ``<worker>.lock``, which it
holds by an OS lock for as long as it lives, and ``<worker>.json``, which says who it is and whom it serves. A lock that
nobody holds is a dead replica's, however it died; whoever finds one removes both files.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from shared.errors import StateError
from worker.sharing_out import Replica

REPLICAS_DIRECTORY = ".replicas"

_LOCK, _RECORD = ".lock", ".json"


class Sign:
    """What one replica shows the others for as long as it lives, or until it is taken down."""

    def __init__(self, state_dir: Path, replica: Replica) -> None:
        """Put the sign up.

        Raises:
            StateError: the directory cannot be used.
        """
        self.replica = replica
        self._folder = state_dir / REPLICAS_DIRECTORY
        self._lock: int | None = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _hold(self._folder / f"{replica.worker}{_LOCK}")
            self._write()
        except OSError as error:
            raise StateError(f"{self._folder}: cannot be used: {error.strerror}") from error

    def show(self, clients: frozenset[str]) -> None:
        """Say whom this replica serves now.

        Raises:
            StateError: the directory cannot be written to.
        """
        if self._lock is None or clients == self.replica.clients:
            return
        self.replica = replace(self.replica, clients=clients)
        try:
            self._write()
        except OSError as error:
            raise StateError(f"{self._folder}: cannot be written to: {error.strerror}") from error

    def take_down(self) -> None:
        """Count no more as a replica. Idempotent."""
        if self._lock is not None:
            _remove(self._folder, self.replica.worker)
            os.close(self._lock)
            self._lock = None

    def _write(self) -> None:
        record = asdict(self.replica) | {"clients": sorted(self.replica.clients)}
        path = self._folder / f"{self.replica.worker}{_RECORD}"
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(record))
        aside.replace(path)


def live_replicas(state_dir: Path) -> list[Replica]:
    """All replicas that live, sorted by name; the signs of dead ones are removed.

    Raises:
        StateError: the directory cannot be used.
    """
    folder = state_dir / REPLICAS_DIRECTORY
    try:
        held = [lock for lock in sorted(folder.glob(f"*{_LOCK}")) if _is_held(lock)]
    except OSError as error:
        raise StateError(f"{folder}: cannot be used: {error.strerror}") from error
    found = (_read(lock.with_suffix(_RECORD)) for lock in held)
    return [replica for replica in found if replica is not None]


def _hold(path: Path) -> int:
    """Lock a file that exists: between its making and its locking somebody may have taken it for a dead replica's."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)


def _is_held(path: Path) -> bool:
    """Whether a replica holds its lock; if not, its sign is removed."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Removed while it is locked: a replica that is about to lock it sees that it is gone.
        _remove(path.parent, path.name.removesuffix(_LOCK))
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _remove(folder: Path, worker: str) -> None:
    for suffix in (_LOCK, _RECORD):
        (folder / f"{worker}{suffix}").unlink(missing_ok=True)


def _read(path: Path) -> Replica | None:
    """None if there is no record, or one of another version."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        record = json.loads(path.read_bytes())
        return Replica(**record | {"clients": frozenset(record["clients"])})
    return None
