"""Two coordinators over a real RabbitMQ, one in office, one that waits: the first is killed, or frozen and woken.

`COMITIA_TEST_COORDINATOR_KILLS` and `COMITIA_TEST_FREEZE_S` make these tests as long as one wants; with a freeze of
45 s the processes have the heartbeat that they have by default.
"""

from __future__ import annotations

import os
import signal
import time

from shared.wire.log_messages import ChangeEntry
from tests.integration.conftest import MakeFederation, Record
from tests.integration.federation import LiveFederation, LoggingProcess

KILLS = int(os.environ.get("COMITIA_TEST_COORDINATOR_KILLS", "1"))
FREEZE_S = float(os.environ.get("COMITIA_TEST_FREEZE_S", "2.5"))
CLIENTS = 8
AFTER_KILL_S = 10.0
AFTER_FREEZE_S = 40.0
DEFAULT_HEARTBEAT_S = 8


def settings(**more: object) -> dict[str, object]:
    return {
        "group_size": 4,
        "max_colluders": 1,
        "workload_options": {"dimension": 50_000},
        "aggregation": {"rule": "mean", "trim": 0},
        "codec": {"selection": "dense", "density": 1.0, "bits": 16},
        "evaluation": {"client_share": 0.0},
        "round": {"rounds": 1_000_000, "min_clients": CLIENTS},
        **more,
    }


def next_version(process: LoggingProcess, since: float) -> float:
    """Seconds from `since` (monotonic) until this coordinator has finished a round."""
    process.wait_for("round_finished", count=len(process.notes("round_finished")) + 1)
    return time.monotonic() - since


def check_log(federation: LiveFederation, last: int) -> None:
    """Every version up to `last` and beyond has one entry, of terms that rise."""
    for process in federation.processes:
        process.kill()
    changes = [entry for entry in federation.read_log()[1] if isinstance(entry, ChangeEntry)]
    assert [change.version for change in changes] == list(range(1, len(changes) + 1))
    assert len(changes) >= last
    assert [change.term for change in changes] == sorted(change.term for change in changes)


def test_a_stand_by_serves_the_next_version_soon_after_the_coordinator_was_killed(
    make_federation: MakeFederation, record: Record
) -> None:
    federation = make_federation("Small", CLIENTS, **settings())
    active = federation.start_coordinator()
    waiting = federation.start_standby()
    federation.start_workers(1)
    active.wait_for("round_finished", count=3)
    took, served = [], [active]

    for _ in range(KILLS):
        waiting.wait_for("standing_by")
        assert not waiting.notes("in_office")
        active.kill()
        took.append(next_version(waiting, time.monotonic()))
        served.append(waiting)
        active = waiting
        if len(took) < KILLS:
            waiting = federation.start_standby()

    record("seconds_after_kill", [round(seconds, 2) for seconds in took])
    assert max(took) <= AFTER_KILL_S
    made = [note["version"] for process in served for note in process.notes("round_finished")]
    assert made == sorted(set(made))
    check_log(federation, made[-1])


def test_a_frozen_coordinator_is_replaced_and_stands_by_when_it_wakes(
    make_federation: MakeFederation, record: Record
) -> None:
    heartbeat_s = min(DEFAULT_HEARTBEAT_S, max(1, round(FREEZE_S / 4)))
    federation = make_federation("Small", CLIENTS, **settings(broker_heartbeat_s=heartbeat_s))
    frozen = federation.start_coordinator()
    waiting = federation.start_standby()
    federation.start_workers(1)
    frozen.wait_for("round_finished", count=3)
    waiting.wait_for("standing_by")

    frozen.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    took = next_version(waiting, began)
    time.sleep(max(0.0, began + FREEZE_S - time.monotonic()))
    frozen.process.send_signal(signal.SIGCONT)
    frozen.wait_for("replaced")
    frozen.wait_for("standing_by")
    next_version(waiting, began)

    record("seconds_after_freeze", round(took, 2))
    assert took <= AFTER_FREEZE_S
    # What it did with what it was woken with counts nowhere, and its turn comes again.
    waiting.kill()
    frozen.wait_for("in_office", count=2)
    next_version(frozen, began)
    made = waiting.notes("round_finished")[-1]["version"]
    check_log(federation, made)
