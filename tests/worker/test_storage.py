"""Both storages keep what was synced; a directory has one holder; a memory disk loses what was not synced."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import StateError, StateHeld
from worker import storage as storage_module
from worker.storage import DirectoryStorage, MemoryStorage, Storage, is_held


@pytest.fixture(params=["directory", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return DirectoryStorage(tmp_path / "state") if request.param == "directory" else MemoryStorage()


def test_files_hold_what_was_written(storage: Storage) -> None:
    assert storage.read("a") is None
    storage.append("a", [b"one ", memoryview(b"two ")])
    storage.append("a", [b"three"])
    assert storage.read("a") == b"one two three"
    storage.write("a", [b"O", b"NE"])
    assert storage.read("a") == b"ONE two three"
    storage.truncate("a", 3)
    storage.append("a", [b"!"])
    assert storage.read("a") == b"ONE!"
    storage.replace("a", b"new")
    storage.append("a", [b"er"])
    assert storage.read("a") == b"newer"
    storage.append("empty", [])
    assert storage.read("empty") == b""


def test_fsyncs_are_counted(storage: Storage) -> None:
    before = storage.fsyncs
    storage.append("a", [b"x"])
    assert storage.fsyncs == before, "writing alone syncs nothing"
    storage.sync("a")
    assert storage.fsyncs == before + 2, "a new file: its content, and its name in the directory"
    storage.write("a", [b"y"])
    storage.sync("a")
    assert storage.fsyncs == before + 3
    storage.replace("b", b"z")
    assert storage.fsyncs == before + 5


def test_a_directory_is_private_and_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    first = DirectoryStorage(path)
    first.append("a", [b"kept"])
    first.sync("a")
    first.replace("b", b"kept too")
    first.close()
    first.close()

    second = DirectoryStorage(path)

    assert (second.read("a"), second.read("b")) == (b"kept", b"kept too")
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
    second.close()


def test_the_counter_counts_real_fsyncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(plain: Callable[[int], None]) -> Callable[[int], None]:
        def flush(descriptor: int) -> None:
            calls.append(descriptor)
            plain(descriptor)

        return flush

    storage = DirectoryStorage(tmp_path / "state")
    monkeypatch.setattr(storage_module, "_flush", counted(storage_module._flush))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    storage.append("a", [b"x"])
    storage.sync("a")
    storage.sync("a")
    storage.replace("b", b"x")
    assert len(calls) == storage.fsyncs == 5
    storage.close()


def test_a_second_holder_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    program = (
        "import sys; from pathlib import Path; from worker.storage import DirectoryStorage\n"
        "s = DirectoryStorage(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match=f"{path}: another process holds"):
            DirectoryStorage(path)
        holder.kill()
    held = DirectoryStorage(path)
    with pytest.raises(StateError, match="another process holds"):
        DirectoryStorage(path)
    held.close()
    DirectoryStorage(path).close()


def test_a_directory_open_to_others_or_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(StateError, match=f"chmod 700 {tmp_path / 'open'}"):
        DirectoryStorage(tmp_path / "open")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match=str(tmp_path / "file")):
        DirectoryStorage(tmp_path / "file" / "state")


def test_after_a_failed_sync_nothing_is_trusted_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = DirectoryStorage(tmp_path / "state")
    storage.append("a", [b"x"])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(storage_module, "_flush", full)
        with pytest.raises(StateError, match="cannot sync: No space left"):
            storage.sync("a")
    with pytest.raises(StateError, match="an earlier sync failed"):
        storage.sync("a")
    storage.close()
    with pytest.raises(StateError, match="closed"):
        storage.append("a", [b"x"])


def test_power_loss_takes_what_was_not_synced() -> None:
    disk = MemoryStorage()
    disk.append("a", [b"synced"])
    disk.sync("a")
    disk.append("a", [b", not synced"])
    disk.write("a", [b"S"])
    disk.append("new", [b"not synced"])
    disk.replace("b", b"replaced")
    disk.crash()
    assert (disk.read("a"), disk.read("new"), disk.read("b")) == (b"synced", None, b"replaced")


def test_power_loss_can_keep_tear_or_lose_an_unsynced_write() -> None:
    outcomes = set()
    for seed in range(200):
        disk = MemoryStorage(sector_bytes=2)
        disk.append("a", [b"old!"])
        disk.sync("a")
        disk.append("a", [b"abcd"])
        disk.crash(random.Random(seed))
        outcomes.add(disk.read("a"))
    assert outcomes == {b"old!", b"old!ab", b"old!abcd", b"old!\0\0cd"}


def test_boundaries_are_seen_on_both_sides_of_an_operation() -> None:
    disk = MemoryStorage()
    seen: list[str] = []
    disk.on_boundary = seen.append
    disk.append("a", [b"x"])
    disk.sync("a")
    disk.read("a")
    assert seen == ["before append a", "after append a", "before sync a", "after sync a"]


def test_what_is_synced_is_a_disk_of_its_own() -> None:
    disk = MemoryStorage()
    disk.append("file", [b"safe"])
    disk.sync("file")
    disk.append("file", [b" and not"])
    disk.append("other", [b"nameless"])

    left = disk.synced()
    assert (left.read("file"), left.read("other")) == (b"safe", None)
    left.write("file", [b"SAFE"])
    left.crash()
    assert left.read("file") == b"safe"
    assert disk.read("file") == b"safe and not"


@pytest.mark.parametrize("ask", [DirectoryStorage, is_held])
def test_a_file_system_without_locks_is_not_mistaken_for_another_process(
    ask: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    DirectoryStorage(tmp_path / "client").close()
    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(StateError, match=r"client/lock: cannot be locked: No locks available") as told:
        ask(tmp_path / "client")
    assert not isinstance(told.value, StateHeld)
