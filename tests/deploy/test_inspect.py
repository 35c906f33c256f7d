"""What operators see of a federation, and that looking changes nothing."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pika
import pytest
from click.testing import Result
from typer.testing import CliRunner

from coordinator.aggregator.steering import SteeringState
from coordinator.journal import JournalWriter
from coordinator.kept import Kept, RunMemory, SchedulerMemory
from deploy.inspect.cli import app
from deploy.inspect.dead import look, put_back
from deploy.inspect.draws import DrawnOffers
from deploy.inspect.log import LogInspection, LogRecord
from deploy.inspect.reading import Desk
from deploy.inspect.tables import log_line
from shared.crypto import merkle
from shared.crypto.draw import draw_order, group_leaf
from shared.crypto.signing import save_verifying_key
from shared.directory import DIRECTORY_FILE, ENROLMENT_PUBLIC_FILE, sign_directory
from shared.errors import BrokerUnavailable, SettingsError, StateError
from shared.inbox import Inbox
from shared.modellog.entries import SealedEntry
from shared.settings import ProcessSettings
from shared.transport.memory import MemoryBroker, MemoryTransport
from shared.transport.port import Delivery, Outcome, Sink, Transport, TransportEvent
from shared.transport.rabbitmq import BrokerSettings, RabbitMqTransport
from shared.wire.framing import pack_batches
from shared.wire.log_messages import Mark
from shared.wire.topology import dead_queue, federation_topology, groups_queue, journal_queue, log_queue
from tests.builders import (
    Federation,
    LogBook,
    make_delivery,
    make_federation,
    make_offer,
    make_status,
    signing_key,
    tiny_plan,
)
from tests.contracts.bench import Recorder
from tests.simulation.federation import FederationRun
from worker.away import take_out
from worker.memory import read_client
from worker.state import ClientState
from worker.storage import DirectoryStorage
from worker.stored_update import TaskId, UpdateMeta

FEDERATION = make_federation()
QUIET_S = 0.05
HEAD = bytes(range(32))


def values(number: float, dimension: int = 8) -> np.ndarray:
    return np.full(dimension, number, np.float32)


def history() -> LogBook:
    """Two versions, three void draws, another term."""
    book = LogBook(FEDERATION, tiny_plan(8))
    book.snapshot()
    book.draw(groups=3)
    book.change(values(1), groups=(0, 2))
    for _ in range(2):
        book.draw()
        book.void()
    book.term()
    book.step(values(2))
    book.draw()
    book.void()
    return book


def inspect(stream: list[bytes]) -> tuple[LogInspection, list[LogRecord]]:
    inspection = LogInspection(FEDERATION.opener(), FEDERATION.members())
    deliveries = [make_delivery(body, offset=offset) for offset, body in enumerate(stream)]
    return inspection, list(inspection.records(deliveries))


# ── the log ──


def test_every_entry_is_a_record_and_the_summary_is_the_readers_chain() -> None:
    book = history()
    book.write(FEDERATION.seal(Mark(session=b"m" * 16)))

    inspection, records = inspect(book.stream)
    outlook = inspection.outlook()

    kinds = ["snapshot", "draw", "change", "draw", "void", "draw", "void", "term", "draw", "change", "draw", "void"]
    assert [record.kind for record in records] == [*kinds, "mark"]
    assert {record.outcome for record in records[:-1]} == {"accepted"}
    assert [(record.version, record.term, record.groups) for record in records[:3]] == [
        (0, 1, None),
        (0, 1, 3),
        (1, 1, 2),
    ]
    assert [record.offset for record in records] == list(range(13))
    assert outlook["head"] == book.chain.head.hex() == records[-2].digest
    assert (outlook["version"], outlook["term"], outlook["attempt"]) == (2, 2, 1)
    assert outlook["weights_sha256"] == book.chain.weights_sha256.hex()
    assert outlook["void_draws"] == {"1": 2, "2": 1}
    assert (outlook["accepted"], outlook["skipped"], outlook["alarming"]) == (12, {}, 0)


def test_the_bytes_of_an_entry_include_its_pieces() -> None:
    book = LogBook(FEDERATION, tiny_plan(600_000, codec={"selection": "dense", "density": 1}))
    book.snapshot()
    book.draw()

    _, (snapshot, draw) = inspect(book.stream)

    # Each message of the stream is its frames, each behind four bytes of length.
    frames = 1 + 3 + 1 + 1  # the directory, the model, the snapshot, the draw
    assert snapshot.size > 2_400_000
    assert snapshot.size + draw.size + 4 * frames == sum(map(len, book.stream))


def test_repeats_and_entries_from_before_the_first_snapshot_are_no_alarm() -> None:
    book = history()
    retried = [*book.stream[:3], book.stream[2], *book.stream[3:]]

    inspection, records = inspect(retried)
    cut, _ = inspect(book.stream[1:])

    assert (records[3].outcome, records[3].kind, records[3].reason) == ("skipped", "change", "wrong_parent")
    assert inspection.outlook()["version"] == 2
    assert inspection.summary.alarming == 0
    assert cut.outlook()["head"] is None
    assert cut.summary.alarming == 0


def test_what_no_honest_coordinator_writes_is_an_alarm() -> None:
    book = history()
    wrong_version = book.seal(book.draw_draft().model_copy(update={"version": 7}))
    lying, _ = book.snapshot_draft()
    forged = bytearray(book.stream[0])
    forged[-1] ^= 1
    client_message = FEDERATION.seal_as("client-0", make_status())
    book.write(wrong_version.frame, *book.seal(lying, values(9)).frames(), client_message)

    inspection, records = inspect([*book.stream, bytes(forged), b"rubbish"])

    assert [(record.kind, record.reason) for record in records[-5:]] == [
        ("draw", "not_allowed"),
        ("snapshot", "wrong_size"),
        ("status", "unexpected_kind"),
        ("", "bad_signature"),
        ("", "malformed"),
    ]
    assert inspection.summary.alarming == 5


# ── draws ──


def read_journal(*frames: bytes, federation: Federation = FEDERATION) -> DrawnOffers:
    drawn = DrawnOffers(federation.opener())
    drawn.read(make_delivery(body, offset=offset) for offset, body in enumerate(pack_batches(frames)))
    return drawn


def record_of(draw: SealedEntry, *offers: bytes) -> list[bytes]:
    """The frames of a draw's record with these offers."""
    kept = Kept(SchedulerMemory((), offers, 30.0), RunMemory(SteeringState()), 0)
    record = JournalWriter(lambda _: kept, None, FEDERATION.seal).record(draw)
    assert record is not None
    return list(record.frames())


