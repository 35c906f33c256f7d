"""A run that its operator pauses, resumes and stops, also while coordinators die."""

from __future__ import annotations

import random

import pytest

from shared.modellog.reader import LogReader
from shared.transport.memory import MemoryTransport
from shared.wire.framing import pack_batches
from shared.wire.log_messages import ChangeEntry
from shared.wire.messages import Control, RunState
from tests.simulation.federation import FederationRun


def steer(run: FederationRun, state: RunState, *, age_s: float = 0.0) -> None:
    """Send a command as `comitia pause` and its like do."""
    operator = MemoryTransport(run.broker, lambda _: None, name="operator")
    control = Control(run=state, issued_us=int((run.now - age_s) * 1e6))
    for body in pack_batches([run.keys.seal(control)]):
        operator.publish(run.keys.names.up, run.keys.names.operator_key, body)
    operator.close()


def state_of(log: LogReader) -> RunState | None:
    return log.chain.run if log.chain else None


def for_seconds(run: FederationRun, seconds: float) -> None:
    until = run.now + seconds
    run.run(until=lambda: run.now >= until)


def pause_at(run: FederationRun, version: int) -> int:
    """Pause a run and let what was under way finish; returns the version it stands at."""
    run.run(until=lambda: run.version == version)
    steer(run, RunState.PAUSED)
    run.run(until=lambda: state_of(run.coordinator.log) is RunState.PAUSED)
    for_seconds(run, 5.0)
    return run.version


def test_a_paused_run_stands_still_and_trains_nothing_until_it_is_resumed() -> None:
    run = FederationRun(plan={"round": {"rounds": 6}})
    run.duration_s = lambda: 1.0
    stands = pause_at(run, 2)
    trained = len(run.updates)

    for_seconds(run, 200.0)
    assert run.version == stands < 6
    assert len(run.updates) == trained
    assert run.count("client_lost") == 0
    steer(run, RunState.RUNNING)
    run.run()
    assert run.version == 6
    assert [figures["clients_counted"] for figures in run.figures()] == [4] * 6
    assert (run.count("run_paused"), run.count("run_resumed")) == (1, 1)


def test_a_draw_under_way_is_finished_before_the_pause() -> None:
    run = FederationRun(plan={"round": {"rounds": 6}})
    run.run(until=lambda: run.coordinator.log.chain is not None and run.coordinator.log.chain.draw is not None)
    version = run.version
    steer(run, RunState.PAUSED)

    for_seconds(run, 60.0)
    assert run.version == version + 1
    assert run.count("draw_void") == 0


@pytest.mark.parametrize("cohort_size", [None, 3])
def test_a_pause_outlives_coordinators_and_workers(cohort_size: int | None) -> None:
    run = FederationRun(plan={"round": {"rounds": 6, "cohort_size": cohort_size}})
    stands = pause_at(run, 3)

    run.crash_coordinator()
    run.crash_worker(0)
    run.start_worker(0)
    for_seconds(run, 100.0)
    assert run.version == stands
    assert run.count("run_paused") == 2
    steer(run, RunState.RUNNING)
    run.run()
    assert run.version == 6
    entries, _ = run.read_log()
    assert [entry.version for entry in entries if isinstance(entry, ChangeEntry)] == list(range(1, 7))


def test_a_stop_ends_the_run_with_the_round_under_way() -> None:
    run = FederationRun(plan={"round": {"rounds": 20}})
    run.duration_s = lambda: 1.0
    run.run(until=lambda: run.version == 2)
    steer(run, RunState.STOPPING)
    run.run(until=lambda: state_of(run.coordinator.log) is RunState.STOPPING)
    asked_at = run.version

    run.run()
    assert run.coordinator.finished is not None
    assert run.coordinator.finished.reason == "stopped by the operator"
    assert run.version == asked_at + 1
    assert [figures["version"] for figures in run.figures()] == list(range(1, run.version + 1))
    assert run.count("stopped_early") == 1


def test_a_stopped_federation_goes_on_when_its_coordinator_is_started_again() -> None:
    run = FederationRun(plan={"round": {"rounds": 5}})
    run.run(until=lambda: run.version == 1)
    steer(run, RunState.STOPPING)
    run.run()
    assert run.version < 5

    run.crash_coordinator()
    run.run()
    assert run.version == 5


@pytest.mark.parametrize("paused", [True, False])
def test_a_run_in_which_nothing_is_under_way_stops_at_once(paused: bool) -> None:
    run = FederationRun(plan={"round": {"rounds": 20}})
    if paused:
        pause_at(run, 2)
    else:
        run.run(until=lambda: run.version == 2)
        for index in (0, 1):
            run.crash_worker(index)
        for_seconds(run, 120.0)
    stands = run.version

    steer(run, RunState.STOPPING)
    before = run.now
    run.run()
    assert run.version == stands
    assert run.now - before < 2.0


def test_a_new_federation_without_clients_can_be_stopped() -> None:
    run = FederationRun(plan={"round": {"rounds": 20}})
    for index in (0, 1):
        run.crash_worker(index)
    for_seconds(run, 5.0)

    steer(run, RunState.STOPPING)
    run.run()
    assert run.version == 0


def test_a_stop_can_be_called_off_before_its_round_is_over() -> None:
    run = FederationRun(plan={"round": {"rounds": 6}})
    run.duration_s = lambda: 5.0
    run.run(until=lambda: run.version == 2)
    steer(run, RunState.STOPPING)
    run.run(until=lambda: state_of(run.coordinator.log) is RunState.STOPPING)
    for_seconds(run, 1.0)
    steer(run, RunState.RUNNING)
    run.run()
    assert run.version == 6


def test_old_and_forged_commands_change_nothing() -> None:
    run = FederationRun(plan={"round": {"rounds": 4}})
    run.now = 1000.0
    run.run(until=lambda: run.version == 1)
    steer(run, RunState.PAUSED, age_s=100.0)
    # A client signs it with its own key, and cannot call itself the coordinator.
    operator = MemoryTransport(run.broker, lambda _: None, name="operator")
    forged = run.keys.seal_as(run.clients[0], Control(run=RunState.STOPPING, issued_us=int(run.now * 1e6)))
    for body in pack_batches([forged]):
        operator.publish(run.keys.names.up, run.keys.names.operator_key, body)

    run.run()
    assert run.version == 4
    assert sorted(note.fields["reason"] for note in run.notes if note.event == "refused") == ["not_allowed", "stale"]


@pytest.mark.parametrize("seed", range(6))
def test_commands_at_any_time_and_coordinators_that_die_lose_no_version(seed: int) -> None:
    dice = random.Random(seed)
    run = FederationRun(plan={"round": {"rounds": 6}}, seed=seed)
    run.duration_s = lambda: dice.uniform(0.0, 2.0)
    for _ in range(6):
        for_seconds(run, dice.uniform(0.5, 6.0))
        if run.coordinator.finished is not None:
            break
        steer(run, dice.choice([RunState.PAUSED, RunState.RUNNING]))
        if dice.random() < 0.4:
            run.crash_coordinator()
    for_seconds(run, 1.0)
    steer(run, RunState.RUNNING)
    run.run()
    entries, _ = run.read_log()
    assert [entry.version for entry in entries if isinstance(entry, ChangeEntry)] == list(range(1, 7))
