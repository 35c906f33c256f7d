"""A state directory from a backup does not know what was spent since: its own client's signature gives it away."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from deploy.demo import simulation
from deploy.demo.options import DemoOptions
from deploy.demo.simulation import Simulation
from shared.errors import StateError
from worker.state import ClientState
from worker.storage import MemoryStorage

VICTIM = "client-002"
OPTIONS = DemoOptions(
    clients=3, processes=3, rounds=6, group_size=1, max_colluders=0, robust="mean", partition="iid"
)  # fmt: skip


class Restarting(Simulation):
    """A simulation in which the victim's worker can be started again, on any disk."""

    def _make_process(self, keys: Any, share: Any) -> Any:
        process = super()._make_process(keys, share)
        if VICTIM in share.clients:
            self.victim, self.again = process, (keys, share)
        return process

    def restart(self) -> None:
        """The process dies; the next one takes its place."""
        self._broker.crash(self.victim.seat)
        self.now += 1.0  # a process takes time to start; statuses are numbered by the clock
        old = self.victim
        new = self._make_process(*self.again)
        old.service, old.inbox, old.seat = new.service, new.inbox, new.seat
        new.service.start()


def run(monkeypatch: pytest.MonkeyPatch, restored_from: int | None) -> tuple[int, list[Any], MemoryStorage]:
    """Start the victim again at version 3, on its disk as it was at a version, on an empty one (0), or its own (None).

    Returns the last version, the notes, and the disk; `StateError` is what ended the run, if one did.
    """
    disks: list[MemoryStorage] = []
    monkeypatch.setattr(simulation, "MemoryStorage", lambda: disks.append(MemoryStorage()) or disks[-1])
    federation, copies, notes = Restarting(OPTIONS), {0: MemoryStorage()}, []
    running = federation.run()
    for note in running:
        notes.append(note)
        if note.event != "round_finished":
            continue
        version = int(note.fields["version"])
        copies[version] = copy.deepcopy(disks[1])
        if version == 3:
            disk = disks[1] if restored_from is None else copies[restored_from]
            monkeypatch.setattr(simulation, "MemoryStorage", lambda disk=disk: disk)
            federation.restart()
    return int(notes[-1].fields["version"]), notes, disk


@pytest.mark.parametrize("restored_from", [0, 1])
def test_an_old_copy_is_refused_at_once_and_for_ever(monkeypatch: pytest.MonkeyPatch, restored_from: int) -> None:
    seen: list[MemoryStorage] = []
    with pytest.raises(StateError, match=r"restored from a backup.*enroll the client under a new name") as told:
        seen.append(run(monkeypatch, restored_from)[2])
    assert told.value.exit_code == 2
    assert simulation.MemoryStorage().read("outdated.json") is not None
    with pytest.raises(StateError, match="restored from a backup"):
        ClientState(simulation.MemoryStorage(), client=VICTIM, federation=None)  # type: ignore[arg-type]


def test_the_newest_directory_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    version, notes, disk = run(monkeypatch, None)

    assert version == OPTIONS.rounds
    assert not [note for note in notes if note.event == "client_is_behind"]
    assert disk.read("outdated.json") is None
