"""Who may be killed: coordinators, stages, workers and the broker. Each is started again, as a supervisor would."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.chaos.broker_node import BrokerNode
from tests.integration.federation import LiveFederation, LoggingProcess

CLIENTS = 8
HEARTBEAT_S = 2
# A broker that is killed, and killed again while it starts, may be away for long.
CONNECTION = {"broker_heartbeat_s": HEARTBEAT_S, "broker_start_timeout_s": 180}
END_S = 40.0

RECORD_PRIVACY = {"level": "record", "noise_multiplier": 1.0, "delta": 1e-4, "nominal_records": 180}


class Part(Protocol):
    """One process in play."""

    kind: str

    def start(self) -> None:
        """Start it (again)."""

    def signal(self, wanted: signal.Signals) -> None:
        """Send SIGKILL, SIGTERM, SIGSTOP or SIGCONT; after the first two it has ended."""

    def alive(self) -> bool:
        """Whether it runs, be it frozen."""

    def at_work(self) -> bool:
        """Whether it has come far enough to have something to lose."""


@dataclass
class ProcessPart:
    """A process of Comitia."""

    kind: str
    launch: Callable[[], LoggingProcess]
    process: LoggingProcess | None = None

    def start(self) -> None:
        """See `Part`."""
        self.process = self.launch()

    def signal(self, wanted: signal.Signals) -> None:
        """See `Part`."""
        assert self.process is not None
        self.process.process.send_signal(wanted)
        if wanted in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait(END_S)

    def alive(self) -> bool:
        """See `Part`."""
        return self.process is not None and self.process.process.poll() is None

    def at_work(self) -> bool:
        """See `Part`."""
        return self.process is not None and bool(self.process.notes("connected"))


@dataclass
class BrokerPart:
    """The only node of the broker."""

    node: BrokerNode
    kind: str = "broker"

    def start(self) -> None:
        """See `Part`."""
        self.node.start()

    def signal(self, wanted: signal.Signals) -> None:
        """See `Part`."""
        self.node.send(wanted)

    def alive(self) -> bool:
        """See `Part`."""
        return self.node.alive

    def at_work(self) -> bool:
        """See `Part`."""
        return True


def settings(rounds: int, privacy: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a federation in secure groups of four, two of which are drawn, and whose sums are made by stages."""
    return {
        "roles": ["scheduler", "aggregator"],
        **CONNECTION,
        "group_size": 4,
        "max_colluders": 1,
        "weight_records_max": 400,
        "workload_options": {"clients": CLIENTS, "partition": "iid"},
        "aggregation": {"rule": "mean", "trim": 0},
        "round": {
            "rounds": rounds,
            "min_clients": CLIENTS,
            "round_deadline_s": 10,
            "group_step_s": 4,
            "sums_deadline_s": 15,
            "status_interval_s": 2,
        },
        **({} if privacy is None else {"privacy": dict(privacy)}),
    }


@dataclass(frozen=True)
class Size:
    """How many processes there are of each kind."""

    coordinators: int = 2
    stages: int = 2
    workers: int = 3


@dataclass
class Cast:
    """All parts of one federation."""

    federation: LiveFederation
    size: Size = field(default_factory=Size)
    parts: list[Part] = field(default_factory=list)

    def start(self, node: BrokerNode, declared: Callable[[], None]) -> None:
        """Start everybody; the broker is there already. `declared` is called when the federation's exchanges exist."""
        federation, clients, size = self.federation, self.federation.clients, self.size
        shares = [clients[number :: size.workers] for number in range(size.workers)]
        leading = ProcessPart("coordinator", federation.start_standby)
        leading.start()
        assert leading.process is not None
        leading.process.wait_for("in_office")
        declared()
        others: list[Part] = [
            *(ProcessPart("coordinator", federation.start_standby) for _ in range(size.coordinators - 1)),
            *(ProcessPart("stage", self._start_stage) for _ in range(size.stages)),
            *(ProcessPart("worker", self._starts_worker(share)) for share in shares),
        ]
        for part in others:
            part.start()
        self.parts = [leading, *others, BrokerPart(node)]

    def _start_stage(self) -> LoggingProcess:
        return self.federation.start_stage(**CONNECTION)

    def _starts_worker(self, share: tuple[str, ...]) -> Callable[[], LoggingProcess]:
        return lambda: self.federation.start_worker(*share, **CONNECTION)

    @property
    def versions(self) -> int:
        """The newest version that any coordinator has noted as finished."""
        notes = [
            note["version"]
            for process in self.federation.processes
            if process.name.startswith("coordinator")
            for note in process.notes("round_finished")
        ]
        return max(notes, default=0)


def wait_for_versions(cast: Cast, count: int, timeout_s: float) -> float:
    """Seconds until there are `count` more versions.

    Raises:
        TimeoutError: they did not come.
    """
    began, before = time.monotonic(), cast.versions
    while cast.versions < before + count:
        if time.monotonic() > began + timeout_s:
            raise TimeoutError(f"{count} versions after {before} did not come within {timeout_s:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - began


def ledgers(root: Path, clients: tuple[str, ...]) -> dict[str, bytes]:
    """Each client's ledger as it is on the disk now; none yet is empty."""
    files = {client: root / "state" / client / "ledger.log" for client in clients}
    return {client: file.read_bytes() if file.exists() else b"" for client, file in files.items()}
