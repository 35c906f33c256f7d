"""The worker's shell: waves of disk operations before anything leaves, and nothing that a bad message can stop."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from shared.directory import Directory, sign_directory
from shared.effects import Note
from shared.errors import PlanError, RefusalReason
from shared.membership import Membership
from shared.transport.port import Delivered, Outcome
from shared.wire.framing import pack_batches, split_batch
from shared.wire.group_messages import Roster, Words
from shared.wire.messages import ClientState, Kind, Offer, Status, Task
from tests.builders import ENROLMENT
from tests.simulation.federation import FederationRun, PowerCut, Process
from tests.tiny_workload import TinyWorkload
from worker.ledger import LedgerEnd, read_ledger
from worker.plan_check import check_layout
from worker.policy import Policy
from worker.service import WorkerService
from worker.signs_of_life import Phase
from worker.stored_update import TaskId

CLIENTS = 3


def watched(run: FederationRun, process: Process) -> list[tuple[Any, ...]]:
    """The process's history with the syncs of its clients' disks in it."""
    for client in process.clients:

        def boundary(word: str, client: str = client) -> None:
            if word.startswith("after sync"):
                process.history.append(("sync", client, word.split()[-1]))

        run.storages[client].on_boundary = boundary
    return process.history


def one_process(**fields: Any) -> tuple[FederationRun, Process]:
    run = FederationRun(clients=CLIENTS, processes=1, **fields)
    process = run.processes[0]
    assert process is not None
    return run, process


def kinds(entry: tuple[Any, ...]) -> set[Kind]:
    return {Kind(frame[4]) for frame in split_batch(entry[2])} if entry[0] == "publish" else set()


def test_a_round_costs_two_fsyncs_per_client_and_two_messages_per_process() -> None:
    run, process = one_process()
    history = watched(run, process)
    run.run()
    ends = [at for at, entry in enumerate(history) if kinds(entry) == {Kind.WORDS}]
    round_ = [entry for entry in history[ends[1] + 1 : ends[2] + 1] if entry[0] in ("sync", "publish")]

    # All updates are saved, then one message offers them; all are spent, then one message carries the words.
    saves, spends = round_[:CLIENTS], round_[CLIENTS + 1 : 2 * CLIENTS + 1]
    assert {entry[:2] for entry in saves} == {("sync", client) for client in process.clients}
    assert kinds(round_[CLIENTS]) == {Kind.OFFER}
    assert {entry[:3] for entry in spends} == {("sync", client, "ledger.log") for client in process.clients}
    assert kinds(round_[2 * CLIENTS + 1]) == {Kind.WORDS}
    assert len(round_) == 2 * CLIENTS + 2


def test_no_words_leave_before_their_client_has_spent() -> None:
    run, process = one_process()
    history = watched(run, process)
    run.run()

    spent: dict[str, int] = dict.fromkeys(process.clients, 0)
    left: dict[str, set[bytes]] = {client: set() for client in process.clients}
    for entry in history:
        if entry[0] == "sync" and entry[2] == "ledger.log":
            spent[entry[1]] += 1
        for sender, message in run.messages([entry]):
            if isinstance(message, Words):
                left[sender].add(message.transcript)
                assert len(left[sender]) <= spent[sender]
    assert spent == dict.fromkeys(process.clients, 5)


def boundaries(run: FederationRun, client: str, until: int) -> Iterator[str]:
    """The disk's boundaries of one client while the federation goes on to a version."""
    seen: list[str] = []
    run.storages[client].on_boundary = seen.append
    run.run(until=lambda: run.version == until)
    run.storages[client].on_boundary = None
    yield from seen


BOUNDARIES_OF_A_ROUND = 8
"""Before and after write and sync of the update, before and after append and sync of the spent mark."""


