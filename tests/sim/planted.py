"""Five bugs that the simulation must find: each takes one rule of the code away, for as long as it is planted.

Nothing of production code knows of them. A seed that finds one fails with it and passes without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import shared.modellog.chain as chain_rules
import worker.service as worker_shell
from coordinator.summing.group import GroupSum
from coordinator.summing.steps import GroupState, GroupStep
from shared.errors import RefusalReason
from shared.modellog.chain import ChainState
from shared.wire.log_messages import Entry
from worker.events import SpendUpdate
from worker.member import GroupMember
from worker.service import WorkerService
from worker.state import ClientState, Staged


@contextmanager
def acknowledge_before_saving() -> Iterator[None]:
    """The shell says that an update is saved before it is synced: its offer leaves first."""
    unsaved: list[Staged] = []
    commit, carry_out = worker_shell.commit, WorkerService._carry_out

    def claim(staged: Iterable[Staged]) -> None:
        for operation in staged:
            if operation.files[0].startswith("update"):
                operation.take_effect()
                unsaved.append(operation)
            else:
                commit([operation])

    def leave_first(self: WorkerService, effects: Any) -> None:
        carry_out(self, effects)
        states = [client.state for client in self._clients.values()]
        for one in [one for one in unsaved if one.state in states]:
            unsaved.remove(one)
            for file in one.files:
                one.state._storage.sync(file)
            one.state._staged = None

    with (
        patch.object(worker_shell, "commit", claim),
        patch.object(ClientState, "_check_idle", lambda self: None),
        patch.object(WorkerService, "_carry_out", leave_first),
    ):
        yield


@contextmanager
def reuse_of_offer_keys() -> Iterator[None]:
    """A client draws keys once, and offers every update with them."""
    draw_keys = GroupMember.draw_keys

    def draw_once(self: GroupMember) -> Any:
        kept = getattr(self, "kept_keys", None)
        if kept is None:
            public = draw_keys(self)
            self.kept_keys = (self._keys, public)
            return public
        self._keys, public = kept
        return public

    with patch.object(GroupMember, "draw_keys", draw_once):
        yield


@contextmanager
def no_parent_check() -> Iterator[None]:
    """Readers of the log accept what fits, whatever it was built on."""
    judge = chain_rules.judge

    def judge_without_parent(state: ChainState, entry: Entry) -> RefusalReason | None:
        return judge(state, entry.model_copy(update={"parent": state.head}))

    with patch("shared.modellog.reader.judge", judge_without_parent):
        yield


@contextmanager
def no_agreement_round() -> Iterator[None]:
    """A stage asks for shares as soon as one member has agreed, and members reveal them."""

    def count_agreements(self: GroupSum, now: float) -> Any:
        agreed = self._agreed()
        if agreed:
            self._asked = set(self._arrived)
            self._move(GroupStep.AGREED, GroupState.REVEAL, now)
            yield from self._ask(sorted(self._arrived))

    with (
        patch.object(GroupSum, "_count_agreements", count_agreements),
        patch("worker.rules.check_quorum", lambda signers, threshold: None),
    ):
        yield


@contextmanager
def spend_after_sending() -> Iterator[None]:
    """The words leave, and only then the spent mark is written."""
    perform, carry_out = WorkerService._perform, WorkerService._carry_out
    owed: list[tuple[WorkerService, str, SpendUpdate]] = []

    def put_off(self: WorkerService, client: str, effect: Any, effects: Any) -> Any:
        if isinstance(effect, SpendUpdate):
            owed.append((self, client, effect))
            counter = self._clients[client].state.counter + 1
            return _nothing(self._clients[client].state), worker_shell.UpdateSpent(counter)
        return perform(self, client, effect, effects)

    def leave_first(self: WorkerService, effects: Any) -> None:
        carry_out(self, effects)
        late = [one for one in owed if one[0] is self]
        for one in late:
            owed.remove(one)
            _, client, effect = one
            staged, _ = perform(self, client, effect, [])
            worker_shell.commit([staged])

    with (
        patch.object(WorkerService, "_perform", put_off),
        patch.object(WorkerService, "_carry_out", leave_first),
    ):
        yield


def _nothing(state: ClientState) -> Staged:
    return state._stage((), lambda: None)


PLANTED = {
    "acknowledge before saving": acknowledge_before_saving,
    "reuse of offer keys": reuse_of_offer_keys,
    "no parent check": no_parent_check,
    "no agreement round": no_agreement_round,
    "spend after sending": spend_after_sending,
}
"""The bugs by their names."""