def test_every_draw_of_a_run_is_recomputed_from_the_offers_in_the_journal() -> None:
    run = FederationRun(clients=5, plan={"round": {"rounds": 3}})
    run.run()
    inbox = Inbox[TransportEvent]()
    desk = Desk(MemoryTransport(run.broker, inbox.put, name="inspect"), inbox)
    drawn = DrawnOffers(run.keys.opener())
    drawn.read(desk.read(journal_queue(run.keys.names, 0), prefetch=1000, start="first", quiet_s=QUIET_S))

    inspection = LogInspection(run.keys.opener(), run.keys.members(), drawn)
    stream = desk.read(log_queue(run.keys.names, 0), prefetch=1000, start="first", quiet_s=QUIET_S)
    records = list(inspection.records(stream))

    assert [record.draw for record in records if record.kind == "draw"] == ["recomputed"] * 3
    assert (inspection.outlook()["draws"], inspection.summary.alarming) == ({"recomputed": 3}, 0)


@pytest.mark.parametrize("lie", ["order", "offer", "twice"])
def test_a_draw_that_is_not_that_of_its_offers_is_an_alarm(lie: str) -> None:
    book = LogBook(FEDERATION, tiny_plan(8))
    book.snapshot()
    opener = FEDERATION.opener()
    frames = [FEDERATION.seal_as(f"client-{i}", make_offer(nonce=bytes([i]) * 16)) for i in range(3)]
    offers = [(opened.sender, opened.digest) for opened in map(opener.open, frames)]
    order = draw_order(book.chain.version_head, [digest for _, digest in offers])
    rosters = [[offers[place]] for place in order]
    if lie == "order":
        rosters.reverse()
    root = merkle.root([group_leaf(index, roster) for index, roster in enumerate(rosters)])
    draw = book.draw(groups=3, root=root)
    named = {"order": frames, "offer": [*frames[:2], FEDERATION.seal_as("client-2", make_offer(counter=2))]}
    drawn = read_journal(*record_of(draw, *named.get(lie, [*frames, frames[0]])))

    inspection = LogInspection(FEDERATION.opener(), FEDERATION.members(), drawn)
    records = list(inspection.records(make_delivery(body, offset=at) for at, body in enumerate(book.stream)))

    assert records[-1].draw == "differs"
    assert inspection.summary.alarming == 1
    assert "ANOTHER DRAW" in log_line(records[-1]).plain


