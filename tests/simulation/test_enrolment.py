"""Clients that are enrolled and revoked while a federation is at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from coordinator.events import DirectoryArrived
from shared.directory import Directory, sign_directory, with_clients, without_clients
from shared.effects import Note
from shared.wire.log_messages import DirectoryEntry, DrawEntry
from tests.builders import ENROLMENT, signing_key
from tests.simulation.federation import FederationRun
from worker.storage import MemoryStorage

NEW = "client-9"
KEY = signing_key(109)


def publish(run: FederationRun, directory: Directory) -> None:
    """Put a directory where the coordinator finds it."""
    run.coordinator_inbox.put([DirectoryArrived(sign_directory(directory, ENROLMENT))])


def enroll(run: FederationRun) -> None:
    """A new client, whose worker starts with the new directory when the coordinator has it."""
    directory = with_clients(run.keys.directory, "site-0", "user-0", {NEW: KEY.public})
    publish(run, directory)
    run.run(until=lambda: number_of(run) == directory.number)
    run.keys = replace(run.keys, directory=directory, clients={**run.keys.clients, NEW: KEY})
    run.shares.append((NEW,))
    run.known.append(run.keys.signed)
    run.processes.append(None)
    run.storages[NEW] = MemoryStorage(NEW)
    run.start_worker(len(run.shares) - 1)


def number_of(run: FederationRun) -> int:
    chain = run.coordinator.log.chain
    return chain.directory_number if chain else 0


def counted(run: FederationRun) -> list[int]:
    return [figures["clients_counted"] for figures in run.figures()]


def noted(notes: list[Note], event: str) -> list[Mapping[str, Any]]:
    return [note.fields for note in notes if note.event == event]


@pytest.mark.parametrize("crash", [False, True])
def test_a_client_that_is_enrolled_in_mid_run_takes_part(crash: bool) -> None:
    run = FederationRun(plan={"round": {"rounds": 12}})
    run.duration_s = lambda: 1.0
    run.run(until=lambda: run.version == 2)
    enroll(run)
    if crash:
        run.crash_coordinator()
    run.run()

    assert counted(run)[0] == 4
    assert counted(run)[-1] == 5
    # The others took it over from the log, for good.
    assert set(run.known) == {run.keys.signed}
    assert all(process is not None and not noted(process.notes, "refused") for process in run.processes)


def test_a_queue_that_a_dead_session_did_not_get_to_is_declared_by_its_successor() -> None:
    run = FederationRun(plan={"round": {"rounds": 8}})
    run.run(until=lambda: run.version == 2)
    directory = with_clients(run.keys.directory, "site-0", "user-0", {NEW: KEY.public})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.coordinator_transport, "declare", lambda topology: None)
        publish(run, directory)
        run.run(until=lambda: number_of(run) == directory.number)
    # The successor's file is older than the log, as that of one that has stood by.
    run.crash_coordinator()
    declared: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        spy = lambda topology: declared.extend(queue.name for queue in topology.queues)  # noqa: E731
        patch.setattr(run.coordinator_transport, "declare", spy)
        run.run(until=lambda: run.count("in_office") == 2)

    assert declared == [run.keys.names.client(NEW)]


def test_a_coordinator_that_is_started_with_an_older_file_goes_on_with_the_logs_directory() -> None:
    run = FederationRun(plan={"round": {"rounds": 8, "snapshot_every": 2}})
    run.duration_s = lambda: 1.0
    old = run.keys
    run.run(until=lambda: run.version == 2)
    enroll(run)
    run.run(until=lambda: run.version == 5)
    newest, run.keys = run.keys, old
    run.crash_coordinator()
    run.run()

    assert number_of(run) == newest.directory.number
    assert counted(run)[-1] == 5


def test_a_coordinator_that_is_started_with_a_newer_file_writes_it_to_the_log() -> None:
    run = FederationRun(plan={"round": {"rounds": 6, "min_clients": 3}})
    run.duration_s = lambda: 1.0
    run.run(until=lambda: run.version == 2)
    run.keys = replace(run.keys, directory=without_clients(run.keys.directory, ["client-3"]))
    run.crash_coordinator()
    run.run()

    assert run.version == 6
    assert number_of(run) == 2
    assert counted(run)[-1] == 3
    assert set(run.known) == {run.keys.signed}


def test_a_revoked_client_is_drawn_no_more_and_not_heard() -> None:
    run = FederationRun(plan={"round": {"rounds": 8}}, processes=4)
    run.duration_s = lambda: 1.0
    run.run(until=lambda: run.version == 3)
    # Its worker does not read the log any more: it must not count on the client's good will.
    deaf = run.processes[3]
    assert deaf is not None
    publish(run, without_clients(run.keys.directory, ["client-3"]))
    run.run(until=lambda: number_of(run) == 2)
    at = run.version
    run.run()

    assert counted(run)[at + 1 :] == [3] * (8 - at - 1)
    assert noted(run.notes, "client_revoked") == [{"client": "client-3"}]
    entries, _ = run.read_log()
    since = next(index for index, entry in enumerate(entries) if isinstance(entry, DirectoryEntry))
    assert {entry.offers for entry in entries[since:] if isinstance(entry, DrawEntry)} == {3}
    assert deaf.service._clients["client-3"].machine.phase == "mismatch"
    refused = noted(run.notes, "refused")
    assert {fields["reason"] for fields in refused} <= {"unknown_sender"}


def test_older_and_foreign_directories_are_refused_and_change_nothing() -> None:
    run = FederationRun(plan={"round": {"rounds": 6}})
    run.duration_s = lambda: 1.0
    first = run.keys.directory
    run.run(until=lambda: run.version == 1)
    publish(run, without_clients(first, ["client-3"]))
    run.run(until=lambda: number_of(run) == 2)

    publish(run, first)
    forged = with_clients(without_clients(first, ["client-3"]), "site-0", "user-0", {NEW: KEY.public})
    run.coordinator_inbox.put([DirectoryArrived(sign_directory(forged, signing_key(78)))])
    run.run()
    assert number_of(run) == 2
    reasons = [str(fields["reason"]) for fields in noted(run.notes, "directory_refused")]
    assert len(reasons) == 2
    assert "number 2 is in force" in reasons[0]
    assert "not signed by the enrolment key" in reasons[1]


def test_a_directory_that_comes_before_the_coordinator_is_in_office_waits_for_it() -> None:
    run = FederationRun(plan={"round": {"rounds": 3}})
    publish(run, with_clients(run.keys.directory, "site-0", "user-0", {NEW: KEY.public}))
    run.run()

    assert number_of(run) == 2
    assert run.version == 3
