"""Summing processes over a real RabbitMQ: killed in mid-group, frozen and woken, given the same job twice.

`COMITIA_TEST_STAGE_KILLS` and `COMITIA_TEST_FREEZE_S` make these tests as long as one wants: 50 kills take minutes.
"""

from __future__ import annotations

import os
import random
import signal
import time

from tests.integration.conftest import MakeFederation, Record
from tests.integration.federation import LiveFederation, LoggingProcess, wait_until

KILLS = int(os.environ.get("COMITIA_TEST_STAGE_KILLS", "3"))
FREEZE_S = float(os.environ.get("COMITIA_TEST_FREEZE_S", "2.5"))
CLIENTS = 8
GROUP_S_MAX = 0.3


def secure_settings(rounds: int) -> dict[str, object]:
    return {
        "roles": ["scheduler", "aggregator"],
        "group_size": 4,
        "max_colluders": 1,
        "workload_options": {"dimension": 50_000},
        "aggregation": {"rule": "mean", "trim": 0},
        "codec": {"selection": "dense", "density": 1.0, "bits": 16},
        "evaluation": {"client_share": 0.0},
        "round": {"rounds": rounds, "min_clients": CLIENTS, "round_deadline_s": 60, "status_interval_s": 2},
    }


def check_rounds(federation: LiveFederation, coordinator: LoggingProcess, record: Record) -> None:
    """All rounds ended, no group ended in two sums, next to nothing was lost."""
    finished = coordinator.notes("round_finished")
    counted = sum(note["clients_counted"] for note in finished)
    voids = len(coordinator.notes("draw_void"))
    given_up = [(note["version"], note["reason"]) for note in coordinator.notes("group_given_up")] if voids else []
    record("rounds", len(finished))
    record("clients_counted", counted)
    record("draws_void", voids)
    assert not coordinator.notes("sums_differ")
    assert counted >= 0.98 * CLIENTS * (len(finished) + voids), given_up


def test_stages_that_are_killed_in_mid_group_are_replaced_and_nothing_is_lost(
    make_federation: MakeFederation, record: Record
) -> None:
    federation = make_federation("Small", CLIENTS, **secure_settings(rounds=1_000_000))
    chance = random.Random(1)
    # Stages may come before there is a federation: they wait.
    stages = [federation.start_stage(), federation.start_stage()]
    coordinator = federation.start_coordinator()
    federation.start_workers(2)
    coordinator.wait_for("round_finished", count=3)

    for number in range(KILLS):
        doomed = stages[number % 2]
        taken = len(doomed.wait_for("job_taken"))
        doomed.wait_for("job_taken", count=taken + 1)
        time.sleep(chance.uniform(0.0, GROUP_S_MAX))
        doomed.kill()
        stages[number % 2] = federation.start_stage()
    before = len(coordinator.notes("round_finished"))
    stages[0].wait_for("group_summed")
    coordinator.wait_for("round_finished", count=before + 3)

    record("kills", KILLS)
    check_rounds(federation, coordinator, record)


def test_a_stage_that_is_frozen_and_woken_beside_its_successor_makes_no_second_sum(
    make_federation: MakeFederation, record: Record
) -> None:
    heartbeat_s = max(1, min(8, round(FREEZE_S / 4)))
    settings = {**secure_settings(rounds=1_000_000), "broker_heartbeat_s": heartbeat_s}
    federation = make_federation("Small", CLIENTS, **settings)
    coordinator = federation.start_coordinator()
    federation.start_workers(2)
    stages = [federation.start_stage(broker_heartbeat_s=heartbeat_s) for _ in range(2)]
    coordinator.wait_for("round_finished", count=3)
    chance = random.Random(2)

    for stage in stages:
        stage.wait_for("group_summed")
        stage.wait_for("job_taken", count=len(stage.notes("job_taken")) + 1)
        time.sleep(chance.uniform(0.0, GROUP_S_MAX))
        stage.process.send_signal(signal.SIGSTOP)
        time.sleep(FREEZE_S)
        stage.process.send_signal(signal.SIGCONT)
        stage.wait_for("stage_paused")
        stage.wait_for("group_summed", count=len(stage.notes("group_summed")) + 1)

    coordinator.wait_for("round_finished", count=len(coordinator.notes("round_finished")) + 2)
    check_rounds(federation, coordinator, record)


def test_a_job_that_is_published_twice_is_summed_once_and_a_stage_leaves_in_order(
    make_federation: MakeFederation, record: Record
) -> None:
    federation = make_federation("Small", CLIENTS, **secure_settings(rounds=6))
    coordinator = federation.start_coordinator()
    groups = federation.names.groups
    federation.start_workers(2)

    # No stage is there yet: the first draw's jobs wait, and we put each of them there once more.
    with federation.channel() as channel:
        wait_until(lambda: channel.queue_declare(groups, passive=True).method.message_count, "a job")
        _, _, body = channel.basic_get(groups, auto_ack=True)
        for _ in range(2):
            channel.basic_publish(federation.names.down, groups, body)
    stages = [federation.start_stage() for _ in range(2)]

    assert coordinator.wait() == 0, coordinator.tail()
    assert [note["clients_counted"] for note in coordinator.notes("round_finished")] == [CLIENTS] * 6
    check_rounds(federation, coordinator, record)
    assert sum(len(stage.notes("job_taken")) for stage in stages) >= 7
    for stage in stages:
        stage.process.send_signal(signal.SIGTERM)
        assert stage.wait() == 0, stage.tail()
        assert stage.notes("stage_stopped")