@pytest.mark.parametrize("left", ["nothing", "pieces", "unverified"])
def test_a_draw_whose_offers_cannot_be_read_is_no_alarm(left: str) -> None:
    book = LogBook(FEDERATION, tiny_plan(8))
    book.snapshot()
    draw = book.draw()
    offer = FEDERATION.seal_as("client-0", make_offer())
    frames = record_of(draw, offer if left != "unverified" else offer[:-1] + b"?")
    drawn = read_journal(*{"nothing": [], "pieces": frames[:-1]}.get(left, frames))

    inspection = LogInspection(FEDERATION.opener(), FEDERATION.members(), drawn)
    records = list(inspection.records(make_delivery(body, offset=at) for at, body in enumerate(book.stream)))

    assert (records[-1].draw, inspection.summary.alarming) == ("no record", 0)


def test_a_version_whose_draws_are_void_again_and_again_is_an_alarm() -> None:
    book = history()
    for _ in range(2):
        book.draw()
        book.void()
    inspection, _ = inspect(book.stream)

    assert inspection.summary.often_void == [2]
    assert inspection.outlook()["void_draws"] == {"1": 2, "2": 3}


# ── dead letters ──


@dataclass
class Office:
    """A federation at the in-process broker, and a desk of the inspector."""

    broker: MemoryBroker
    desk: Desk
    other: Transport
    events: Recorder

    def bury(self, *bodies: bytes) -> None:
        """Publish group jobs, and refuse them."""
        queue = groups_queue(FEDERATION.names)
        for body in bodies:
            self.other.publish(FEDERATION.names.down, queue.name, body)
        self.other.consume(queue, prefetch=100)
        for delivery in self.events.wait_deliveries(queue, len(bodies)):
            self.other.settle(delivery, Outcome.DEAD_LETTER)
        self.other.cancel(queue.name)


@pytest.fixture
def office() -> Office:
    broker, inbox, events = MemoryBroker(), Inbox[TransportEvent](), Recorder()
    other = MemoryTransport(broker, events, name="other")
    other.declare(federation_topology(FEDERATION.names, FEDERATION.directory.active_clients(), 0))
    return Office(broker, Desk(MemoryTransport(broker, inbox.put, name="inspect"), inbox), other, events)


def batch(*frames: bytes) -> bytes:
    (body,) = pack_batches(frames)
    return body


def test_dead_letters_are_named_and_stay_in_their_order(office: Office) -> None:
    offer = FEDERATION.seal_as("client-0", make_offer())
    office.bury(b"rubbish", batch(offer, offer[:-1] + b"\0"))
    dead, opener = dead_queue(FEDERATION.names), FEDERATION.opener()

    first = look(office.desk, dead, opener, limit=10, quiet_s=QUIET_S)
    again = look(office.desk, dead, opener, limit=1, quiet_s=QUIET_S)

    groups = FEDERATION.names.groups
    assert [(letter.number, letter.queue, letter.reason) for letter in first] == [
        (1, groups, "rejected"),
        (2, groups, "rejected"),
    ]
    assert first[0].content == f"malformed: {b'rubbish'.hex(' ')}"
    assert first[1].content == "offer from client-0, bad_signature"
    assert first[1].size == 2 * (len(offer) + 4)
    assert again == first[:1]
    assert office.broker.depth(dead.name) == 2


def test_a_letter_that_is_put_back_leaves_the_dead_ones(office: Office) -> None:
    office.bury(b"first", b"second", b"third")
    dead, opener = dead_queue(FEDERATION.names), FEDERATION.opener()

    moved = put_back(office.desk, dead, opener, 2, quiet_s=QUIET_S)
    left = look(office.desk, dead, opener, limit=10, quiet_s=QUIET_S)
    office.other.consume(groups_queue(FEDERATION.names), prefetch=10)

    assert moved.number == 2
    assert [letter.content for letter in left] == [f"malformed: {body.hex(' ')}" for body in (b"first", b"third")]
    back = office.events.deliveries(groups_queue(FEDERATION.names))[3:]
    assert [(delivery.body, delivery.death) for delivery in back] == [(b"second", None)]


def test_a_letter_that_cannot_be_put_back_stays(office: Office) -> None:
    office.bury(b"only")
    office.other.publish(FEDERATION.names.dead_letters, "", b"nobody knows whence")
    dead, opener = dead_queue(FEDERATION.names), FEDERATION.opener()

    for number in (2, 3):
        with pytest.raises(SettingsError, match=f"{number}"):
            put_back(office.desk, dead, opener, number, quiet_s=QUIET_S)

    assert office.broker.depth(dead.name) == 2
    assert office.broker.depth(FEDERATION.names.groups) == 0


