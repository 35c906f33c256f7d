"""A federation of real processes on one machine: one coordinator, some workers, all ended with us."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.brokers.broker import Broker
from deploy.demo.options import DemoOptions
from deploy.demo.simulation import shares
from deploy.federation_keys import FederationKeys, make_federation_keys
from deploy.leash import Leashed
from shared.errors import ComitiaError

POLL_S = 0.1
GRACE_S = 10.0
LAST_LINES = 5


class ProcessFailed(ComitiaError):
    """A process of the federation ended that should not have; its last words are in the message."""

    exit_code = 1


@dataclass
class Processes:
    """The processes of one run. Each writes JSON lines to a file of its own in `directory`.

    As a context manager: on leaving, every process is asked to end, and is gone when `__exit__` returns. If this
    process dies, they end too.
    """

    options: DemoOptions
    broker: Broker
    directory: Path
    _coordinator: Leashed | None = None
    _workers: dict[str, Leashed] = field(default_factory=dict)
    _doomed: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        """Make keys and state directories, start everything."""
        self.directory.mkdir(parents=True)
        # Runs that start in the same second may share a broker.
        federation = f"demo-{self.directory.name}-{secrets.token_hex(3)}"
        keys = make_federation_keys(self.directory / "federation", federation, self.options.clients)
        environment = self._environment(keys)
        plan = self.options.coordinator_environment(keys.clients)
        self._coordinator = self._start("coordinator", ["coordinator"], environment | plan)
        for number, (clients, phase) in enumerate(shares(self.options, keys.clients), start=1):
            name = f"worker-{number}"
            arguments = ["worker", "run"]
            if phase is not None:
                arguments = ["doomed-worker", "--phase", phase, "--version", str(self.options.drop_version)]
                self._doomed.add(name)
            chosen = {"COMITIA_CLIENTS": json.dumps(clients), "COMITIA_WORKLOAD": self.options.workload}
            self._workers[name] = self._start(name, arguments, environment | chosen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [*self._workers.values(), *([self._coordinator] if self._coordinator else [])]
        for process in running:
            process.ask_to_stop()
        for process in running:
            process.stop()

    def notes(self) -> Iterator[dict[str, Any] | None]:
        """The coordinator's log lines as they come, None when there is nothing new; ends with the coordinator.

        Raises:
            ProcessFailed: the coordinator or a worker ended by itself before the run was over.
        """
        assert self._coordinator is not None
        with self._log("coordinator").open("rb") as lines:
            rest = b""
            while True:
                alive = self._coordinator.alive
                rest += lines.read()
                *whole, rest = rest.split(b"\n")
                for line in whole:
                    note = _parse(line)
                    if note is not None:
                        yield note
                if not alive:
                    break
                if not whole:
                    self._check_workers()
                    yield None
                    time.sleep(POLL_S)
        if self._coordinator.exit_code != 0:
            raise ProcessFailed(
                f"the coordinator ended with code {self._coordinator.exit_code}:\n{self._tail('coordinator')}"
            )

    def worker_notes(self) -> Iterator[dict[str, Any]]:
        """All log lines of all workers so far."""
        for name in self._workers:
            for line in self._log(name).read_bytes().splitlines():
                note = _parse(line)
                if note is not None:
                    yield note

    def _check_workers(self) -> None:
        for name, process in self._workers.items():
            if name not in self._doomed and not process.alive:
                raise ProcessFailed(f"{name} ended with code {process.exit_code}:\n{self._tail(name)}")

    def _start(self, name: str, arguments: list[str], environment: dict[str, str]) -> Leashed:
        command = [sys.executable, "-m", "deploy.cli", *arguments]
        return Leashed(command, environment=environment, directory=Path.cwd(), log=self._log(name), grace_s=GRACE_S)

    def _environment(self, keys: FederationKeys) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COMITIA_")}
        return inherited | {
            "COMITIA_BROKER_URLS": self.broker.url,
            "COMITIA_FEDERATION_DIR": str(keys.root),
            "COMITIA_STATE_DIR": str(self.directory / "state"),
            "COMITIA_OUTPUT_DIR": str(self.directory / "output"),
            "COMITIA_LOG_FORMAT": "json",
            "COMITIA_SEED": str(self.options.seed),
            # Two cores and many processes: threads that spin while they wait would only heat each other.
            "OMP_NUM_THREADS": "1",
        }

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _tail(self, name: str) -> str:
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-LAST_LINES:])


def keep_recent(directory: Path, count: int) -> None:
    """Remove all but the newest `count` runs in `directory`."""
    runs = sorted((path for path in directory.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in runs[:-count] if count else runs:
        shutil.rmtree(path)


def _parse(line: bytes) -> dict[str, Any] | None:
    """A structured log line; None for anything else that a process printed."""
    try:
        note = json.loads(line)
    except ValueError:
        return None
    return note if isinstance(note, dict) and "event" in note else None
