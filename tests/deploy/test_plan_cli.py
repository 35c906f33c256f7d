"""The dry run: the coordinator's own plan, sizes as they really are on the wire, refusals as one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coordinator.dry_run import foresee
from deploy.cli import app
from deploy.federation_keys import make_federation_keys
from shared.errors import ComitiaError, PlanError, SettingsError
from shared.modellog.listed import encode_listed
from shared.plan import make_plan
from shared.wire.framing import split_batch
from shared.wire.group_messages import Words
from shared.wire.log_messages import ChangeEntry, SnapshotEntry
from shared.wire.messages import PIECE_BYTES_MAX, Offer
from tests.builders import LogBook, make_federation, tiny_plan
from tests.simulation.federation import FederationRun
from tests.tiny_workload import TinyWorkload

TINY = "tests.tiny_workload:TinyWorkload"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMITIA_WORKLOAD", TINY)


def run(*arguments: object) -> str:
    """Run `comitia plan`; returns what it printed, raises what it raised."""
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.output


def figures(*arguments: object) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(run("--check", "--json", *arguments))
    return printed


@pytest.fixture(autouse=True)
def groups_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITIA_GROUP_SIZE", "1")


def test_without_keys_a_number_of_clients_is_enough() -> None:
    text = run("--check", "--clients", 20)

    for expected in ("4 values federate", "20 of up to 1 members; 12 sums make a step", "100.0% with 2 attackers"):
        assert expected in text
    with pytest.raises(SettingsError, match="give --clients N"):
        run("--check")


def test_the_plan_is_the_one_that_the_coordinator_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = make_federation_keys(tmp_path / "keys", "ward", 7)
    monkeypatch.setenv("COMITIA_ROUND", '{"rounds": 4}')
    printed = make_plan(**json.loads(run("--federation-dir", keys.root)))

    assert (printed.federation, printed.federation_id) == ("ward", keys.directory.federation_id)
    assert (printed.round.rounds, printed.layout_digest) == (4, TinyWorkload().layout_digest)
    dry = figures("--federation-dir", keys.root)
    assert (dry["federation"], dry["clients"], dry["groups"], dry["quorum"]) == ("ward", 7, 7, 5)
    assert figures("--federation-dir", keys.root, "--clients", 30)["groups"] == 30


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("COMITIA_AGGREGATION", '{"trim": 12}', "need 25 clients"),
        ("COMITIA_AGGREGATION", '{"trim": 2, "quorum": 4}', "2·trim >= quorum"),
        ("COMITIA_AGGREGATION", '{"server_optimizer": {"name": "Sgd"}}', "server_optimizer"),
        ("COMITIA_GROUP_SIZE", "2", "group_size=2"),
        ("COMITIA_WORKLOAD", "nowhere:nothing", "nowhere"),
    ],
)
def test_what_the_coordinator_would_refuse_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ComitiaError, match=message) as refused:
        run("--check", "--clients", 20)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


def test_what_clients_are_to_measure_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    without = figures("--clients", 20)
    assert "clients measure nothing; steering watches the coordinator's held-out data" in run(
        "--check", "--clients", 20
    )
    monkeypatch.setenv("COMITIA_EVALUATION__CLIENT_SHARE", "0.15")
    monkeypatch.setenv("COMITIA_STEERING__WATCH", "clients")

    dry = figures("--clients", 20)
    assert (dry["validation_words"], dry["validation_records_min"]) == (12, 7)
    assert dry["update_bytes_up"] - without["update_bytes_up"] == 12 * 2
    assert dry["coordinator_memory_bytes"] - without["coordinator_memory_bytes"] == 4 * 4 + 20 * 24
    assert "each client of 7 or more records measures" in run("--check", "--clients", 20)


def test_json_without_check_is_refused() -> None:
    with pytest.raises(SettingsError, match="json"):
        run("--json", "--clients", 20)


@pytest.mark.parametrize("selection", ["random", "top_k"])
def test_the_bytes_are_those_of_a_real_run(selection: str) -> None:
    workload = TinyWorkload(features=4000)
    codec = {"selection": selection, "density": 0.1, "bits": 16, "clipping_norm": 20.0}
    federation = FederationRun(workload=workload, plan={"codec": codec})
    federation.run()
    foreseen = foresee(federation.plan, 4)

    sent = [(type(message), body) for body, message in _messages(federation) if isinstance(message, Offer | Words)]
    updates = len([kind for kind, _ in sent if kind is Offer])
    assert updates >= foreseen.rounds * 4
    assert sum(size for _, size in sent) / updates == pytest.approx(foreseen.update_bytes_up, rel=0.02)


def _messages(federation: FederationRun) -> list[tuple[int, Any]]:
    """Size of the frame with its length, and content, of everything that clients sent."""
    federation.from_workers()
    opener = federation.keys.opener()
    frames = [frame for _, body in federation.published for frame in split_batch(body)]
    return [(len(frame) + 4, opener.open(frame).message) for frame in frames]


@pytest.mark.parametrize("dimension", [50, 300_000, PIECE_BYTES_MAX // 2])
def test_entries_of_every_size_are_counted_exactly(dimension: int) -> None:
    federation = make_federation(3)
    plan = tiny_plan(dimension)
    book = LogBook(federation, plan)
    book.snapshot()
    snapshot_bytes = sum(map(len, book.stream))
    book.draw()
    before = sum(map(len, book.stream))
    book.change(np.zeros(dimension, np.float32), groups=(0,))
    foreseen = foresee(plan, 3)

    # The directory's size depends on the names in it.
    assert foreseen.snapshot_bytes_down == pytest.approx(snapshot_bytes, abs=64)
    assert foreseen.change_bytes_down == pytest.approx(sum(map(len, book.stream)) - before, abs=16)


def test_an_optimizer_with_state_makes_changes_dense_and_costs_memory() -> None:
    plain = foresee(tiny_plan(1000), 5)
    adam = foresee(tiny_plan(1000, aggregation={"trim": 0, "server_optimizer": {"name": "Adam", "options": {}}}), 5)

    assert adam.change_bytes_down - plain.change_bytes_down == pytest.approx(4 * 500, abs=16)
    # A gradient and two moments.
    assert adam.coordinator_memory_bytes - plain.coordinator_memory_bytes == 3 * 4 * 1000


def test_the_log_of_a_whole_run_is_foreseen() -> None:
    federation = FederationRun(workload=TinyWorkload(features=2000))
    federation.run()
    entries, _ = federation.read_log()
    foreseen = foresee(federation.plan, 4)

    written = sum(len(body) for kind, key, body in _published(federation) if key == federation.keys.names.log)
    assert written == pytest.approx(foreseen.run_bytes_log, rel=0.1)
    changes = sum(isinstance(entry, ChangeEntry) for entry in entries)
    snapshots = sum(isinstance(entry, SnapshotEntry) for entry in entries)
    assert changes == foreseen.rounds
    expected = changes * foreseen.change_bytes_down + snapshots * foreseen.snapshot_bytes_down
    assert foreseen.run_bytes_log == expected


def _published(federation: FederationRun) -> list[tuple[str, str, bytes]]:
    return [entry for entry in federation.coordinator_history if entry[0] == "publish"]  # type: ignore[misc]


def test_a_plan_without_a_draw_is_refused() -> None:
    with pytest.raises(PlanError, match="need 3 clients"):
        foresee(tiny_plan(aggregation={"trim": 1}), 2)


@pytest.mark.parametrize(("rate", "warned"), [(0.1, False), (0.12, True)])
def test_restricted_training_that_reaches_too_far_is_warned_about(
    rate: float, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = {"selection": "restricted", "density": 0.1}
    steps = {"optimizer": {"name": "SGD", "options": {"lr": rate}}, "batch_size": 16, "local_epochs": 2}
    plan = tiny_plan(1000, weight_records_max=32, codec=codec, training=steps)
    assert bool(foresee(plan, 5).warnings) is warned

    monkeypatch.setenv("COMITIA_CODEC", '{"selection": "restricted", "density": 0.5}')
    monkeypatch.setenv("COMITIA_TRAINING", json.dumps({"optimizer": {"name": "SGD", "options": {"lr": 100 * rate}}}))
    monkeypatch.setenv("COMITIA_WEIGHT_RECORDS_MAX", "16")
    assert "warning: restricted" in run("--check", "--clients", 5)


@pytest.mark.parametrize("clients", [3, 12])
def test_changes_of_top_k_list_positions_while_that_is_smaller(clients: int) -> None:
    plan = tiny_plan(50_000, codec={"selection": "top_k", "density": 0.1})
    book = LogBook(make_federation(3), plan)
    book.snapshot()
    book.draw(groups=clients)
    after = np.zeros(50_000, np.float32)
    after[: clients * 5_000] = 1.0
    body = encode_listed(book.reader.weights, after)
    change, _ = book.change_draft(after, groups=tuple(range(clients)))
    if body is not None:
        change = change.model_copy(update={"coordinates": "listed"})
    before = sum(map(len, book.stream))
    book.append(change, after if body is None else np.frombuffer(body, np.uint8))

    assert (body is None) == (clients == 12)
    assert foresee(plan, clients).change_bytes_down == pytest.approx(sum(map(len, book.stream)) - before, abs=16)
