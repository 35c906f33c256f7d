"""Summing in processes of their own: every group ends once, whatever happens to the stages."""

from __future__ import annotations

import random
from typing import Any

import pytest

from shared.transport.memory import Faults
from shared.wire.group_messages import Agreement, GroupJob, Reveal, Shares, Sum, Words
from shared.wire.log_messages import ChangeEntry, DrawEntry
from shared.wire.messages import Message
from tests.simulation.federation import FederationRun
from tests.simulation.stages import FROZEN_S, Fate
from tests.simulation.test_enrolment import enroll
from tests.simulation.test_simulation import check_offers, check_versions


def secure_run(stages: int | None = 2, *, clients: int = 8, rounds: int = 4, **options: Any) -> FederationRun:
    plan = {"group_size": 4, "max_colluders": 1, "round": {"rounds": rounds, **options.pop("round", {})}}
    return FederationRun(clients=clients, processes=2, plan=plan, stages=stages, **options)


def check_sums(run: FederationRun) -> None:
    """The log is one chain; whatever stages said of a group, it was one sum, or that there is none."""
    messages = run.from_workers()
    check_versions(run)
    check_offers(messages)
    ends = run.stages.ends()
    for said in ends.values():
        sums = {(message.arrived, message.part, message.body) for message in said if isinstance(message, Sum)}
        assert len(sums) <= 1
    assert run.count("sums_differ") == 0
    entries, _ = run.read_log()
    for draw, change in zip(draws_that_count(run), [e for e in entries if isinstance(e, ChangeEntry)], strict=True):
        summed = {group for (of, group), said in ends.items() if of == change.draw for m in said if isinstance(m, Sum)}
        assert set(change.groups) <= summed
        assert {group for of, group in ends if of == change.draw} == set(range(draw.groups))


def draws_that_count(run: FederationRun) -> list[DrawEntry]:
    """The draw before each change."""
    draws, last = [], None
    for entry in run.read_log()[0]:
        if isinstance(entry, DrawEntry):
            last = entry
        elif isinstance(entry, ChangeEntry):
            assert last is not None
            draws.append(last)
    return draws


def lost_share(run: FederationRun) -> float:
    """Which share of the updates that were spent is in no version."""
    spent = {(client, message.transcript) for client, message in run.from_workers() if isinstance(message, Words)}
    return 1.0 - sum(figures["clients_counted"] for figures in run.figures()) / len(spent)


def test_stages_share_out_the_groups_and_the_coordinator_sums_none() -> None:
    # Jobs of four groups each: eight groups are two jobs, dealt out in turn.
    run = secure_run(clients=32, rounds=2)
    run.run()

    check_sums(run)
    assert [figures["clients_counted"] for figures in run.figures()] == [32] * 2
    # Of every draw: a batch would go to one of them whole.
    assert [process.count("group_summed") for process in run.stages.processes] == [8, 8]
    jobs = [note.fields["version"] for note in run.stages.processes[0].notes if note.event == "job_taken"]
    assert jobs == [0, 1]
    assert run.broker.depth(run.keys.names.groups) == 0


REPLIES: dict[str, type[Message]] = {"shares": Shares, "words": Words, "agreement": Agreement, "reveal": Reveal}


@pytest.mark.parametrize("seed", range(3))
def test_stages_that_are_killed_in_mid_group_again_and_again_lose_nothing(seed: int) -> None:
    chance = random.Random(seed)
    run = secure_run(rounds=6, faults=Faults(seed=seed, delay=0.3, delay_max_s=0.5))
    kills = []

    def fate(index: int, incoming: set[type[Message]]) -> Fate:
        if chance.random() < 0.3 and incoming & {GroupJob, *REPLIES.values()}:
            kills.append(index)
            return Fate.IS_KILLED
        return Fate.LIVES

    run.stages.fate = fate
    run.run()
    check_sums(run)
    assert len(kills) >= 10
    assert lost_share(run) <= 0.02


@pytest.mark.parametrize("step", REPLIES)
def test_a_stage_frozen_at_any_step_is_replaced_and_wakes_beside_its_successor(step: str) -> None:
    run = secure_run(round={"sums_deadline_s": 60.0})
    frozen_until: list[float] = []

    def fate(index: int, incoming: set[type[Message]]) -> Fate:
        # The first one that comes so far, and its successor when it does, if that is another.
        if REPLIES[step] in incoming and (not frozen_until or run.version >= 2 > len(frozen_until)):
            frozen_until.append(run.now + FROZEN_S)
            return Fate.FREEZES
        return Fate.LIVES

    run.stages.fate = fate
    run.run()
    run.run(until=lambda: run.now > frozen_until[-1] + 5.0)
    check_sums(run)
    assert len(frozen_until) == 2
    assert [note.event for note in run.stages.notes].count("stage_paused") == 2
    assert lost_share(run) <= 0.02


def test_a_job_that_is_published_twice_is_summed_once() -> None:
    run = secure_run(faults=Faults(seed=0, duplicate=0.5))
    run.run()
    check_sums(run)
    assert [figures["clients_counted"] for figures in run.figures()] == [8] * 4
    assert lost_share(run) == 0.0


def test_a_broker_that_restarts_and_connections_that_break_lose_no_group() -> None:
    run = secure_run(faults=Faults(seed=3, connection_loss=0.01, outage_max_s=8.0))
    run.run()
    check_sums(run)


def test_a_stage_helps_a_coordinator_that_sums_too() -> None:
    run = secure_run(stages=None, clients=32, rounds=2)
    run.stages.processes.append(run.stages.start())
    run.run()
    check_versions(run)
    assert [figures["clients_counted"] for figures in run.figures()] == [32] * 2
    summed = run.stages.processes[0].count("group_summed")
    assert 0 < summed < 2 * 8
    assert run.count("sums_differ") == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_coordinator_that_is_killed_beside_its_stages_goes_on(seed: int) -> None:
    chance = random.Random(seed)
    run = secure_run(rounds=6, faults=Faults(seed=seed, delay=0.2, delay_max_s=0.5))
    crashes = 0

    def maybe_crash() -> None:
        nonlocal crashes
        if crashes < 4 and chance.random() < 0.02:
            crashes += 1
            run.crash_coordinator()

    run.run(each_turn=maybe_crash)
    messages = run.from_workers()
    check_versions(run)
    check_offers(messages)
    assert run.count("sums_differ") == 0
    assert crashes == 4
    for said in run.stages.ends().values():
        sums = {(message.arrived, message.part, message.body) for message in said if isinstance(message, Sum)}
        assert len(sums) <= 1


def test_a_stage_that_comes_late_reads_the_whole_log_and_takes_part() -> None:
    run = secure_run(stages=0)
    run.run(until=lambda: any(isinstance(entry, DrawEntry) for entry in run.read_log()[0]))
    run.stages.processes.append(run.stages.start())
    run.run(until=lambda: run.version == 2)
    run.stages.crash(0)
    run.run()
    check_sums(run)
    assert [figures["clients_counted"] for figures in run.figures()] == [8] * 4


def test_a_client_that_is_enrolled_in_mid_run_is_summed_by_stages_that_were_there_before() -> None:
    run = secure_run(clients=8, rounds=12)
    run.duration_s = lambda: 1.0
    run.run(until=lambda: run.version == 2)
    enroll(run)
    run.run()
    assert run.figures()[-1]["clients_counted"] == 9
    assert {process.service.log.directory.number for process in run.stages.processes} == {2}
    assert not [note for note in run.stages.notes if note.event == "refused"]
