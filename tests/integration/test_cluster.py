"""A cluster of three nodes loses one, which everybody was connected to, in the middle of a round."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from shared.wire.log_messages import ChangeEntry
from tests.containers import BrokerCluster
from tests.integration.conftest import Record
from tests.integration.federation import LiveFederation

CLIENTS = 8
ROUNDS = 30
PATIENT = {"round_deadline_s": 120, "group_step_s": 60, "sums_deadline_s": 300}
INTO_A_ROUND_S = 0.05


def test_a_cluster_that_loses_a_node_in_mid_round_loses_nothing(
    cluster: BrokerCluster, tmp_path: Path, record: Record
) -> None:
    settings = {
        "group_size": 4,
        "max_colluders": 1,
        "workload_options": {"dimension": 20_000},
        "aggregation": {"rule": "mean", "trim": 0},
        "codec": {"selection": "dense", "density": 1.0, "bits": 16},
        # On a busy machine another leader may be long in coming; who is given up for that would be missing below.
        "round": {"rounds": ROUNDS, "min_clients": CLIENTS, **PATIENT},
    }
    federation = LiveFederation(tmp_path, cluster.urls, "tests.integration.workloads:Small", CLIENTS, settings)
    try:
        coordinator = federation.start_coordinator()
        worker = federation.start_worker(*federation.clients)
        coordinator.wait_for("round_finished", count=3)
        time.sleep(INTO_A_ROUND_S)
        cluster.kill(0)
        assert coordinator.wait() == 0, coordinator.tail()

        # How long Docker takes for that is its affair: it came in mid-run if rounds end before the loss and after it.
        heard = [note for note in coordinator.notes() if note["event"] in ("round_finished", "disconnected")]
        lost_at = [note["event"] for note in heard].index("disconnected")
        assert 0 < lost_at < len(heard) - 1
        lost, after = (datetime.fromisoformat(note["timestamp"]) for note in heard[lost_at : lost_at + 2])
        record("seconds_to_next_version", round((after - lost).total_seconds(), 2))
        assert coordinator.notes("connected")
        assert worker.notes("connected")
        counted = [(note["version"], note["clients_counted"]) for note in coordinator.notes("round_finished")]
        assert counted == [(version, CLIENTS) for version in range(1, ROUNDS + 1)]
        assert not coordinator.notes("draw_void")
        worker.kill()
        changes = [entry.version for entry in federation.read_log()[1] if isinstance(entry, ChangeEntry)]
        assert changes == list(range(1, ROUNDS + 1))
    finally:
        federation.end()
