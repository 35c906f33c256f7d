"""The ledger: records that hold what they cost, old ones that still open, and a charge before every word."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from typer.testing import CliRunner

from shared.errors import StateError
from shared.identity import ClientId
from shared.privacy.accountant import epsilon_of
from shared.privacy.charges import Charge, ClientCharge, RecordCharge
from tests.worker import traced_life
from worker.cli import app
from worker.ledger import FailedRun, LedgerEnd, LedgerRecord, SpentMark, encode_frame, read_ledger
from worker.state import ClientState, commit
from worker.storage import DirectoryStorage, MemoryStorage
from worker.stored_update import TaskId, UpdateMeta

RECORD = RecordCharge(noise_multiplier=1.25, sampling_rate=0.1, steps=7)
CLIENT = ClientCharge(variance=9e8, variance_alone=3e8, l1=2e5, l2=1e4)


def open_client(storage: MemoryStorage | DirectoryStorage) -> ClientState:
    return ClientState(storage, client=ClientId("client-1"), federation=UUID(int=7))


def spend(state: ClientState, version: int, charge: Charge | None, at_us: int = 0) -> None:
    meta = UpdateMeta(task=TaskId(version, 0), trained_head=b"", num_examples=1, metrics={})
    state.spend(state.save_update(np.ones(3, np.float32), meta).update_id, charge, at_us)


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_records_come_back_with_their_charges_and_times() -> None:
    records: list[LedgerRecord] = [
        SpentMark(1, 2, 1, 0, 1_700_000_000_000_000, RECORD),
        FailedRun(3, 2, 1, 5, RECORD),
        SpentMark(4, 5, 3, 0, 6, CLIENT),
        SpentMark(6, 7, 4, 0, 7, None),
    ]
    content, end = encode_frame(LedgerEnd(), records[:2])
    frame, end = encode_frame(end, records[2:])

    assert read_ledger(content + frame, LedgerEnd()) == (records, end)


def test_a_ledger_of_the_first_format_still_opens_and_goes_on() -> None:
    body = b'[{"kind":"spent","update":1,"counter":2,"version":0,"attempt":0}]'
    chain = hashlib.sha256(hashlib.sha256(b"comitia/1/ledger").digest() + body).digest()
    disk = MemoryStorage()
    open_client(disk)
    disk.append("ledger.log", [struct.pack("<II", len(body), len(body) ^ 0xFFFFFFFF) + chain + body])

    state = open_client(disk)
    assert (state.counter, state.charges) == (2, ())
    spend(state, 1, RECORD)
    assert open_client(disk).charges == (RECORD,)
    assert read_ledger(disk.read("ledger.log") or b"", LedgerEnd())[0][0] == SpentMark(1, 2, 0, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"format":2', '"format":3'), ('"spent"', '"other"'), ('"record"', '"rekord"'), ('"steps"', '"leaps"')],
)
def test_a_record_that_this_release_does_not_know_is_refused(old: str, new: str) -> None:
    frame, _ = encode_frame(LedgerEnd(), [SpentMark(1, 2, 1, 0, 3, RECORD)])
    body = frame[40:].replace(old.encode(), new.encode())
    assert body != frame[40:]
    chain = hashlib.sha256(hashlib.sha256(b"comitia/1/ledger").digest() + body).digest()
    with pytest.raises(StateError, match="newer release"):
        read_ledger(frame[:8] + chain + body, LedgerEnd())


# ── charges ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_spent_or_failed_is_charged_and_what_is_dropped_is_not() -> None:
    disk = MemoryStorage()
    state = open_client(disk)
    spend(state, 1, RECORD)
    meta = UpdateMeta(task=TaskId(2, 0), trained_head=b"", num_examples=1, metrics={})
    state.save_update(np.ones(3, np.float32), meta)
    state.drop_update()
    commit([state.stage_failure(TaskId(3, 0), RECORD, 1)])

    for life in (state, open_client(disk)):
        assert life.charges == (RECORD, RECORD)
        assert life.last_task == TaskId(2, 0), "a run that failed may be tried again by the next process"


def test_a_charge_is_in_the_same_sync_as_its_mark(tmp_path: Path) -> None:
    state = open_client(DirectoryStorage(tmp_path / "state"))
    meta = UpdateMeta(task=TaskId(2, 0), trained_head=b"", num_examples=1, metrics={})
    update = state.save_update(np.ones(3, np.float32), meta)
    before = state.fsyncs
    state.spend(update.update_id, RECORD, 1)
    assert state.fsyncs == before + 1
    commit([state.stage_failure(TaskId(3, 0), RECORD, 1)])
    assert state.fsyncs == before + 2


def test_a_torn_last_record_loses_no_charge_of_the_others() -> None:
    disk = MemoryStorage()
    state = open_client(disk)
    for version in range(3):
        spend(state, version, RECORD)
    whole = len(disk.read("ledger.log") or b"")
    spend(state, 3, RECORD)
    for cut in range(whole, len(disk.read("ledger.log") or b"")):
        torn = MemoryStorage()
        for name in disk._files:
            torn.replace(name, disk.read(name) or b"")
        torn.truncate("ledger.log", cut)
        life = open_client(torn)
        assert life.charges == (RECORD,) * 3
        spend(life, 9, RECORD)
        assert open_client(torn).charges == (RECORD,) * 4


def test_a_directory_that_was_found_out_is_refused_from_then_on() -> None:
    disk = MemoryStorage()
    state = open_client(disk)
    spend(state, 1, RECORD)
    with pytest.raises(StateError, match=r"restored from a backup.*counter 9.*enroll the client under a new name"):
        state.condemn(9)
    disk.crash()
    with pytest.raises(StateError, match="counter 9"):
        open_client(disk)


# ── real processes ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_hundred_kills_lose_no_charge(tmp_path: Path) -> None:
    order = [sys.executable, "-m", "tests.worker.killed_life", str(tmp_path / "state"), "200", "1"]
    done = subprocess.run(order, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kills, charges, drops = map(int, done.stdout.split())
    assert kills == 200
    assert min(charges, drops) > 10


def calls_of(trace: str) -> Iterator[tuple[str, bool]]:
    """System calls as strace tells them, each when it begins (False) and whole when it has returned (True).

    A call during which another thread's call is told stands in two lines.
    """
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        thread, _, call = line.partition(" ")
        call, interrupted, _ = call.partition(" <unfinished ...>")
        rest = call.partition(" resumed>")[2]
        if not rest:
            yield call, False
        if interrupted:
            begun[thread] = call
        else:
            yield begun.pop(thread) + rest if rest else call, True


def test_calls_are_read_whole_when_another_thread_interrupts_them() -> None:
    trace = "7 pwrite64(4</c/ledger.log>, 1) = 1\n7 fdatasync(4</c/ledger.log> <unfinished ...>\n"
    trace += '8 sendto(5, "WORDS c", 7) = 7\n7 <... fdatasync resumed>) = 0\n'
    assert [call for call, returned in calls_of(trace) if returned] == [
        "pwrite64(4</c/ledger.log>, 1) = 1",
        'sendto(5, "WORDS c", 7) = 7',
        "fdatasync(4</c/ledger.log>) = 0",
    ]


def test_the_ledgers_fsync_returns_before_the_words_go_to_the_socket(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        assert not os.environ.get("CI"), "CI has strace"
        pytest.skip("needs strace")
    trace, calls = tmp_path / "trace", "trace=fdatasync,fsync,pwrite64,sendto"
    order = [strace, "-f", "--seccomp-bpf", "-y", "-s", "32", "-e", calls, "-o", str(trace)]
    order += [sys.executable, "-m", "tests.worker.traced_life", str(tmp_path / "state")]
    done = subprocess.run(order, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    ledger = re.compile(r"(pwrite64|fdatasync)\(\d+<[^>]*/(client-\d+)/ledger\.log>.*= \d+$")
    words = re.compile(r'sendto\(.*"WORDS (client-\d+)"')
    since: dict[str, list[str]] = {}
    sent = 0
    for call, returned in calls_of(trace.read_text(errors="replace")):
        if returned and (found := ledger.search(call)):
            since.setdefault(found[2], []).append(found[1])
        elif not returned and (found := words.search(call)):
            assert since.pop(found[1])[-2:] == ["pwrite64", "fdatasync"], f"words of {found[1]} left uncharged"
            sent += 1
    assert sent == traced_life.CLIENTS * traced_life.ROUNDS


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def show(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["ledger", "--state-dir", str(folder), *options], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def test_the_command_tells_what_is_spent_left_and_enough_for(tmp_path: Path) -> None:
    state = open_client(DirectoryStorage(tmp_path / "client-1"))
    for version in range(3):
        spend(state, version, RECORD, 1_700_000_000_000_000)
    commit([state.stage_failure(TaskId(3, 1), RECORD, 1)])
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "client-1").iterdir()}

    report = json.loads(show(tmp_path, "--json", "--epsilon", "4", "--delta", "1e-5"))

    unit = report["units"]["record"]
    assert unit["charges"] == 4
    assert unit["spent"] == epsilon_of([RECORD] * 4, 1e-5)
    assert unit["left"] == 4 - unit["spent"]
    rounds = unit["rounds_left"]
    assert epsilon_of([RECORD] * (4 + rounds), 1e-5) <= 4 < epsilon_of([RECORD] * (5 + rounds), 1e-5)
    assert [line["what"] for line in report["history"]] == ["spent", "spent", "spent", "failed"]
    assert report["history"][0]["at"] == "2023-11-14T22:13:20+00:00"
    shown = show(tmp_path, "--epsilon", "4", "--delta", "1e-5")
    assert f"epsilon {unit['spent']:.4g} at delta 1e-05, 4 charges" in shown
    assert f"{rounds} more rounds" in shown
    assert "not known without a delta" in show(tmp_path)
    # The worker that holds the directory goes on.
    assert before == {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in (tmp_path / "client-1").iterdir()}
    state.close()


def test_client_level_has_a_second_figure_for_when_all_others_collude(tmp_path: Path) -> None:
    state = open_client(DirectoryStorage(tmp_path / "client-1"))
    spend(state, 0, CLIENT)
    state.close()

    unit = json.loads(show(tmp_path, "--json", "--delta", "1e-5", "--client", "client-1"))["units"]["client"]

    assert unit["spent"] == epsilon_of([CLIENT], 1e-5)
    assert unit["spent_if_all_others_collude"] == epsilon_of([CLIENT], 1e-5, alone=True) > unit["spent"]
    assert unit["left"] is None
    assert "if all other members collude" in show(tmp_path, "--delta", "1e-5")


@pytest.mark.parametrize("earlier", [0, 30])
def test_a_narrow_terminal_and_a_pipe_show_whole_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: int
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    state = open_client(DirectoryStorage(tmp_path / "client-1"))
    for version in range(earlier + 1):
        spend(state, version, RECORD, 1_700_000_000_000_000)
    state.close()

    result = CliRunner().invoke(app, ["ledger", "--state-dir", str(tmp_path)])

    assert "2023-11-14T22:13:20+00:00" in result.output


@pytest.mark.parametrize("options", [["--client", "nobody"], ["--delta", "2"]])
def test_the_command_refuses_what_is_not_there(tmp_path: Path, options: list[str]) -> None:
    open_client(DirectoryStorage(tmp_path / "client-1")).close()
    result = CliRunner().invoke(app, ["ledger", "--state-dir", str(tmp_path), *options])
    assert getattr(result.exception, "exit_code", None) == 2