def test_the_boundaries_of_a_round_are_known() -> None:
    run, _ = one_process()
    run.run(until=lambda: run.version == 1)

    assert len(list(boundaries(run, run.clients[0], 2))) == BOUNDARIES_OF_A_ROUND


@pytest.mark.parametrize("number", range(BOUNDARIES_OF_A_ROUND))
@pytest.mark.parametrize("torn", [False, True])
def test_a_power_cut_at_any_boundary_never_sends_an_update_twice(number: int, torn: bool) -> None:
    run, _ = one_process(seed=number)
    victim = run.clients[0]
    run.run(until=lambda: run.version == 1)
    left = number

    def cut(boundary: str) -> None:
        nonlocal left
        if left == 0:
            raise PowerCut(boundary)
        left -= 1

    run.storages[victim].on_boundary = cut
    run.run(until=lambda: run.processes[0] is None)
    if torn:
        run.storages[victim].crash(run.chance)
    run.start_worker(0)
    run.run()

    marks = read_ledger(run.storages[victim].read("ledger.log") or b"", LedgerEnd())[0]
    assert len({mark.update for mark in marks}) == len(marks)
    messages = [message for client, message in run.from_workers() if client == victim]
    sent = {message.transcript for message in messages if isinstance(message, Words)}
    assert len(sent) <= len(marks)
    assert run.version == run.plan.round.rounds


# ── bad and misplaced messages ──────────────────────────────────────────────────────────────────────────────────────


def refusals(process: Process) -> list[str]:
    return [str(note.fields["reason"]) for note in process.notes if note.event == "refused"]


def send(run: FederationRun, key: str, *frames: bytes) -> None:
    for body in pack_batches(frames):
        run.coordinator_transport.publish(run.keys.names.down, key, body)


def test_poison_goes_to_the_dead_letters_and_its_neighbors_count() -> None:
    run, process = one_process()
    names = run.keys.names
    run.coordinator_transport.publish(names.down, names.client(run.clients[0]), b"not a batch")
    task = Task(client=run.clients[0], version=0, attempt=0, head=bytes(32), snapshot_offset=0)
    good, forged = run.keys.seal(task), bytearray(run.keys.seal(task))
    forged[-1] ^= 1
    send(run, names.client(run.clients[0]), bytes(forged), good)
    run.turn()

    assert refusals(process)[:2] == [RefusalReason.MALFORMED, RefusalReason.BAD_SIGNATURE]
    run.run()
    assert ("settle", names.client(run.clients[0]), Outcome.DEAD_LETTER) in process.history
    assert run.broker.depth(names.dead) == 1
    assert run.count("client_lost") == 0


def test_tasks_and_rosters_for_others_and_other_kinds_are_dropped() -> None:
    run, process = one_process()
    run.run(until=lambda: run.version == 1)
    names, keys = run.keys.names, run.keys
    mine, other = run.clients[:2]
    task = Task(client=other, version=9, attempt=0, head=bytes(32), snapshot_offset=0)
    send(run, names.client(mine), keys.seal(task))
    talk = names.talk("site-0", "w-2")
    (roster,) = _a_roster(run, "nobody")
    send(run, talk, keys.seal(roster), keys.seal(task))
    before = len(refusals(process))
    run.turn()
    run.run()

    assert refusals(process)[before:][:1] == [RefusalReason.UNEXPECTED_KIND]
    assert process.service.telemetry.counts["refused.unexpected_kind"] == 3
    assert run.count("client_lost") == 0
    assert run.broker.depth(names.client(mine)) == 0


def _a_roster(run: FederationRun, client: str) -> list[Roster]:
    found = [m for _, m in run.messages(run.coordinator_history) if isinstance(m, Roster)]
    return [found[0].model_copy(update={"client": client})]


