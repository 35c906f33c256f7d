"""A coordinator that is killed, and its successor: over a real RabbitMQ nothing is lost, forked or drawn again."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.integration.conftest import MakeFederation
from tests.integration.federation import COMMAND, LiveFederation, environment

CLIENTS = 4
ROUNDS = 4


def inspect_log(federation: LiveFederation) -> list[dict[str, Any]]:
    """Every entry of the log as `comitia inspect` sees it, and the summary; it finds nothing wrong."""
    variables = environment(
        broker_urls=federation.url, federation_dir=federation.keys.root, workload=federation.workload
    )
    command = [*COMMAND, "inspect", "log", "--json"]
    done = subprocess.run(command, env=variables, cwd=federation.root, check=True, capture_output=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_coordinator_killed_in_mid_draw_is_replaced_and_the_draw_goes_on(make_federation: MakeFederation) -> None:
    federation = make_federation(
        "Small",
        CLIENTS,
        roles=["scheduler", "aggregator"],
        aggregation={"rule": "mean", "trim": 0, "server_optimizer": {"name": "Adam", "options": {"lr": 0.01}}},
        round={"rounds": ROUNDS, "min_clients": CLIENTS},
        log_level="debug",
    )
    first = federation.start_coordinator()
    federation.start_workers(2)
    # No stage is there yet: the draw stays open.
    first.wait_for("draw_made")
    first.kill()

    second = federation.start_coordinator()
    second.wait_for("draw_resumed", version=0)
    federation.start_stage()
    second.wait_for("round_finished")
    second.kill()
    third = federation.start_coordinator()

    assert third.wait() == 0, third.tail()
    assert not third.notes("draw_void")
    *entries, summary = inspect_log(federation)
    accepted = [entry for entry in entries if entry["outcome"] == "accepted"]
    assert [entry["version"] for entry in accepted if entry["kind"] == "change"] == list(range(1, ROUNDS + 1))
    assert [entry["version"] for entry in accepted if entry["kind"] == "draw"] == list(range(ROUNDS))
    assert {entry["groups"] for entry in accepted if entry["kind"] in ("draw", "change")} == {CLIENTS}
    assert summary["summary"]["draws"] == {"recomputed": ROUNDS}
    assert (summary["summary"]["version"], summary["summary"]["term"]) == (ROUNDS, 3)
