"""Exporting a federation's model: read to the end by somebody who may only listen, verified, and written as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from coordinator.output import save_model
from deploy.cli import app
from deploy.federation_keys import load_keys, make_federation_keys
from deploy.log_export import LoggedModel, NoModel, agreed_workload, read_model, write_export
from shared.codec.flatten import layout_of
from shared.crypto.signing import load_signing_key
from shared.errors import PlanError
from shared.inbox import Inbox
from shared.plan import Plan, make_plan
from shared.transport.broker_settings import BrokerSettings
from shared.transport.memory import MemoryBroker, MemoryTransport
from shared.transport.port import Delivery, Outcome, Topology, Transport
from shared.transport.rabbitmq import RabbitMqTransport
from shared.wire.topology import federation_exchanges, log_queue
from tests.builders import Federation, LogBook, make_federation, tiny_plan
from tests.tiny_workload import TinyWorkload

WORKLOAD = "tests.tiny_workload:TinyWorkload"
QUIET_S = 0.02


def plan_for(workload: TinyWorkload, **fields: Any) -> Plan:
    return tiny_plan(workload.dimension, workload=WORKLOAD, layout_digest=workload.layout_digest, **fields)


class Hub:
    """A broker with the log of a federation."""

    def __init__(self) -> None:
        self.federation: Federation = make_federation(2)
        self.book = LogBook(self.federation, plan_for(TinyWorkload()))
        self.names = self.federation.names
        self.broker = MemoryBroker()
        self.writer = MemoryTransport(self.broker, lambda _: None, name="coordinator")
        self.seats: list[MemoryTransport] = []

    def declare(self) -> None:
        self.writer.declare(Topology(exchanges=federation_exchanges(self.names), queues=(log_queue(self.names, 0),)))

    def publish(self, *bodies: bytes) -> None:
        for body in bodies:
            self.writer.publish(self.names.down, self.names.log, body)

    def connect(self, sink: Any, name: str) -> MemoryTransport:
        self.seats.append(MemoryTransport(self.broker, sink, name=name))
        return self.seats[-1]

    def read(self, connect: Callable[[Any, str], Transport] | None = None, quiet_s: float = QUIET_S) -> LoggedModel:
        return read_model(self.federation.members(), connect or self.connect, quiet_s=quiet_s, patience_s=0.1)


def values(number: float) -> np.ndarray:
    return np.full(4, number, np.float32)


@pytest.fixture
def hub() -> Hub:
    hub = Hub()
    hub.declare()
    hub.book.snapshot()
    for number in (1, 2, 3):
        hub.book.step(values(number))
    return hub


def test_the_newest_version_is_read_and_nothing_is_written(hub: Hub) -> None:
    hub.publish(*hub.book.stream)
    before = hub.broker.published_bytes
    found = hub.read()

    assert found.chain == hub.book.chain
    assert (found.chain.version, found.plan) == (3, hub.book.plan)
    np.testing.assert_array_equal(found.weights, hub.book.reader.weights)
    assert hub.broker.published_bytes == before
    assert all(seat.seat.closed for seat in hub.seats)


def test_what_does_not_verify_changes_nothing(hub: Hub) -> None:
    hub.publish(*hub.book.stream)
    expected = hub.book.chain
    stranger = Federation(hub.federation.directory, hub.federation.clients["client-0"], {})
    forged = LogBook(stranger, hub.book.plan)
    forged.reader = hub.book.reader
    forged.draw()
    hub.publish(*forged.stream, b"not a batch")

    assert forged.stream
    assert hub.read().chain == expected


def test_a_busy_log_is_read_up_to_what_was_written_since(hub: Hub) -> None:
    hub.publish(*hub.book.stream)

    class Busy(MemoryTransport):
        def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
            super().settle(delivery, outcome)
            hub.publish(b"something new")

    seats: list[MemoryTransport] = []

    def connect(sink: Any, name: str) -> MemoryTransport:
        seats.append(Busy(hub.broker, sink, name=name))
        return seats[-1]

    assert hub.read(connect, quiet_s=60.0).chain == hub.book.chain


@pytest.mark.parametrize("declared", [False, True])
def test_without_a_model_there_is_one_line(declared: bool) -> None:
    hub = Hub()
    if declared:
        hub.declare()

    with pytest.raises(NoModel, match=r"holds no model|cannot be read") as refused:
        hub.read()
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_code_is_imported_only_under_a_name_that_was_agreed_to() -> None:
    plan = plan_for(TinyWorkload())

    assert isinstance(agreed_workload(plan, WORKLOAD), TinyWorkload)
    with pytest.raises(PlanError, match="give --workload"):
        agreed_workload(plan, "digits")
    with pytest.raises(PlanError, match="other parameters"):
        agreed_workload(plan.model_copy(update={"layout_digest": "0" * 64}), WORKLOAD)


def test_the_files_hold_the_model_the_plan_and_where_they_come_from(hub: Hub, tmp_path: Path) -> None:
    hub.publish(*hub.book.stream)
    found = hub.read()
    model, plan = write_export(found, TinyWorkload(), tmp_path / "out")
    write_export(found, TinyWorkload(), tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "plan.json"]
    stored = load_file(model)
    np.testing.assert_array_equal(torch.cat([stored["weight"].flatten(), stored["bias"]]).numpy(), found.weights)
    with safe_open(model, framework="pt") as opened:
        assert opened.metadata() == {
            "federation": "test",
            "federation_id": str(hub.federation.directory.federation_id),
            "plan_sha256": hub.book.plan.digest().hex(),
            "model_version": "3",
            "weights_sha256": hub.book.chain.weights_sha256.hex(),
            "log_head": hub.book.chain.head.hex(),
        }
    assert make_plan(**json.loads(plan.read_text())) == hub.book.plan


class Normalized(TinyWorkload):
    """A model with running statistics."""

    def model(self) -> nn.Module:
        return nn.Sequential(super().model(), nn.BatchNorm1d(1))


def test_buffers_that_federated_are_read_from_the_log(hub: Hub, tmp_path: Path) -> None:
    hub.publish(*hub.book.stream)
    reference = f"{__name__}:Normalized"
    layout = layout_of(Normalized().model(), float_buffers=True)
    codec = {"selection": "dense", "density": 1.0}
    digest = layout.digest().hex()
    plan = tiny_plan(layout.dimension, workload=reference, layout_digest=digest, codec=codec, float_buffers=True)
    with pytest.raises(PlanError, match="other parameters"):
        agreed_workload(plan.model_copy(update={"float_buffers": False}), reference)

    found = replace(hub.read(), plan=plan, weights=np.arange(8, dtype=np.float32))
    stored = load_file(write_export(found, agreed_workload(plan, reference), tmp_path / "out")[0])

    assert stored["1.bias"].tolist() == [5.0]
    assert stored["1.running_mean"].tolist() == [6.0]
    assert stored["1.running_var"].tolist() == [7.0]


def test_buffers_and_tied_parameters_are_in_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    save_model(model, tmp_path / "model.safetensors", {})

    again = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_the_command_reads_from_rabbitmq(rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_federation_keys(tmp_path / "keys", "export-test", 2)
    keys = load_keys(tmp_path / "keys")
    federation = Federation(
        keys.directory, load_signing_key(keys.coordinator_key_file), {}, load_signing_key(keys.enrolment_key_file)
    )
    ours = {"federation": "export-test", "federation_id": keys.directory.federation_id}
    book = LogBook(federation, plan_for(TinyWorkload(), **ours))
    book.snapshot()
    book.step(values(7))
    writer = RabbitMqTransport(BrokerSettings(urls=(rabbitmq_url,)), Inbox[Any]().put, name="writer")
    monkeypatch.setenv("COMITIA_BROKER_URLS", rabbitmq_url)
    arguments = ["export", "--federation-dir", str(keys.root), "--out", str(tmp_path / "out"), "--workload", WORKLOAD]
    try:
        missing = CliRunner().invoke(app, arguments)
        assert isinstance(missing.exception, NoModel)
        queue = log_queue(federation.names, 0)
        writer.declare(Topology(exchanges=federation_exchanges(federation.names), queues=(queue,)))
        for body in book.stream:
            writer.publish(federation.names.down, federation.names.log, body)
    finally:
        writer.close()

    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert f"weights sha256 {book.chain.weights_sha256.hex()}, log head {book.chain.head.hex()}" in done.output
    assert "version 1" in done.output