# ── plans that do not fit ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_directory_that_is_not_the_coordinators_is_a_mismatch_for_every_client() -> None:
    run = FederationRun(clients=4, processes=2, plan={"round": {"min_clients": 1}})
    run.duration_s = lambda: 0.5
    run.crash_worker(0)
    newer = Directory.model_validate(run.keys.directory.model_dump() | {"number": 2})
    process = run.start_worker(0, members=Membership(sign_directory(newer, ENROLMENT), ENROLMENT.public))
    run.run()

    states = {c: m.state for c, m in run.from_workers() if isinstance(m, Status) and c in process.clients}
    assert states == dict.fromkeys(process.clients, ClientState.PLAN_MISMATCH)
    assert not [m for c, m in run.from_workers() if isinstance(m, Offer) and c in process.clients]
    assert run.version == run.plan.round.rounds


@pytest.mark.parametrize("client", ["objecting", "willing"])
def test_a_plan_that_the_policy_rejects_is_a_policy_status_and_no_offer(client: str) -> None:
    policy = Policy(min_members=1, min_summed=1, allow_groups_of_one=client == "willing")
    run = FederationRun(clients=2, processes=1, policy=policy)
    run.run(until=lambda: run.version == 1 or run.now > 20.0)

    said = run.from_workers()
    if client == "willing":
        assert run.version == 1
        return
    statuses = [message for _, message in said if isinstance(message, Status)]
    assert {s.state for s in statuses} <= {ClientState.IDLE, ClientState.POLICY}
    told = [s for s in statuses if s.state is ClientState.POLICY]
    assert len({s.reason for s in told}) == 1
    assert "policy.allow_groups_of_one" in told[0].reason
    assert not [m for _, m in said if isinstance(m, Offer)]
    assert run.version == 0


def test_a_task_that_comes_together_with_a_log_that_does_not_fit_trains_nothing() -> None:
    # One client's task starts the log; the other's task and the log's first entries arrive in one step.
    run, process = one_process()

    def refuse(plan: object) -> Any:
        raise PlanError("other layers")

    process.service._prepare = refuse
    first = run.keys.names.client(process.clients[0])
    items: list[Any] = []
    while not any(isinstance(item, Delivered) and item.queue == first for item in items):
        process.service.step(items, run.now)
        run.coordinator.step(run.coordinator_inbox.take(0), run.now)
        items = process.inbox.take(0)
    early = [item for item in items if isinstance(item, Delivered) and item.queue == first]
    process.service.step(early, run.now)
    process.service.step([*(item for item in items if item not in early), *process.inbox.take(0)], run.now)

    machines = [process.service._clients[client].machine for client in process.clients]
    assert {machine.phase for machine in machines} == {Phase.MISMATCH}


def test_a_model_with_other_layers_is_refused() -> None:
    run, _ = one_process()
    check_layout(TinyWorkload(), run.plan)

    with pytest.raises(PlanError, match="other parameters"):
        check_layout(TinyWorkload(features=9), run.plan)


# ── leaving ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_drains_finishes_its_groups_and_its_updates_wait_for_the_next() -> None:
    run, process = one_process()
    run.duration_s = lambda: 1.0
    run.run(until=lambda: run.version == 2 and bool(run.updates) and run.updates[-1][1].task == TaskId(2, 0))
    process.service.drain(run.now)
    assert process.service.drained
    run.turn()
    assert run.count("client_draining") == 0  # it has no reason to give
    assert {m.state for _, m in run.from_workers()[-CLIENTS:] if isinstance(m, Status)} == {ClientState.DRAINING}

    run.broker.crash(process.transport)
    run.start_worker(0)
    run.run()
    assert run.version == run.plan.round.rounds


def test_the_worker_sleeps_until_something_is_due() -> None:
    run, process = one_process()
    process.service.step([], run.now)

    assert process.service.next_wakeup() > run.now
    assert all(isinstance(note, Note) for note in process.notes)


def test_keys_come_from_the_operating_system_unless_told_otherwise() -> None:
    assert inspect.signature(WorkerService).parameters["entropy"].default is secrets.token_bytes
