"""A cluster of three nodes loses one, which everybody was connected to, in the middle of a round."""

from __future__ import annotations

import time
from pathlib import Path

from shared.wire.log_messages import ChangeEntry
from tests.containers import BrokerCluster
from tests.integration.conftest import Record
from tests.integration.federation import LiveFederation, wait_until

CLIENTS = 8
ROUNDS = 10
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
        "round": {"rounds": ROUNDS, "min_clients": CLIENTS},
    }
    federation = LiveFederation(tmp_path, cluster.urls, "tests.integration.workloads:Small", CLIENTS, settings)
    try:
        coordinator = federation.start_coordinator()
        worker = federation.start_worker(*federation.clients)
        coordinator.wait_for("round_finished", count=3)
        time.sleep(INTO_A_ROUND_S)
        cluster.kill(0)
        killed_at = time.monotonic()
        before = len(coordinator.notes("round_finished"))
        wait_until(lambda: len(coordinator.notes("round_finished")) > before, "the next version")
        record("seconds_to_next_version", round(time.monotonic() - killed_at, 2))
        assert coordinator.wait() == 0, coordinator.tail()

        assert before < ROUNDS
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
