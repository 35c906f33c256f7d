"""Two coordinators at one broker: one is in office, the other waits, and takes over whatever becomes of the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from coordinator.lease import CANDIDACY_S
from coordinator.log_writer import Fenced
from coordinator.service import CoordinatorService
from shared.inbox import Inbox
from shared.transport.memory import MemoryTransport
from shared.wire.log_messages import ChangeEntry, TermEntry
from shared.wire.messages import RunState
from tests.simulation.federation import FederationRun, pushed_away
from tests.simulation.test_run_control import steer
from tests.simulation.test_simulation import check_versions


@dataclass
class Second:
    """A coordinator besides that of the run."""

    service: CoordinatorService
    inbox: Inbox[Any]
    transport: MemoryTransport

    def step(self, run: FederationRun) -> None:
        if self.service.finished is None:
            self.service.step(self.inbox.take(0), run.now)


def one_more(run: FederationRun) -> Second:
    """Start another coordinator; `run.coordinator` stays the one it was."""
    first = run.coordinator, run.coordinator_inbox, run.coordinator_transport, run.coordinator_history
    run.start_coordinator()
    second = Second(run.coordinator, run.coordinator_inbox, run.coordinator_transport)
    run.coordinator, run.coordinator_inbox, run.coordinator_transport, run.coordinator_history = first
    return second


def replace_by(run: FederationRun, second: Second) -> None:
    """From now on the run's coordinator is this one."""
    run.coordinator, run.coordinator_inbox, run.coordinator_transport = (
        second.service,
        second.inbox,
        second.transport,
    )


def terms(run: FederationRun) -> int:
    return sum(isinstance(entry, TermEntry) for entry in run.read_log()[0])


def pass_time(run: FederationRun, seconds: float, each_turn: Callable[[], None]) -> None:
    end = run.now + seconds
    run.run(until=lambda: run.now >= end, each_turn=each_turn)


def test_a_second_coordinator_stands_by_and_disturbs_nobody() -> None:
    run = FederationRun(plan={"round": {"rounds": 8}})
    run.run(until=lambda: run.version == 1)
    second = one_more(run)
    run.duration_s = lambda: 1.0
    run.run(until=lambda: run.version == 7, each_turn=lambda: second.step(run))

    assert run.count("standing_by") == 1
    assert terms(run) == 0
    assert second.service.log.chain == run.coordinator.log.chain
    assert run.broker.depth(run.keys.names.offers) <= 1
    assert not run.count("refused")


@pytest.mark.parametrize("version", [0, 1, 3])
def test_a_stand_by_takes_over_at_once_and_nothing_is_lost(version: int) -> None:
    run = FederationRun(plan={"round": {"rounds": 6}})
    run.duration_s = lambda: 1.0
    second = one_more(run)
    run.run(until=lambda: run.version == version, each_turn=lambda: second.step(run))
    pass_time(run, 0.5, lambda: second.step(run))
    killed_at = run.now
    run.broker.crash(run.coordinator_transport)
    replace_by(run, second)
    run.run(until=lambda: run.version > version)
    assert run.now - killed_at <= 10.0
    run.run()

    check_versions(run)
    assert terms(run) == 1
    assert [figures["clients_counted"] for figures in run.figures()][-1] == 4


def test_a_stand_by_of_an_empty_federation_without_clients_notices_its_turn() -> None:
    run = FederationRun()
    for index in range(2):
        run.crash_worker(index)
    second = one_more(run)
    pass_time(run, 10.0, lambda: second.step(run))
    assert run.version == 0

    run.broker.crash(run.coordinator_transport)
    replace_by(run, second)
    killed_at = run.now
    run.run(until=lambda: run.count("in_office") == 2)
    assert run.now - killed_at <= CANDIDACY_S + 1.0


def test_whoever_was_cut_off_is_replaced_and_writes_nothing_that_counts() -> None:
    run = FederationRun(plan={"round": {"rounds": 20}})
    run.duration_s = lambda: 0.5
    second = one_more(run)
    run.run(until=lambda: run.version == 2, each_turn=lambda: second.step(run))
    old = Second(run.coordinator, run.coordinator_inbox, run.coordinator_transport)
    run.broker.disconnect(old.transport, outage_s=3.0)
    replace_by(run, second)
    with pytest.raises(Fenced):
        run.run(each_turn=lambda: old.step(run))
    old.transport.close()
    run.run()

    check_versions(run)
    assert [entry.term for entry in run.read_log()[0] if isinstance(entry, ChangeEntry)][-1] == 2


def test_a_stop_ends_the_one_in_office_and_those_who_wait() -> None:
    run = FederationRun(plan={"round": {"rounds": 50}})
    second = one_more(run)
    run.run(until=lambda: run.version == 2, each_turn=lambda: second.step(run))
    steer(run, RunState.STOPPING)
    run.run(each_turn=lambda: second.step(run))

    assert second.service.finished is not None
    assert second.service.finished == run.coordinator.finished
    assert terms(run) == 0


def test_a_stand_by_with_another_plan_is_refused_before_it_is_needed() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 1)
    run.plan = run.plan.model_copy(update={"weight_records_max": 99})
    second = one_more(run)
    with pytest.raises(Exception, match="different: weight_records_max"):
        pass_time(run, 5.0, lambda: second.step(run))


def test_a_run_that_is_over_is_over_for_those_who_wait() -> None:
    run = FederationRun()
    second = one_more(run)
    run.run(each_turn=lambda: second.step(run))
    weights = run.coordinator.log.weights
    run.coordinator_transport.close()
    replace_by(run, second)
    run.run()

    assert run.coordinator.finished is not None
    assert run.version == run.plan.round.rounds
    assert (run.coordinator.log.weights == weights).all()


def test_a_run_that_stopped_early_is_not_begun_anew_by_who_waits() -> None:
    run = FederationRun(plan={"round": {"rounds": 60}, "steering": {"stop_patience": 4}})
    run.tamper = lambda trained: trained if run.version < 2 else pushed_away(trained)
    second = one_more(run)
    run.run(each_turn=lambda: second.step(run))
    stopped_at = run.version
    run.coordinator_transport.close()
    replace_by(run, second)
    run.run()

    assert run.coordinator.finished is not None
    assert run.version <= stopped_at + 2
