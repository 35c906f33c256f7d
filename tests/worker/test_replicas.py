"""Replicas see each other for as long as they live, however they end."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import StateError
from worker import replicas
from worker.replicas import REPLICAS_DIRECTORY, Sign, live_replicas
from worker.sharing_out import Replica

ONE = Replica(pool="p", worker="w1", pid=7, since_us=5, seats=None, clients=frozenset())
OTHER = replace(ONE, worker="w2", seats=3, clients=frozenset({"c1"}))


def files(state_dir: Path) -> list[str]:
    return sorted(path.name for path in (state_dir / REPLICAS_DIRECTORY).iterdir())


def test_a_sign_is_seen_until_it_is_taken_down(tmp_path: Path) -> None:
    assert live_replicas(tmp_path) == []
    one, other = Sign(tmp_path, ONE), Sign(tmp_path, OTHER)
    assert live_replicas(tmp_path) == [ONE, OTHER]

    one.show(frozenset({"c2", "c3"}))
    assert live_replicas(tmp_path) == [replace(ONE, clients=frozenset({"c2", "c3"})), OTHER]

    one.take_down()
    one.take_down()
    one.show(frozenset())  # too late to count again
    assert live_replicas(tmp_path) == [OTHER]
    other.take_down()
    assert files(tmp_path) == []


KILLED = """
import sys, os, signal
from pathlib import Path
from worker.replicas import Sign
from worker.sharing_out import Replica
replica = Replica(pool="p", worker="dead", pid=1, since_us=1, seats=None, clients=frozenset({"c9"}))
sign = Sign(Path(sys.argv[1]), replica)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_replica_is_gone_at_once_and_its_files_with_it(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9
    assert files(tmp_path) == ["dead.json", "dead.lock"]

    assert live_replicas(tmp_path) == []
    assert files(tmp_path) == []


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody who looks between our making the file and locking it takes it for a dead replica's.
    lock, seen = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not seen:
            seen.append(True)
            assert live_replicas(tmp_path) == []
        lock(descriptor, operation)

    monkeypatch.setattr(replicas.fcntl, "flock", late)
    sign = Sign(tmp_path, ONE)

    assert live_replicas(tmp_path) == [ONE]
    sign.take_down()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"worker": "w1"}', '{"pool": 1, "clients": 3}'])
def test_a_record_of_another_version_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    sign = Sign(tmp_path, ONE)
    (tmp_path / REPLICAS_DIRECTORY / "w1.json").write_text(content)

    assert live_replicas(tmp_path) == []
    sign.take_down()


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / REPLICAS_DIRECTORY).write_text("not a directory")

    with pytest.raises(StateError, match=r"\.replicas: cannot be used"):
        Sign(tmp_path, ONE)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign = Sign(tmp_path, ONE)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StateError, match="cannot be written to: No space left"):
        sign.show(frozenset({"c1"}))
    sign.take_down()
