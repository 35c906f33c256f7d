"""What `comitia definitions` prints for a broker's operator."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from deploy.cli import app
from deploy.federation_keys import enroll_clients, init_keys


def test_every_client_has_a_queue_and_every_site_its_own_user(tmp_path: Path) -> None:
    keys = init_keys(tmp_path / "federation", "ward")
    keys = enroll_clients(keys, "clinic-a", ["ann", "bob"], broker_user="alice")
    enroll_clients(keys, "clinic-b", ["cay"])

    order = ["definitions", "--federation-dir", str(tmp_path / "federation")]
    # A default would be wrong for every model, and found out only when the coordinator declares its log.
    assert CliRunner().invoke(app, order).exit_code == 2
    result = CliRunner().invoke(app, [*order, "--model-parameters", "1000"])

    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert {"ward.client.ann", "ward.client.bob", "ward.client.cay", "ward.log"} <= {
        q["name"] for q in printed["queues"]
    }
    assert {granted["user"] for granted in printed["permissions"]} == {"coordinator", "alice", "clinic-b"}
    assert {granted["user"] for granted in printed["topic_permissions"]} == {"alice", "clinic-b"}
