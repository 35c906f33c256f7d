"""Invariant: crashed at any operation of its disk, a client has kept every word that it gave.

A client lives a script of operations on a disk that, at a chosen boundary of a storage operation, loses power (what was
not synced is lost, kept or torn) or is killed (the page cache survives until the next power cut). `Witness` remembers
what was returned before the crash, and what a recovery has shown, and checks every new life against it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import StateError
from shared.identity import ClientId
from shared.privacy.accountant import epsilon_of
from shared.privacy.charges import RecordCharge
from worker.state import ClientState, commit
from worker.storage import MemoryStorage
from worker.stored_update import TaskId, UpdateId, UpdateMeta

NO_TASK = TaskId(-1, 0)
CHARGE = RecordCharge(noise_multiplier=2.0, sampling_rate=1.0, steps=1)
OPERATIONS = ("save", "spend", "keep", "fail", "drop", "fold", "counter", "task", "reopen")
SCRIPT = (
    "save",
    "spend",
    "save",
    "counter",
    "spend",
    "task",
    "save",
    "save",
    "drop",
    "fail",
    "save",
    "reopen",
    "spend",
    "save",
    "keep",
    "save",
    "fold",
    "save",
    "counter",
    "keep",
    "save",
    "fold",
    "save",
)


class Crash(Exception):
    """The machine stops here."""


@dataclass
class Witness:
    """What the world has seen of one client, and therefore relies on."""

    counter: int = 0
    task: TaskId | None = None
    newest: int = 0
    dropped: bool = True
    spent: set[int] = field(default_factory=set)
    charges: int = 0
    epsilon: float = 0.0
    in_flight: str = ""
    owed: float = 0.0
    owed_then: float = 0.0

    def check(self, state: ClientState) -> None:
        """Compare a client that has just been opened with what the world relies on, and rely on what it shows."""
        unspent = state.unspent()
        shown = unspent.update_id if unspent else 0
        assert state.counter >= self.counter, "the counter went back"
        assert self.task is None or (state.last_task is not None and state.last_task >= self.task), (
            "a task was forgotten"
        )
        assert all(state.is_spent(UpdateId(update)) for update in self.spent), "a spent update can be spent again"
        assert shown not in self.spent, "a spent update is offered again"
        if not self.dropped and shown != self.newest:
            replaced = shown > self.newest and self.in_flight == "save"
            spends = self.in_flight in ("spend", "keep")
            spent = state.is_spent(UpdateId(self.newest)) and (self.newest in self.spent or spends)
            folded = self.in_flight == "fold" and owed_by(state) == self.owed_then
            assert replaced or spent or folded, "an unspent update is lost"
            self.dropped = folded
        self.check_residual(state)
        self.check_charges(state)
        if unspent is not None:
            assert unspent.values.tobytes() == content(shown).tobytes(), "an update was changed"
            self.newest, self.dropped = shown, False
        if self.newest and state.is_spent(UpdateId(self.newest)):
            self.spent.add(self.newest)
        self.counter, self.task, self.in_flight = state.counter, state.last_task, ""

    def check_charges(self, state: ClientState) -> None:
        """Whatever left was charged, and nothing else: what was dropped unspent costs nothing."""
        found = len(state.charges)
        charging = self.in_flight in ("spend", "keep", "fail")
        assert found in (self.charges, self.charges + charging), "a charge was lost, or made for nothing"
        epsilon = epsilon_of(state.charges, 1e-5)
        assert epsilon >= self.epsilon, "spent privacy went back"
        self.charges, self.epsilon = found, epsilon

    def check_residual(self, state: ClientState) -> None:
        """What is owed changes in the same moment in which the update leaves or expires, and at no other."""
        found, unspent = owed_by(state), state.unspent()
        if found != self.owed:
            assert self.in_flight in ("keep", "fold"), "a residual changed or was lost"
            assert found == self.owed_then, "a residual is none that was written"
            assert unspent is None or unspent.update_id != self.newest, "the same update is there and owed as well"
        self.owed = found


def owed_by(state: ClientState) -> float:
    """The one number that a residual holds nine times; 0 if there is none."""
    residual = state.residual()
    if residual is None:
        return 0.0
    assert len(set(residual.tolist())) == 1, "a residual was changed"
    return float(residual[0])


def content(update_id: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(9, update_id, dtype=np.float32)


def step(state: ClientState, operation: str, witness: Witness) -> None:
    """Do one operation; what it returned is what the world relies on."""
    witness.in_flight = operation
    version = state.last_task.version if state.last_task else 0
    unspent = state.unspent()
    if operation == "save":
        made = UpdateMeta(task=TaskId(version + 1, 0), trained_head=b"h", num_examples=1, metrics={})
        witness.newest = state.save_update(content(state.counter + 1), made).update_id
        witness.dropped = False
    elif operation == "spend" and unspent:
        state.spend(unspent.update_id, CHARGE, at_us=1)
        witness.spent.add(unspent.update_id)
        witness.charges += 1
    elif operation in ("keep", "fold") and unspent:
        # Half of what is kept leaves, all of what is folded stays.
        share = 0.5 if operation == "keep" else 1.0
        witness.owed_then = witness.owed + share * unspent.update_id
        residual = np.full(9, witness.owed_then, dtype=np.float32)
        if operation == "keep":
            commit([state.stage_spend(unspent.update_id, residual, charge=CHARGE, at_us=1)])
            witness.spent.add(unspent.update_id)
            witness.charges += 1
        else:
            state.fold_update(residual)
            witness.dropped, witness.newest = True, 0
        witness.owed = witness.owed_then
    elif operation == "fail":
        commit([state.stage_failure(TaskId(version, 0), CHARGE, at_us=1)])
        witness.charges += 1
    elif operation == "drop":
        state.drop_update()
        witness.dropped = True
    elif operation == "counter":
        state.next_counter()
    elif operation == "task":
        state.save_task(TaskId(version, 1))
    witness.counter, witness.task, witness.in_flight = state.counter, state.last_task, ""


def live(disk: MemoryStorage, script: Iterator[str], witness: Witness) -> None:
    """Open the client and go on with the script until it ends."""
    while True:
        state = ClientState(disk, client=ClientId("c"), federation=UUID(int=1))
        witness.check(state)
        for operation in script:
            if operation == "reopen":
                break
            step(state, operation, witness)
        else:
            return


def countdown(boundary: int) -> Callable[[str], None]:
    """A crash at boundary number `boundary`, from 0; never, if that is negative."""
    numbers = itertools.count()

    def count(word: str) -> None:
        if next(numbers) == boundary:
            raise Crash(word)

    return count


def run(disk: MemoryStorage, script: Sequence[str], crashes: Sequence[int], chance: random.Random) -> int:
    """Live the script; life number i is crashed at boundary `crashes[i]`. Returns how many crashes happened."""
    witness, todo, happened = Witness(), iter(script), 0
    for boundary in (*crashes, -1):
        disk.on_boundary = countdown(boundary)
        try:
            live(disk, todo, witness)
        except Crash:
            happened += 1
            disk.on_boundary = None
            if chance.random() < 0.7:
                disk.crash(chance)
    return happened


def boundaries(script: Sequence[str]) -> int:
    seen: list[str] = []
    disk = MemoryStorage()
    disk.on_boundary = seen.append
    live(disk, iter(script), Witness())
    return len(seen)


def test_every_boundary_of_a_long_life() -> None:
    total = boundaries(SCRIPT)
    assert total > 60
    for boundary in range(total):
        for seed in range(12):
            assert run(MemoryStorage(sector_bytes=16), SCRIPT, [boundary], random.Random(seed)) == 1


def test_what_a_recovery_has_shown_survives_a_power_cut() -> None:
    # A killed process leaves its bytes in the page cache: the next life reads them, though they were never synced.
    for boundary in range(boundaries(SCRIPT)):
        disk, witness = MemoryStorage(), Witness()
        disk.on_boundary = countdown(boundary)
        with pytest.raises(Crash):
            live(disk, iter(SCRIPT), witness)
        disk.on_boundary = None
        live(disk, iter(()), witness)
        disk.crash()
        live(disk, iter(()), witness)


@settings(max_examples=300)
@given(
    script=st.lists(st.sampled_from(OPERATIONS), max_size=15),
    crashes=st.lists(st.integers(0, 40), max_size=5),
    seed=st.integers(0, 1 << 32),
)
def test_many_crashes_also_during_recovery(script: list[str], crashes: list[int], seed: int) -> None:
    run(MemoryStorage(sector_bytes=16), script, crashes, random.Random(seed))


class Forgetful(MemoryStorage):
    """A disk that says "synced" and is not, for one file: what the invariants are there to find."""

    file = ""

    def sync(self, name: str) -> None:
        if not name.startswith(self.file) or name not in self._durable:
            super().sync(name)


@pytest.mark.parametrize("file", ["update", "ledger", "progress", "residual"])
def test_the_invariants_find_a_sync_that_is_left_out(file: str) -> None:
    found = set()
    for boundary in range(boundaries(SCRIPT)):
        for seed in range(12):
            disk = Forgetful(sector_bytes=16)
            disk.file = file
            try:
                run(disk, SCRIPT, [boundary], random.Random(seed))
            except (AssertionError, StateError) as error:
                found.add(str(error).split("\n")[0])
    assert found
