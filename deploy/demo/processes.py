"""A federation of real processes on one machine: one coordinator, some workers, all ended with us."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coordinator.presets import with_preset
from coordinator.settings import plan_of
from deploy.brokers.broker import Broker
from deploy.demo.options import DemoOptions, Share, settings_from
from deploy.demo.simulated_keys import make_simulated_keys
from deploy.federation_keys import FederationKeys, make_federation_keys
from deploy.leash import Leashed
from deploy.log_lines import parse_note
from shared.errors import ComitiaError
from shared.settings import ProcessSettings
from shared.workloads.loading import load_workload

POLL_S = 0.1
GRACE_S = 10.0
LAST_LINES = 5
OPERATOR_FILE = "operator.toml"
BROKER_SETTINGS = "COMITIA_BROKER_"
"""What is set of these holds for the processes too: certificates, for example."""

USERS_MISTAKE = ComitiaError.exit_code


class ProcessFailed(ComitiaError):
    """A process of the federation ended that should not have; its last words are in the message."""

    exit_code = 1


class UsersMistake(ComitiaError):
    """A process of the federation could not begin; its message is the reason and the remedy."""


@dataclass
class Processes:
    """The processes of one run. Each writes JSON lines to a file of its own in `directory`.

    As a context manager: on leaving, every process is asked to end, and is gone when `__exit__` returns. If this
    process dies, they end too.
    """

    options: DemoOptions
    broker: Broker
    directory: Path
    attackers: tuple[str, ...] = ()
    _coordinator: Leashed | None = None
    _workers: dict[str, Leashed] = field(default_factory=dict)
    _doomed: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        """Make keys and state directories, start everything."""
        self.directory.mkdir(parents=True)
        # Runs that start in the same second may share a broker.
        federation = f"demo-{self.directory.name}-{secrets.token_hex(3)}"
        keys = make_federation_keys(self.directory / "federation", federation, self.options.clients)
        self._write_operator_settings()
        environment = self._environment(keys)
        plan = self.options.coordinator_environment(keys.clients)
        self._coordinator = self._start("coordinator", ["coordinator"], environment | plan)
        self.attackers = keys.clients[: self.options.attackers]
        for number, share in enumerate(self.options.shares(keys.clients), start=1):
            name = f"worker-{number}"
            if share.doomed_in is not None:
                self._doomed.add(name)
            chosen = {"COMITIA_CLIENTS": json.dumps(share.clients), "COMITIA_WORKLOAD": self.options.workload}
            chosen["COMITIA_POLICY"] = self.options.policy.model_dump_json()
            self._workers[name] = self._start(name, self._command(share), environment | chosen)
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
        yield {"event": "attackers_chosen", "clients": list(self.attackers)}
        with self._log("coordinator").open("rb") as lines:
            rest = b""
            while True:
                alive = self._coordinator.alive
                rest += lines.read()
                *whole, rest = rest.split(b"\n")
                for line in whole:
                    note = parse_note(line)
                    if note is not None:
                        yield note
                if not alive:
                    break
                if not whole:
                    self._check_workers()
                    yield None
                    time.sleep(POLL_S)
        self._check("coordinator", self._coordinator)

    def worker_notes(self) -> Iterator[dict[str, Any]]:
        """All log lines of all workers so far."""
        for name in self._workers:
            for line in self._log(name).read_bytes().splitlines():
                note = parse_note(line)
                if note is not None:
                    yield note

    @property
    def operator_options(self) -> str:
        """What `comitia pause`, `resume` and `stop` need at another terminal, as options."""
        return shlex.join(
            ["--config", str(self.directory / OPERATOR_FILE), "--federation-dir", str(self.directory / "federation")]
        )

    def _write_operator_settings(self) -> None:
        """The broker's settings for another terminal, in a file of our own: its URL may hold a password."""
        given = ProcessSettings.load().model_dump(mode="json", exclude_none=True)
        settings = {name: value for name, value in given.items() if name.startswith("broker_tls_")}
        lines = [
            f"{name} = {json.dumps(value)}\n" for name, value in (settings | {"broker_urls": self.broker.url}).items()
        ]
        with os.fdopen(os.open(self.directory / OPERATOR_FILE, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.writelines(lines)

    def _command(self, share: Share) -> list[str]:
        if share.doomed_in is not None:
            return ["doomed-worker", "--phase", share.doomed_in, "--version", str(self.options.drop_version)]
        return ["attacking-worker", "--attack", self.options.attack_or_default] if share.attacks else ["worker", "run"]

    def _check_workers(self) -> None:
        for name, process in self._workers.items():
            if name not in self._doomed and not process.alive:
                self._check(name, process)
                raise ProcessFailed(f"{name} ended before the run did")

    def _check(self, name: str, process: Leashed) -> None:
        if process.exit_code == USERS_MISTAKE:
            # The process has put it in one line.
            raise UsersMistake(self._last_lines(name, 1).removeprefix("comitia: "))
        if process.exit_code != 0:
            raise ProcessFailed(f"{name} ended with code {process.exit_code}:\n{self._last_lines(name, LAST_LINES)}")

    def _start(self, name: str, arguments: list[str], environment: dict[str, str]) -> Leashed:
        command = [sys.executable, "-m", "deploy", *arguments]
        return Leashed(command, environment=environment, directory=Path.cwd(), log=self._log(name), grace_s=GRACE_S)

    def _environment(self, keys: FederationKeys) -> dict[str, str]:
        ours = {name for name in os.environ if name.startswith("COMITIA_") and not name.startswith(BROKER_SETTINGS)}
        inherited = {name: value for name, value in os.environ.items() if name not in ours}
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

    def _last_lines(self, name: str, count: int) -> str:
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-count:])


def refuse_unsound(options: DemoOptions) -> None:
    """Refuse a plan that cannot hold before anything is started, and not in the log of a process.

    Raises:
        ComitiaError: what the coordinator would say.
    """
    keys = make_simulated_keys("demo", options.clients, secrets.token_bytes)
    settings = with_preset(settings_from(options.coordinator_environment(keys.clients)))
    workload = load_workload(settings.workload, settings.workload_options)
    plan_of(settings, keys.directory, workload).check_clients(options.clients)


def keep_recent(directory: Path, count: int) -> None:
    """Remove all but the newest `count` runs in `directory`."""
    runs = sorted((path for path in directory.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in runs[:-count] if count else runs:
        shutil.rmtree(path)
