"""What does a client remember, whatever happens to its machine? Its state directory: a client *is* this directory.

==================  ================================================================================================
``identity.json``   whose directory this is: client and federation
``update.0 .1``     the finished update, in one of two slots by turns
``progress.0 .1``   the last task taken and the offer counter, where they moved without an update
``ledger.log``      what was spent, for ever, and what it costs
``outdated.json``   only in a directory that is behind what its client has signed: nobody may use it any more
``lock``            keeps a second process out (`worker.storage`)
==================  ================================================================================================

Saving an update is one fsync, spending it is one fsync. Every slot also names the ledger's end (an anchor), so
that a ledger that was cut or replaced is found out when the directory is opened.

The offer counter rises with every update saved, with every set of fresh offer keys, and with every charge. A
directory that was restored from a backup is therefore behind what the coordinator has seen of this client.

An operation is *staged* (written) and then *committed* (synced), so that a worker that serves several clients writes
for all of them first and syncs afterwards: the file system then does most of the work once. Nothing counts before its
commit has returned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from shared.errors import LocalProtocolError, StateError
from shared.identity import ClientId
from shared.privacy.charges import Charge
from worker.ledger import FailedRun, LedgerEnd, LedgerRecord, SpentMark, charges_of, encode_frame, read_ledger
from worker.slots import Slot, SlotPair
from worker.storage import Storage
from worker.stored_update import StoredUpdate, TaskId, UpdateId, UpdateMeta, decode_update

_IDENTITY = "identity.json"
_LEDGER = "ledger.log"
_OUTDATED = "outdated.json"
_FORMAT = 1
_NO_PAYLOAD = memoryview(b"")
_LOST = "restore it from its own disk, or enroll the client under a new name: what it spent cannot be guessed"


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A written operation that does not count yet; see `commit`."""

    state: ClientState
    files: tuple[str, ...]
    take_effect: Callable[[], None]


