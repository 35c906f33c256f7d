"""A federation of real processes for one test: its keys, its coordinator, its workers, and what they log."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import psutil

from deploy.federation_keys import FederationKeys, make_federation_keys
from deploy.inspect.reading import Desk
from shared.crypto.signing import VerificationCache
from shared.inbox import Inbox
from shared.incoming import keys_of
from shared.membership import load_membership
from shared.modellog.reader import Accepted, LogReader
from shared.transport.broker_settings import BrokerSettings
from shared.transport.port import TransportEvent
from shared.transport.rabbitmq import RabbitMqTransport
from shared.wire.framing import Opener
from shared.wire.log_messages import Entry
from shared.wire.topology import Names, federation_topology, log_queue
from tests.integration.workloads import GATE_VARIABLE

ROOT = Path(__file__).parents[2]
WAIT_S = 150.0
POLL_S = 0.02

COMMAND = (sys.executable, "-m", "deploy")


def environment(**settings: Any) -> dict[str, str]:
    """The environment of a process: ours without Comitia's settings, the given ones instead (dicts as JSON)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COMITIA_")}
    given = {
        f"COMITIA_{name}".upper(): json.dumps(value) if isinstance(value, dict | list) else str(value)
        for name, value in settings.items()
    }
    return inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | given


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s} s")
        time.sleep(POLL_S)
    return value


@dataclass
class LoggingProcess:
    """One process of a federation, whose JSON log lines go to a file."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def notes(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it has noted so far, of one kind or of all."""
        found = []
        for line in self.log.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                note = json.loads(line)
                if event is None or note.get("event") == event:
                    found.append(note)
        return found

    def wait_for(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait until there are `count` notes of this kind with these fields."""

        def there() -> list[dict[str, Any]] | None:
            ended = self.process.poll()
            notes = [note for note in self.notes(event) if all(note[name] == fields[name] for name in fields)]
            if len(notes) >= count:
                return notes
            if ended is not None:
                raise AssertionError(f"{self.name} ended with {ended} before {count} x {event}:\n{self.tail()}")
            return None

        notes: list[dict[str, Any]] = wait_until(there, f"{self.name}: {count} x {event}")
        return notes

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(timeout_s)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass
class LiveFederation:
    """Starts processes on one machine, with settings of the test's choice. `close` ends them and cleans the broker.

    `url` may be several, separated by spaces.
    """

    root: Path
    url: str
    workload: str
    client_count: int
    settings: Mapping[str, Any]
    name: str = field(default_factory=lambda: f"e2e-{secrets.token_hex(4)}")
    processes: list[LoggingProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys: FederationKeys = make_federation_keys(self.root / "keys", self.name, self.client_count)
        self.names = Names(self.name)
        self.gate = self.root / "gate"

    @property
    def clients(self) -> tuple[str, ...]:
        """All enrolled clients."""
        return self.keys.clients

    def start_coordinator(self) -> LoggingProcess:
        """Start the coordinator and wait until it is in office."""
        coordinator = self.start_standby("coordinator")
        coordinator.wait_for("in_office")
        return coordinator

    def start_standby(self, name: str = "") -> LoggingProcess:
        """Start a coordinator that may have to wait for the office."""
        name = name or f"coordinator-{len(self.processes)}"
        return self._start(name, ["coordinator"], **{"group_size": 1, **self.settings})

    def start_stage(self, **settings: Any) -> LoggingProcess:
        """Start a process that does nothing but summing."""
        arguments = ["coordinator", "--roles", "summing"]
        return self._start(f"stage-{len(self.processes)}", arguments, log_level="debug", **settings)

    def start_worker(self, *clients: str, gated: bool = True, **settings: Any) -> LoggingProcess:
        """Start a worker process for these clients; one that is not gated passes the gate of `Gated` at any time."""
        name = f"worker-{len(self.processes)}"
        policy = {"allow_groups_of_one": True}
        return self._start(
            name, ["worker", "run"], gated=gated, clients=list(clients), **{"policy": policy, **settings}
        )

    def start_workers(self, count: int) -> list[LoggingProcess]:
        """Start `count` worker processes that share out all clients."""
        return [self.start_worker(*self.clients[number::count]) for number in range(count)]

    def open_gate(self) -> None:
        """Let the `Gated` workload go on."""
        self.gate.touch()

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of our own at the broker."""
        with pika.BlockingConnection([pika.URLParameters(url) for url in self.url.split()]) as connection:
            yield connection.channel()

    def read_log(self) -> tuple[LogReader, list[Entry]]:
        """A new reader of the whole log, when nobody writes it, and the entries that it accepted."""
        inbox: Inbox[TransportEvent] = Inbox()
        members = load_membership(self.keys.root)
        opener = Opener(members.directory.federation_id, keys_of(members), VerificationCache())
        transport = RabbitMqTransport(BrokerSettings(urls=tuple(self.url.split())), inbox.put, name="test")
        reader = LogReader(opener, members)
        entries: list[Entry] = []
        with contextlib.closing(transport):
            for delivery in Desk(transport, inbox).read(log_queue(self.names, 0), prefetch=64, start="first"):
                assert delivery.offset is not None
                events = reader.feed(delivery.offset, delivery.body)
                entries += [event.entry for event in events if isinstance(event, Accepted)]
                transport.settle(delivery)
        return reader, entries

    def end(self) -> None:
        """End all processes; for a broker that goes with them."""
        for process in self.processes:
            process.kill()

    def close(self) -> None:
        """End all processes, remove the federation from the broker."""
        self.end()
        topology = federation_topology(self.names, self.clients, 0)
        with self.channel() as channel:
            for queue in topology.queues:
                channel.queue_delete(queue.name)
            for exchange in topology.exchanges:
                channel.exchange_delete(exchange.name)

    def _start(self, name: str, arguments: list[str], gated: bool = True, **settings: Any) -> LoggingProcess:
        log = self.root / f"{name}.log"
        variables = environment(
            broker_urls=self.url,
            federation_dir=self.keys.root,
            state_dir=self.root / "state",
            output_dir=self.root / "output",
            workload=self.workload,
            log_format="json",
            **settings,
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                env=variables | {GATE_VARIABLE: str(self.gate if gated else self.root)},
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(LoggingProcess(name, log, process))
        return self.processes[-1]


def descendants(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """All processes that one has started, and theirs."""
    return psutil.Process(process.pid).children(recursive=True)
