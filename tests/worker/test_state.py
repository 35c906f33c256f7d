"""A client's memory: what it says after a normal life, what it refuses, and what it costs."""

from __future__ import annotations

import hashlib
import math
import random
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import LocalProtocolError, StateError
from shared.identity import ClientId
from worker.ledger import LedgerEnd, SpentMark, encode_frame, read_ledger
from worker.state import ClientState, commit
from worker.storage import DirectoryStorage, MemoryStorage, Storage
from worker.stored_update import TaskId, UpdateId, UpdateMeta

CLIENT, FEDERATION = ClientId("client-1"), UUID(int=7)
HEAD = b"h" * 32


def open_state(storage: Storage, client: str = CLIENT, federation: UUID = FEDERATION) -> ClientState:
    return ClientState(storage, client=ClientId(client), federation=federation)


def meta(version: int = 1, attempt: int = 0) -> UpdateMeta:
    return UpdateMeta(task=TaskId(version, attempt), trained_head=HEAD, num_examples=12, metrics={"loss": 0.5})


def values(seed: int = 0, size: int = 10) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


@pytest.fixture
def disk() -> MemoryStorage:
    return MemoryStorage()


def test_a_new_client_remembers_nothing(disk: MemoryStorage) -> None:
    state = open_state(disk)
    assert (state.counter, state.last_task, state.unspent()) == (0, None, None)


def test_an_update_comes_back_with_all_that_belongs_to_it(disk: MemoryStorage) -> None:
    saved = open_state(disk).save_update(values(), meta(3, 1))
    disk.crash()

    state = open_state(disk)
    found = state.unspent()

    assert found is not None
    assert found.values.tobytes() == values().tobytes()
    assert found.values.dtype == np.float32
    assert found.meta == saved.meta == meta(3, 1)
    assert found.update_id == saved.update_id == state.counter == 1
    assert state.last_task == TaskId(3, 1)
    for array in (saved.values, found.values):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@given(content=st.lists(st.floats(width=32), min_size=1, max_size=30), metric=st.floats())
def test_every_value_survives_bit_for_bit(content: list[float], metric: float) -> None:
    disk = MemoryStorage()
    array = np.array(content, dtype=np.float32)
    kept = UpdateMeta(task=TaskId(1, 0), trained_head=HEAD, num_examples=1, metrics={"m": metric})
    open_state(disk).save_update(array, kept)
    found = open_state(disk).unspent()
    assert found is not None
    assert found.values.tobytes() == array.tobytes()
    assert found.meta.metrics["m"] == metric or (math.isnan(metric) and math.isnan(found.meta.metrics["m"]))


def test_a_spent_update_is_gone_for_ever(disk: MemoryStorage) -> None:
    state = open_state(disk)
    update = state.save_update(values(), meta())
    assert not state.is_spent(update.update_id)

    state.spend(update.update_id)

    for life in (state, open_state(disk)):
        assert life.unspent() is None
        assert life.is_spent(update.update_id)
        assert life.counter == 2, "spending raises the counter: a copy made before it is behind"
        with pytest.raises(LocalProtocolError, match="not the unspent one"):
            life.spend(update.update_id)


def test_only_the_unspent_update_can_be_spent(disk: MemoryStorage) -> None:
    state = open_state(disk)
    first = state.save_update(values(1), meta(1))
    second = state.save_update(values(2), meta(2))
    with pytest.raises(LocalProtocolError):
        state.spend(first.update_id)
    state.drop_update()
    with pytest.raises(LocalProtocolError):
        state.spend(second.update_id)


def test_the_newest_update_wins_and_an_older_one_never_returns(disk: MemoryStorage) -> None:
    state = open_state(disk)
    for number in range(1, 6):
        state.save_update(values(number), meta(number))
        found = open_state(disk).unspent()
        assert found is not None
        assert found.meta.task.version == number
    state.spend(UpdateId(5))
    # Slots go by turns: the other one still holds update 4, which was replaced and must not be sent either.
    reopened = open_state(disk)
    assert reopened.unspent() is None
    assert reopened.is_spent(UpdateId(4))