def test_a_queue_that_is_not_there_is_an_error(office: Office) -> None:
    elsewhere = dead_queue(make_federation(name="elsewhere").names)

    with pytest.raises(BrokerUnavailable, match=r"elsewhere\.dead"):
        look(office.desk, elsewhere, FEDERATION.opener(), limit=1, quiet_s=QUIET_S)


# ── a client ──


def meta(version: int) -> UpdateMeta:
    return UpdateMeta(task=TaskId(version, 0), trained_head=HEAD, num_examples=12, metrics={})


@pytest.fixture
def state(tmp_path: Path) -> Iterator[ClientState]:
    """A state directory that a worker holds: two spent updates and an unspent one."""
    opened = ClientState(DirectoryStorage(tmp_path / "client-1"), client="client-1", federation=uuid.UUID(int=7))
    for version in (1, 2):
        opened.spend(opened.save_update(values(version), meta(version)).update_id)
    opened.save_update(np.array([3, 4], np.float32), meta(4))
    yield opened
    opened.close()


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def test_a_clients_memory_is_read_while_its_worker_holds_it(state: ClientState, tmp_path: Path) -> None:
    before = contents(tmp_path / "client-1")

    memory = read_client(tmp_path / "client-1")

    assert (memory.client, memory.federation) == ("client-1", uuid.UUID(int=7))
    assert (memory.counter, memory.last_task) == (state.counter, TaskId(4, 0))
    assert memory.unspent is not None
    assert (memory.unspent.meta, memory.unspent_norm) == (meta(4), 5.0)
    assert [mark.version for mark in memory.spent] == [1, 2]
    assert contents(tmp_path / "client-1") == before


def test_a_torn_end_of_the_ledger_is_left_as_it_is(state: ClientState, tmp_path: Path) -> None:
    state.close()
    ledger = tmp_path / "client-1" / "ledger.log"
    ledger.write_bytes(ledger.read_bytes() + b"torn")

    assert len(read_client(tmp_path / "client-1").spent) == 2
    assert ledger.read_bytes().endswith(b"torn")


