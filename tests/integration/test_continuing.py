"""A finished federation: its model can be exported, and it goes on from there when more rounds are asked for."""

from __future__ import annotations

import json
import subprocess

from safetensors import safe_open

from tests.integration.conftest import MakeFederation
from tests.integration.federation import COMMAND, LiveFederation, environment


def export(federation: LiveFederation) -> dict[str, str]:
    """The metadata of the model that `comitia export` writes."""
    out = federation.root / "export"
    variables = environment(
        broker_urls=federation.url, federation_dir=federation.keys.root, workload=federation.workload
    )
    subprocess.run([*COMMAND, "export", "--out", str(out)], env=variables, cwd=federation.root, check=True)
    assert json.loads((out / "plan.json").read_text())["federation"] == federation.name
    with safe_open(out / "model.safetensors", framework="pt") as stored:
        metadata: dict[str, str] = stored.metadata()
    return metadata


def test_a_finished_federation_is_exported_and_goes_on(make_federation: MakeFederation) -> None:
    federation = make_federation(
        "Small", 4, aggregation={"rule": "mean", "trim": 0}, round={"rounds": 2, "min_clients": 4}
    )
    first = federation.start_coordinator()
    federation.start_workers(2)
    assert first.wait() == 0, first.tail()
    (ended,) = first.notes("coordinator_stopped")
    exported = export(federation)
    assert (exported["model_version"], exported["weights_sha256"]) == ("2", ended["weights_sha256"])

    federation.settings = {**federation.settings, "round": {"rounds": 4, "min_clients": 4}}
    second = federation.start_coordinator()
    assert second.wait() == 0, second.tail()
    assert second.notes("in_office")[0]["version"] == 2
    (changed,) = second.notes("rounds_changed")
    assert (changed["before"], changed["rounds"]) == (2, 4)
    assert [note["version"] for note in second.notes("round_finished")] == [3, 4]
    assert export(federation)["model_version"] == "4"