class ClientState:
    """One client's memory. Holds the newest unspent update in memory too, so that masking it reads no disk."""

    def __init__(self, storage: Storage, *, client: ClientId, federation: UUID) -> None:
        """Open a client's directory, or make it if the storage is empty.

        Raises:
            StateError: the directory belongs to another client or federation, or is damaged; the message names it.
        """
        self._storage = storage
        self._updates = SlotPair(storage, "update")
        self._progress = SlotPair(storage, "progress")
        self._residuals = SlotPair(storage, "residual")
        self._staged: Staged | None = None
        self._counter = 0
        self._last_task: TaskId | None = None
        self._unspent: StoredUpdate | None = None
        self._residual: NDArray[np.float32] | None = None
        self._newest_spent = 0
        self._ledger_end = LedgerEnd()
        self._charges: list[Charge] = []
        if (outdated := storage.read(_OUTDATED)) is not None:
            raise self._outdated(int(json.loads(outdated)["counter"]))
        if not self._claim({"format": _FORMAT, "client": client, "federation": str(federation)}):
            self._recover()

    @property
    def counter(self) -> int:
        """The highest counter on the disk: that of the newest offer keys, update or spent mark; 0 at first."""
        return self._counter

    @property
    def fsyncs(self) -> int:
        """How often the disk was made to flush since the directory was opened."""
        return self._storage.fsyncs

    @property
    def last_task(self) -> TaskId | None:
        """The newest task that was taken; never take it, or an older one, again."""
        return self._last_task

    def unspent(self) -> StoredUpdate | None:
        """The finished update that has not left yet, if there is one."""
        return self._unspent

    def residual(self) -> NDArray[np.float32] | None:
        """What was held back of earlier updates: float32 (d,), read-only; None if there never was anything."""
        return self._residual

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Everything that the ledger charges for, oldest first."""
        return tuple(self._charges)

    def is_spent(self, update_id: UpdateId) -> bool:
        """Whether an update must never be masked again: it was spent, or a later one was."""
        return update_id <= self._newest_spent

    def save_task(self, task: TaskId) -> None:
        """Remember a task as taken. One fsync; acknowledge the task after it. Does nothing if `save_update` did it.

        Raises:
            LocalProtocolError: the task is older than the last one.
            StateError: the disk refused.
        """
        if self._last_task is not None and task < self._last_task:
            raise LocalProtocolError(f"task {task} after {self._last_task}")
        if task != self._last_task:
            commit([self._stage_progress(self._counter, task)])

    def next_counter(self) -> int:
        """Raise the counter, for an offer with fresh keys of an update that was offered before. One fsync.

        The first offer of an update uses its `update_id`, which costs no fsync of its own.

        Raises:
            StateError: the disk refused.
        """
        commit([self.stage_counter()])
        return self._counter

    def stage_counter(self) -> Staged:
        """Write what `next_counter` saves; it counts after `commit`.

        Raises:
            StateError: as `next_counter`.
        """
        return self._stage_progress(self._counter + 1, self._last_task)

    def save_update(self, values: NDArray[np.float32], meta: UpdateMeta) -> StoredUpdate:
        """Put a finished update on the disk, in place of any other. One fsync; it is safe on return.

        Args:
            values: float32, shape (d,), d >= 1, contiguous. The state keeps it: do not write to it afterwards.

        Raises:
            LocalProtocolError: other values than that, or an older task than the last one.
            StateError: the disk refused.
        """
        commit([self.stage_update(values, meta)])
        return cast(StoredUpdate, self._unspent)

    def stage_update(self, values: NDArray[np.float32], meta: UpdateMeta) -> Staged:
        """Write what `save_update` saves; it counts after `commit`.

        Raises:
            LocalProtocolError, StateError: as `save_update`.
        """
        if values.dtype != np.float32 or values.ndim != 1 or not values.size or not values.flags.c_contiguous:
            raise LocalProtocolError(f"an update is a contiguous float32 vector, not {values.dtype} {values.shape}")
        if self._last_task is not None and meta.task < self._last_task:
            raise LocalProtocolError(f"an update for task {meta.task} after {self._last_task}")
        kept = values.view()
        kept.flags.writeable = False
        update = StoredUpdate(update_id=UpdateId(self._counter + 1), meta=meta, values=kept)
        file = self._write_slot(self._updates, update.update_id, meta.task, update.payload(), meta.encode())

        def take_effect() -> None:
            self._updates.settle()
            self._unspent, self._counter, self._last_task = update, update.update_id, meta.task

        return self._stage((file,), take_effect)

    def drop_update(self) -> None:
        """Forget the unspent update: its version has passed. Free; after a crash it may be there again."""
        self._check_idle()
        self._unspent = None

    def fold_update(self, residual: NDArray[np.float32]) -> None:
        """As `drop_update`, but something of it is kept: `residual` replaces the one before. One fsync for both.

        Args:
            residual: float32 (d,), contiguous; not written to afterwards.

        Raises:
            LocalProtocolError: there is no unspent update.
            StateError: the disk refused.
        """
        if self._unspent is None:
            raise LocalProtocolError("there is no unspent update to keep anything of")
        file = self._stage_residual(self._unspent.update_id, None, residual)

        def take_effect() -> None:
            self._residuals.settle()
            self._residual, self._unspent = residual, None

        commit([self._stage((file,), take_effect)])

    def spend(self, update_id: UpdateId, charge: Charge | None = None, at_us: int = 0) -> None:
        """Spend the unspent update, for ever, and charge for it. One fsync; its words may leave after it has returned.

        Raises:
            LocalProtocolError: this update is not the unspent one.
            StateError: the disk refused; then nothing may leave.
        """
        commit([self.stage_spend(update_id, charge=charge, at_us=at_us)])

    def stage_spend(
        self,
        update_id: UpdateId,
        residual: NDArray[np.float32] | None = None,
        *,
        charge: Charge | None = None,
        at_us: int = 0,
    ) -> Staged:
        """Write what `spend` spends; it counts after `commit`.

        Args:
            update_id: the unspent update.
            residual: what is held back of it, float32 (d,), contiguous, not written to afterwards. It is synced first
                and counts from the moment at which the spent mark does, which names it; so it costs a second fsync.
            charge: what sending it costs; None if no noise is in it.
            at_us: wall clock (microseconds since 1970).

        Raises:
            LocalProtocolError, StateError: as `spend`.
        """
        update = self._unspent
        if update is None or update.update_id != update_id or self.is_spent(update_id):
            raise LocalProtocolError(f"update {update_id} is not the unspent one")
        self._check_idle()
        counter, task = self._counter + 1, update.meta.task
        ahead = () if residual is None else (self._stage_residual(update_id, counter, residual),)
        write = self._append(SpentMark(update_id, counter, task.version, task.attempt, at_us, charge))

        def take_effect() -> None:
            write()
            self._newest_spent, self._unspent = update_id, None
            if residual is not None:
                self._residuals.settle()
                self._residual = residual

        return self._stage((*ahead, _LEDGER), take_effect)

    def stage_failure(self, task: TaskId, charge: Charge, at_us: int) -> Staged:
        """Write that the run for `task` failed, which is charged like an update; it counts after `commit`.

        Raises:
            StateError: the disk refused; then nothing may be said of the failure.
        """
        self._check_idle()
        write = self._append(FailedRun(self._counter + 1, task.version, task.attempt, at_us, charge))
        return self._stage((_LEDGER,), write)

    def condemn(self, counter: int) -> NoReturn:
        """Refuse this directory, which knows of no `counter` that its client has signed; raises StateError for ever."""
        self._storage.replace(_OUTDATED, json.dumps({"counter": counter}).encode())
        raise self._outdated(counter)

    def close(self) -> None:
        """Let go of the directory. Idempotent."""
        self._storage.close()

    def _outdated(self, counter: int) -> StateError:
        text = f"restored from a backup, or new although its client is not: it has signed counter {counter} elsewhere"
        return StateError(f"{self._storage.location}: {text}; {_LOST}")

    def _append(self, record: LedgerRecord) -> Callable[[], None]:
        """Write a record behind the ledger; returns what to do once it is synced."""
        frame, end = encode_frame(self._ledger_end, [record])
        self._storage.append(_LEDGER, [frame])

        def take_effect() -> None:
            self._ledger_end, self._counter = end, record.counter
            self._charges += charges_of([record])

        return take_effect

    def _stage_progress(self, counter: int, task: TaskId | None) -> Staged:
        file = self._write_slot(self._progress, counter, task, _NO_PAYLOAD, {})

        def take_effect() -> None:
            self._progress.settle()
            self._counter, self._last_task = counter, task

        return self._stage((file,), take_effect)

    def _write_slot(
        self, pair: SlotPair, counter: int, task: TaskId | None, payload: memoryview, more: Mapping[str, Any]
    ) -> str:
        self._check_idle()
        anchor = [self._ledger_end.position, self._ledger_end.chain.hex()]
        return pair.stage({"counter": counter, "task": task, "ledger": anchor, **more}, payload)

    def _stage_residual(self, update_id: UpdateId, mark: int | None, residual: NDArray[np.float32]) -> str:
        """Write what is owed after an update was spent under the counter `mark`, or (None) expired."""
        self._check_idle()
        header = {"update": update_id, "mark": mark}
        return self._residuals.stage(header, residual.astype("<f4", copy=False).data.cast("B"))

    def _stage(self, files: tuple[str, ...], take_effect: Callable[[], None]) -> Staged:
        self._staged = Staged(self, files, take_effect)
        return self._staged

    def _check_idle(self) -> None:
        # A second write on top of one that is not synced could leave two torn records, where one is allowed.
        if self._staged is not None:
            raise LocalProtocolError(f"{self._storage.location}: a staged operation was not committed")

    def _commit(self, staged: Staged) -> None:
        if self._staged is not staged:
            raise LocalProtocolError(f"{self._storage.location}: committed twice, or never staged")
        for file in staged.files:
            self._storage.sync(file)
        self._staged = None
        staged.take_effect()

    def _claim(self, identity: Mapping[str, object]) -> bool:
        """Make an empty directory ours and return True; return False if it is ours already."""
        found = self._storage.read(_IDENTITY)
        expected = json.dumps(identity, sort_keys=True).encode()
        if found is not None:
            if found != expected:
                raise StateError(
                    f"{self._storage.location}: belongs to {found[:300].decode(errors='replace')}, "
                    f"not to {expected.decode()}; use this client's own directory"
                )
            return False
        if self._storage.read(_LEDGER):
            raise StateError(f"{self._storage.location}: has a ledger but no {_IDENTITY}; {_LOST}")
        # The identity comes last: a crash before it leaves files that are still empty.
        for name in (_LEDGER, *self._updates.files, *self._progress.files, *self._residuals.files):
            self._storage.append(name, [])
            self._storage.sync(name)
        self._storage.replace(_IDENTITY, expected)
        return True

    def _recover(self) -> None:
        ledger = self._storage.read(_LEDGER)
        if ledger is None:
            raise StateError(f"{self._storage.location}: {_LEDGER} is missing; {_LOST}")
        slots = [slot for slot in (self._updates.recover(), self._progress.recover()) if slot is not None]
        anchors = [LedgerEnd(slot.header["ledger"][0], bytes.fromhex(slot.header["ledger"][1])) for slot in slots]
        try:
            records, self._ledger_end = read_ledger(ledger, max(anchors, key=_position, default=LedgerEnd()))
        except StateError as error:
            raise StateError(f"{self._storage.location}: {error}; {_LOST}") from error
        if self._ledger_end.position < len(ledger):
            self._storage.truncate(_LEDGER, self._ledger_end.position)
        # What was read may be in the page cache only; what is relied on from here must survive a power cut.
        self._storage.sync(_LEDGER)
        self._adopt(slots, records)

    def _adopt(self, slots: list[Slot], records: list[LedgerRecord]) -> None:
        marks = [record for record in records if isinstance(record, SpentMark)]
        tasks = [TaskId(*slot.header["task"]) for slot in slots if slot.header["task"] is not None]
        # The task of a run that failed is not among them: whoever starts a worker again has mended something.
        tasks += [TaskId(mark.version, mark.attempt) for mark in marks]
        self._last_task = max(tasks, default=None)
        counters = [slot.header["counter"] for slot in slots] + [record.counter for record in records]
        self._counter = max(counters, default=0)
        self._charges = charges_of(records)
        self._newest_spent = max((mark.update for mark in marks), default=0)
        updates = [decode_update(slot.header, slot.payload) for slot in slots if slot.payload]
        self._unspent = next((update for update in updates if not self.is_spent(update.update_id)), None)
        self._adopt_residual({mark.counter for mark in marks})

    def _adopt_residual(self, marks: set[int]) -> None:
        # One that was written for a spent mark which never came belongs to an update that has not left.
        slot = self._residuals.recover(lambda slot: slot.header["mark"] is None or slot.header["mark"] in marks)
        if slot is None:
            return
        self._residual = np.frombuffer(slot.payload, dtype="<f4").astype(np.float32, copy=False)
        self._residual.flags.writeable = False
        if self._unspent is not None and self._unspent.update_id <= slot.header["update"]:
            self._unspent = None


def commit(staged: Iterable[Staged]) -> None:
    """Sync staged operations, mostly one fsync each; those of different clients should all be staged before.

    Raises:
        StateError: a disk refused. What came before in `staged` counts, the rest does not.
    """
    for operation in staged:
        operation.state._commit(operation)


def _position(end: LedgerEnd) -> int:
    return end.position