def test_what_is_no_state_directory_is_an_error_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no such"):
        read_client(tmp_path / "nobody")
    with pytest.raises(StateError, match=r"identity\.json"):
        read_client(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ── the commands ──


def write_federation(folder: Path, federation: Federation) -> Path:
    enrolment = signing_key(2)
    (folder / DIRECTORY_FILE).write_bytes(sign_directory(federation.directory, enrolment))
    save_verifying_key(folder / ENROLMENT_PUBLIC_FILE, enrolment.public)
    return folder


def run(*arguments: str, connect: Any = None) -> Result:
    return CliRunner().invoke(app, list(arguments), obj=connect, env={"COLUMNS": "200"})


def test_the_log_command_prints_json_and_warns_by_its_exit_code(office: Office, tmp_path: Path) -> None:
    folder = write_federation(tmp_path, FEDERATION)
    book = history()
    for body in book.stream:
        office.other.publish(FEDERATION.names.down, FEDERATION.names.log, body)

    def connect(_settings: ProcessSettings, sink: Sink, name: str) -> Transport:
        return MemoryTransport(office.broker, sink, name=name)

    office.other.publish(
        FEDERATION.names.down, FEDERATION.names.journal, batch(FEDERATION.seal(Mark(session=bytes(16))))
    )
    sound = run("log", "--json", "--federation-dir", str(folder), connect=connect)
    office.other.publish(FEDERATION.names.down, FEDERATION.names.log, b"rubbish")
    spoilt = run("log", "--federation-dir", str(folder), connect=connect)

    lines = [json.loads(line) for line in sound.stdout.splitlines()]
    assert sound.exit_code == 0
    assert [line["kind"] for line in lines[:2]] == ["snapshot", "draw"]
    assert (lines[0]["offset"], lines[0]["version"]) == (0, 0)
    assert lines[-1]["summary"]["head"] == book.chain.head.hex()
    assert spoilt.exit_code == 1
    assert book.chain.head.hex() in spoilt.stdout
    assert "skipped: malformed" in spoilt.stdout
    assert "5 no record" in spoilt.stdout


def test_the_log_of_a_federation_that_never_rests_is_read_to_where_it_was(office: Office, tmp_path: Path) -> None:
    names, another = FEDERATION.names, batch(FEDERATION.seal(Mark(session=bytes(16))))
    read = {names.log: 0, names.journal: 0}

    class Growing(MemoryTransport):
        """Whenever one message of a stream was read, the next one is in it."""

        def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
            super().settle(delivery, outcome)
            read[delivery.queue] += 1
            assert read[delivery.queue] < 50, "reads on and on"
            office.other.publish(names.down, delivery.queue, another)

    for body in history().stream:
        office.other.publish(names.down, names.log, body)
    office.other.publish(names.down, names.journal, another)
    folder = write_federation(tmp_path, FEDERATION)
    result = run(
        "log",
        "--json",
        "--federation-dir",
        str(folder),
        connect=lambda _settings, sink, name: Growing(office.broker, sink, name=name),
    )

    assert result.exit_code == 0, result.output
    kinds = [json.loads(line).get("kind") for line in result.stdout.splitlines()]
    assert kinds[0] == "snapshot"
    assert kinds[-3:-1] == ["void", "mark"], "up to the first message that came after the reader"


def test_the_client_command_prints_what_is_remembered(state: ClientState, tmp_path: Path) -> None:
    result = run("client", "client-1", "--state-dir", str(tmp_path))

    assert result.exit_code == 0
    for words in (
        "client-1",
        "version 4: 12 examples, 2 values, norm 5",
        "spent updates",
        "number 3, trained on version 2",
    ):
        assert words in result.stdout


def test_the_client_command_says_who_is_away(state: ClientState, tmp_path: Path) -> None:
    assert "away" not in run("client", "client-1", "--state-dir", str(tmp_path)).stdout
    list(take_out(tmp_path, ["client-1"], 0.0))

    assert "client-1 (away; `comitia worker rejoin`" in run("client", "client-1", "--state-dir", str(tmp_path)).stdout


def test_every_command_at_a_real_broker(rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(name=f"inspect-{uuid.uuid4().hex[:8]}")
    names, folder = federation.names, str(write_federation(tmp_path, federation))
    plan = tiny_plan(8, federation=federation.directory.federation)
    book = LogBook(federation, plan)
    book.snapshot()
    book.step(values(1))
    monkeypatch.setenv("COMITIA_BROKER_URLS", rabbitmq_url)
    events = Recorder()
    transport = RabbitMqTransport(BrokerSettings(urls=(rabbitmq_url,)), events, name="test")
    with contextlib.ExitStack() as end:
        end.callback(remove, rabbitmq_url, federation)
        end.callback(transport.close)
        transport.declare(federation_topology(names, federation.directory.active_clients(), 0))
        for body in book.stream:
            transport.publish(names.down, names.log, body)
        for body in (b"one", b"two"):
            last = transport.publish(names.down, names.groups, body)
        events.wait_settled(last)
        transport.consume(groups_queue(names), prefetch=2)
        for delivery in events.wait_deliveries(groups_queue(names), 2):
            transport.settle(delivery, Outcome.DEAD_LETTER)
        transport.consume(dead_queue(names), prefetch=2)
        events.wait_deliveries(dead_queue(names), 2)
        transport.close()

        log = run("log", "--json", "--federation-dir", folder)
        letters = [run("dead", "--federation-dir", folder) for _ in range(2)]
        moved = run("dead", "--put-back", "2", "--federation-dir", folder)
        left = run("dead", "--federation-dir", folder)
        depths = run("queues", "--federation-dir", folder)

    assert [result.exit_code for result in (log, *letters, moved, left, depths)] == [0] * 6
    assert json.loads(log.stdout.splitlines()[-1])["summary"]["weights_sha256"] == book.chain.weights_sha256.hex()
    assert letters[0].stdout == letters[1].stdout
    assert [line.split()[:4] for line in letters[0].stdout.splitlines()[1:]] == [
        [str(number), names.groups, "rejected", "3"] for number in (1, 2)
    ]
    assert b"one".hex(" ") in left.stdout
    assert b"two".hex(" ") not in left.stdout
    rows = {line.split()[0]: line.split()[2:] for line in depths.stdout.splitlines()[1:]}
    assert (rows[names.groups], rows[names.dead], rows[names.log]) == (["1", "0"], ["1", "0"], ["-", "-"])
    assert len(rows) == 6 + len(federation.clients)


def remove(url: str, federation: Federation) -> None:
    """Leave nothing at the broker."""
    topology = federation_topology(federation.names, federation.directory.active_clients(), 0)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for queue in topology.queues:
            channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            channel.exchange_delete(exchange.name)
