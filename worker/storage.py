"""Where do a client's bytes live, and when are they safe? The port to a state directory, and its two adapters.

`DirectoryStorage` is a directory on a disk; `MemoryStorage` is one in memory that can lose power: it forgets what was
not synced, and may keep any part of it. Both count their fsyncs, since these are what a round costs on a disk.

What a storage promises: bytes are safe once `sync` of their file has returned, or `replace`, and not before. A write
that was not synced may after a crash be there in full, in part, or not at all. After an error nothing is known about
the disk any more, so every later operation fails too, until the directory is opened again.
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from shared.disk import sync_directory
from shared.errors import StateError, StateHeld

Buffer = bytes | memoryview

_LOCK = "lock"
# The data and whatever is needed to find it again (the file's size), but no time stamps: half the journal's work.
_flush = getattr(os, "fdatasync", os.fsync)


class Storage(Protocol):
    """A flat set of named files, held by one process alone."""

    @property
    def location(self) -> str:
        """What to call this storage in an error message."""

    @property
    def fsyncs(self) -> int:
        """How often this storage made the disk flush, since it was opened."""

    def read(self, name: str) -> bytes | None:
        """A file's whole content; None if there is no such file."""

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write `parts` one after the other over a file's beginning; what was there behind them stays."""

    def append(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write `parts` behind a file's end."""

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to `size` bytes."""

    def sync(self, name: str) -> None:
        """Return once everything written to a file, and a new file's name, is on the disk."""

    def replace(self, name: str, content: bytes) -> None:
        """Give a file a new content: after a crash it has either the old or the new one. Safe on return."""

    def close(self) -> None:
        """Let go of the storage. Idempotent."""


class DirectoryStorage:
    """A directory that this process alone holds, by an OS lock that ends with the process."""

    def __init__(self, path: Path) -> None:
        """Make the directory (mode 0700) if it is not there, and lock it.

        Raises:
            StateHeld: another process holds it.
            StateError: others may enter it, or it cannot be used.
        """
        self._path = path
        self._files: dict[str, int] = {}
        self._unnamed: set[str] = set()
        self._unusable = ""
        self.fsyncs = 0
        with self._guarded("open", ""):
            make_directory(path)
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise StateError(f"{path}: others may enter this state directory (mode {mode:04o}); chmod 700 {path}")
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _locked(path, self._lock):
                raise StateHeld(f"{path}: another process holds this state directory; stop it first")
        except StateError:
            os.close(self._lock)
            raise

    @property
    def location(self) -> str:
        """The directory's path."""
        return str(self._path)

    def read(self, name: str) -> bytes | None:
        """See `Storage.read`."""
        with self._guarded("read", name):
            try:
                return (self._path / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Storage.write`."""
        with self._guarded("write", name):
            _write_at(self._open(name), 0, parts)

    def append(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Storage.append`."""
        with self._guarded("write", name):
            file = self._open(name)
            _write_at(file, os.fstat(file).st_size, parts)

    def truncate(self, name: str, size: int) -> None:
        """See `Storage.truncate`."""
        with self._guarded("truncate", name):
            os.ftruncate(self._open(name), size)

    def sync(self, name: str) -> None:
        """See `Storage.sync`. One fsync, and one more for a file that is new."""
        with self._guarded("sync", name):
            _flush(self._open(name))
            self.fsyncs += 1
            if name in self._unnamed:
                self._sync_names()

    def replace(self, name: str, content: bytes) -> None:
        """See `Storage.replace`. Two fsyncs: the new content, then its name."""
        with self._guarded("replace", name):
            self._forget(name)
            aside = self._path / f"{name}.new"
            file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write_at(file, 0, (content,))
                os.fsync(file)
                self.fsyncs += 1
            finally:
                os.close(file)
            aside.replace(self._path / name)
            self._sync_names()

    def close(self) -> None:
        """See `Storage.close`. Unsynced bytes are left to the operating system."""
        if self._unusable == "closed":
            return
        self._unusable = "closed"
        for file in self._files.values():
            os.close(file)
        os.close(self._lock)

    def _open(self, name: str) -> int:
        if name not in self._files:
            path = self._path / name
            if not path.exists():
                self._unnamed.add(name)
            # Kept open: an error of a write-back in between is reported to the descriptors of its time only.
            self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._files[name]

    def _forget(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            os.close(file)

    def _sync_names(self) -> None:
        sync_directory(self._path)
        self.fsyncs += 1
        self._unnamed.clear()

    @contextmanager
    def _guarded(self, action: str, name: str) -> Iterator[None]:
        if self._unusable:
            raise StateError(f"{self._path}: cannot {action} {name}: {self._unusable}")
        try:
            yield
        except OSError as error:
            # After a failed fsync the kernel may have dropped the pages: a second try that succeeds proves nothing.
            self._unusable = f"an earlier {action} failed ({error.strerror}); restart"
            raise StateError(f"{self._path / name}: cannot {action}: {error.strerror}") from error


def is_held(path: Path) -> bool:
    """Whether some process holds a state directory.

    Raises:
        StateError: it cannot be asked.
    """
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StateError(f"{path / _LOCK}: cannot be opened: {error.strerror}") from error
    try:
        return not _locked(path, lock)
    finally:
        os.close(lock)


def _locked(path: Path, lock: int) -> bool:
    """Whether a state directory's lock is ours now, and no other process's.

    Raises:
        StateError: there are no locks where it is; worker processes could not be kept apart.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StateError(f"{path / _LOCK}: cannot be locked: {error.strerror}; use a file system with locks") from error
    return True


class MemoryStorage:
    """A disk in memory, for simulations and tests: `crash` is a power cut, after which it can be used again.

    `on_boundary`, if set, is called before and after every operation that changes something, with a word that says
    which; it may raise, which is a crash at that very point. Follow it by `crash`.
    """

    def __init__(self, location: str = "memory", *, sector_bytes: int = 512) -> None:
        """Make an empty disk; a write that was not synced can tear at every `sector_bytes`."""
        self.location = location
        self.fsyncs = 0
        self.on_boundary: Callable[[str], None] | None = None
        self._sector_bytes = sector_bytes
        self._durable: dict[str, bytes] = {}
        # What is synced is there once, for both; a write makes a copy of its own of it.
        self._files: dict[str, bytes | bytearray] = {}
        self._unsynced: dict[str, list[tuple[int, bytes]]] = {}

    def read(self, name: str) -> bytes | None:
        """See `Storage.read`."""
        content = self._files.get(name)
        return None if content is None else bytes(content)

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Storage.write`."""
        with self._boundaries(f"write {name}"):
            self._put(name, 0, b"".join(parts))

    def append(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Storage.append`."""
        with self._boundaries(f"append {name}"):
            self._put(name, len(self._files.get(name, b"")), b"".join(parts))

    def truncate(self, name: str, size: int) -> None:
        """See `Storage.truncate`. May be lost in a crash, but is never torn."""
        with self._boundaries(f"truncate {name}"):
            del self._writable(name)[size:]

    def sync(self, name: str) -> None:
        """See `Storage.sync`."""
        with self._boundaries(f"sync {name}"):
            self.fsyncs += 1 if name in self._durable else 2
            self._durable[name] = self._files[name] = bytes(self._files[name])
            self._unsynced.pop(name, None)

    def replace(self, name: str, content: bytes) -> None:
        """See `Storage.replace`."""
        with self._boundaries(f"replace {name}"):
            self.fsyncs += 2
            self._durable[name] = self._files[name] = content
            self._unsynced.pop(name, None)

    def close(self) -> None:
        """Do nothing: the disk outlives its holder."""

    def synced(self) -> MemoryStorage:
        """A disk of its own with what a power cut at this moment would leave, if nothing had been written back."""
        left = MemoryStorage(self.location, sector_bytes=self._sector_bytes)
        left._durable = dict(self._durable)
        left._files.update((name, bytearray(content)) for name, content in self._durable.items())
        return left

    def crash(self, chance: random.Random | None = None) -> None:
        """Lose power: files fall back to what was synced.

        With `chance`, every sector of every unsynced write is kept with probability 1/2 instead, as a disk may that was
        writing back; whole files and whole writes are also kept or lost at once, so that no case is rare.
        """
        survivors = {name: bytearray(content) for name, content in self._durable.items()}
        for name, writes in self._unsynced.items():
            if chance is None or chance.random() < 0.25:
                continue
            content = survivors.setdefault(name, bytearray())
            for offset, piece in writes:
                odds = chance.choice((0.0, 0.5, 1.0))
                for at in range(0, len(piece), self._sector_bytes):
                    if chance.random() < odds:
                        _put_sector(content, offset + at, piece[at : at + self._sector_bytes])
        self._durable = {name: bytes(content) for name, content in survivors.items()}
        self._files = dict(self._durable)
        self._unsynced = {}

    def _put(self, name: str, offset: int, piece: bytes) -> None:
        self._writable(name)[offset : offset + len(piece)] = piece
        self._unsynced.setdefault(name, []).append((offset, piece))

    def _writable(self, name: str) -> bytearray:
        content = self._files.get(name, b"")
        if not isinstance(content, bytearray):
            content = self._files[name] = bytearray(content)
        return content

    @contextmanager
    def _boundaries(self, operation: str) -> Iterator[None]:
        if self.on_boundary:
            self.on_boundary(f"before {operation}")
        yield
        if self.on_boundary:
            self.on_boundary(f"after {operation}")


def _write_at(file: int, offset: int, parts: Sequence[Buffer]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            written = os.pwrite(file, rest, offset)
            rest, offset = rest[written:], offset + written


def _put_sector(content: bytearray, offset: int, sector: bytes) -> None:
    # A file that grew over a sector that was lost reads zeros there.
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(sector)] = sector


def make_directory(path: Path) -> None:
    """Make a directory (mode 0700) and those above it, durably, where they are not there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)