def test_counters_only_rise(disk: MemoryStorage) -> None:
    state = open_state(disk)
    seen = [state.save_update(values(), meta()).update_id, state.next_counter(), state.next_counter()]
    state.spend(UpdateId(1))
    seen += [state.counter, open_state(disk).next_counter(), open_state(disk).save_update(values(), meta(2)).update_id]
    assert seen == [1, 2, 3, 4, 5, 6]


def test_tasks_only_go_forward(disk: MemoryStorage) -> None:
    state = open_state(disk)
    state.save_task(TaskId(2, 1))
    assert open_state(disk).last_task == TaskId(2, 1)
    for older in (TaskId(2, 0), TaskId(1, 9)):
        with pytest.raises(LocalProtocolError):
            state.save_task(older)
        with pytest.raises(LocalProtocolError):
            state.save_update(values(), meta(*older))
    fsyncs = disk.fsyncs
    state.save_task(TaskId(2, 1))
    assert disk.fsyncs == fsyncs, "known already: free"
    state.save_update(values(), meta(3, 0))
    state.spend(UpdateId(state.counter))
    assert open_state(disk).last_task == TaskId(3, 0)


def test_what_each_operation_costs(tmp_path: Path) -> None:
    for storage in (MemoryStorage(), DirectoryStorage(tmp_path / "state")):
        state = open_state(storage)
        for number in range(1, 4):
            before = storage.fsyncs
            update = state.save_update(values(size=1000 * number), meta(number))
            assert storage.fsyncs == before + 1
            state.next_counter()
            assert storage.fsyncs == before + 2
            state.spend(update.update_id)
            assert storage.fsyncs == before + 3
            state.drop_update()
            assert storage.fsyncs == before + 3
        state.close()


def test_several_clients_are_written_first_and_synced_after() -> None:
    disks = [MemoryStorage(f"disk {number}") for number in range(3)]
    states = [open_state(disk, f"client-{number}") for number, disk in enumerate(disks)]
    seen: list[str] = []
    for disk in disks:
        disk.on_boundary = lambda word, disk=disk: seen.append(f"{word} {disk.location}")

    commit([state.stage_update(values(), meta()) for state in states])
    commit([state.stage_spend(UpdateId(1)) for state in states])

    assert [word.rsplit(" ", 1)[1] for word in seen if "before sync" in word] == ["0", "1", "2"] * 2
    for file in ("update.0", "ledger.log"):
        words = [word for word in seen if file in word and word.startswith("after")]
        assert ["sync" in word for word in words] == [False] * 3 + [True] * 3
    assert all(state.is_spent(UpdateId(1)) for state in states)


def test_what_is_staged_does_not_count_and_blocks_the_next(disk: MemoryStorage) -> None:
    state = open_state(disk)
    staged = state.stage_update(values(), meta())
    assert (state.unspent(), state.counter) == (None, 0)
    for refused in (state.next_counter, state.drop_update, lambda: state.save_update(values(), meta())):
        with pytest.raises(LocalProtocolError, match="was not committed"):
            refused()
    commit([staged])
    with pytest.raises(LocalProtocolError, match="committed twice"):
        commit([staged])
    staged = state.stage_spend(UpdateId(1))
    assert not state.is_spent(UpdateId(1))
    commit([staged])
    assert state.is_spent(UpdateId(1))


@pytest.mark.parametrize(
    ("dtype", "shape", "stride"), [("f8", (3,), 1), ("f4", (2, 2), 1), ("f4", (0,), 1), ("f4", (8,), 2)]
)
def test_only_float32_vectors_are_updates(disk: MemoryStorage, dtype: str, shape: tuple[int, ...], stride: int) -> None:
    array = np.zeros(shape, dtype)[::stride]
    with pytest.raises(LocalProtocolError, match="contiguous float32 vector"):
        open_state(disk).save_update(array, meta())


def test_another_clients_or_federations_directory_is_refused(disk: MemoryStorage) -> None:
    open_state(disk)
    for client, federation in (("client-2", FEDERATION), (CLIENT, UUID(int=8))):
        with pytest.raises(StateError, match=r"belongs to .*client-1.*use this client's own directory"):
            open_state(disk, client, federation)
    open_state(disk)


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def lived(rounds: int = 5) -> MemoryStorage:
    disk = MemoryStorage()
    state = open_state(disk)
    for number in range(1, rounds + 1):
        state.spend(state.save_update(values(number), meta(number)).update_id)
    return disk


@pytest.mark.parametrize("file", ["ledger.log", "update.0", "update.1", "progress.0", "progress.1", "identity.json"])
def test_a_missing_file_is_never_made_up_for(tmp_path: Path, file: str) -> None:
    path = tmp_path / "state"
    state = open_state(DirectoryStorage(path))
    state.spend(state.save_update(values(), meta()).update_id)
    state.close()
    (path / file).unlink()
    with pytest.raises(StateError, match=f"{path}: .*{file}"):
        open_state(DirectoryStorage(path))


@given(data=st.data())
def test_a_damaged_ledger_never_loses_a_charge_quietly(data: st.DataObject) -> None:
    disk = lived()
    content = bytearray(disk.read("ledger.log") or b"")
    # All spending up to the newest anchor: the fifth save was made when four updates were spent.
    bit = data.draw(st.integers(0, 8 * (len(content) * 4 // 5) - 9))
    content[bit // 8] ^= 1 << bit % 8
    disk.write("ledger.log", [bytes(content)])
    with pytest.raises(StateError, match=r"ledger.*enroll the client under a new name"):
        open_state(disk)


@pytest.mark.parametrize(("at", "following"), [(8, 1), (39, 1), (40, 1), (60, 1), (0, 1800), (4, 1800), (60, 1800)])
def test_damage_before_the_last_frame_shows_without_an_anchor_too(at: int, following: int) -> None:
    # Damaged lengths look like a torn frame; only that more follows than one frame can hold gives them away.
    content, end = encode_frame(LedgerEnd(), [SpentMark(1, 2, 1, 0)])
    for number in range(following):
        frame, end = encode_frame(end, [SpentMark(number, number + 1, number, 0)])
        content += frame
    damaged = bytearray(content)
    damaged[at] ^= 1
    with pytest.raises(StateError, match="damaged at byte 0"):
        read_ledger(bytes(damaged), LedgerEnd())


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_ledger_cut_at_a_frame_is_found_out(kept: int) -> None:
    disk = lived()
    end = LedgerEnd()
    for number in range(1, kept + 1):
        _, end = encode_frame(end, [SpentMark(2 * number - 1, 2 * number, number, 0)])
    disk.truncate("ledger.log", end.position)
    with pytest.raises(StateError, match="are not those that were synced"):
        open_state(disk)


def test_a_ledger_of_an_older_copy_is_found_out() -> None:
    old, new = lived(2), lived(5)
    new.truncate("ledger.log", 0)
    new.append("ledger.log", [old.read("ledger.log") or b""])
    with pytest.raises(StateError, match="are not those that were synced"):
        open_state(new)


def test_a_record_of_a_newer_release_is_refused() -> None:
    frame, _ = encode_frame(LedgerEnd(), [SpentMark(1, 2, 1, 0)])
    body = frame[40:].replace(b'"spent"', b'"other"')
    genesis = hashlib.sha256(b"comitia/1/ledger").digest()
    with pytest.raises(StateError, match="newer release"):
        read_ledger(frame[:8] + hashlib.sha256(genesis + body).digest() + body, LedgerEnd())


@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=6), data=st.data())
def test_a_torn_last_frame_is_dropped_and_everything_before_it_kept(sizes: list[int], data: st.DataObject) -> None:
    content, end, ends = b"", LedgerEnd(), [LedgerEnd()]
    marks: list[list[SpentMark]] = []
    for number, size in enumerate(sizes):
        batch = [SpentMark(10 * number + i, 10 * number + i + 1, number, 0) for i in range(size)]
        frame, end = encode_frame(end, batch)
        content, ends, marks = content + frame, [*ends, end], [*marks, batch]
    whole = [mark for batch in marks[:-1] for mark in batch]
    anchor = data.draw(st.sampled_from(ends[:-1]))

    assert read_ledger(content, ends[-1]) == (whole + marks[-1], end)
    start = ends[-2].position
    torn = bytearray(content[: data.draw(st.integers(start, len(content)))])
    for at in range(start, len(torn)):
        torn[at] *= data.draw(st.booleans())
    if bytes(torn) != content:
        assert read_ledger(bytes(torn), anchor) == (whole, ends[-2])


def test_a_torn_slot_leaves_the_older_update(disk: MemoryStorage) -> None:
    state = open_state(disk)
    state.save_update(values(1), meta(1))
    state.stage_update(values(2), meta(2))
    whole = disk.read("update.1") or b""
    for cut in range(len(whole)):
        disk.truncate("update.1", 0)
        disk.append("update.1", [whole[:cut] + bytes(cut % 2 and len(whole) - cut)])
        if disk.read("update.1") == whole:
            continue
        found = open_state(disk).unspent()
        assert found is not None
        assert found.meta.task.version == 1


def test_many_rounds_are_one_file_and_open_again() -> None:
    disk, end, frames = MemoryStorage(), LedgerEnd(), []
    state = open_state(disk)
    for number in range(1, 20_001):
        frame, end = encode_frame(end, [SpentMark(2 * number - 1, 2 * number, number, 0)])
        frames.append(frame)
    disk.append("ledger.log", frames)
    state = open_state(disk)
    assert (state.counter, state.last_task) == (40_000, TaskId(20_000, 0))
    assert state.is_spent(UpdateId(39_999))
    assert disk.read("ledger.log") == b"".join(frames)


# ── a real process, killed ───────────────────────────────────────────────────────────────────────────────────────────

LIFE = """
import sys; from pathlib import Path; from uuid import UUID; import numpy as np
from worker.state import ClientState; from worker.storage import DirectoryStorage
from worker.stored_update import TaskId, UpdateMeta
state = ClientState(DirectoryStorage(Path(sys.argv[1])), client="client-1", federation=UUID(int=7))
while True:
    version = (state.last_task.version if state.last_task else 0) + 1
    meta = UpdateMeta(task=TaskId(version, 0), trained_head=b"", num_examples=1, metrics={})
    update = state.save_update(np.full(1000, state.counter + 1, np.float32), meta)
    print("saved", update.update_id, flush=True)
    state.spend(update.update_id)
    print("spent", update.update_id, flush=True)
"""


def test_a_killed_process_has_kept_its_word(tmp_path: Path) -> None:
    path, chance, counter = tmp_path / "state", random.Random(1), 0
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", LIFE, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(chance.randrange(1, 40))]
            process.kill()
            said += process.stdout.readlines()
        word, number = [line for line in said if line.endswith("\n")][-1].split()

        state = open_state(DirectoryStorage(path))
        unspent = state.unspent()
        state.close()

        if word == "spent":
            assert state.is_spent(UpdateId(int(number)))
        elif not state.is_spent(UpdateId(int(number))):
            assert unspent is not None
            assert unspent.update_id == int(number)
        if unspent is not None:
            assert np.all(unspent.values == unspent.update_id)
        assert state.counter >= max(counter, int(number))
        counter = state.counter
