"""What does the local stack keep on disk, and how do commands and supervisor talk through it?

::

    DIR/                .comitia/stack
      lock              held for as long as any process of the stack lives
      supervisor        held by the supervisor, and says which process that is
      wanted.json       what the last command asked for     (commands write, the supervisor reads)
      present.json      what there is                       (the supervisor writes, commands read)
      logs/             of this start; logs.old/ of the one before
      origin.json       what the federation was made with
      federation/       its keys
      state/  output/   the clients' state directories; the coordinator's models
      broker/           the private node, with the model log

Everything from `origin.json` on outlives `down` and belongs together: clients remember what they have done for this
federation, whose history is in this broker.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.brokers.broker import BrokerKind

Phase = Literal["starting", "up", "stopping", "failed"]
ProcessState = Literal["starting", "running", "restarting", "stopping", "ended"]


class Record(BaseModel):
    """What can be written to a file or a pipe as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokerChoice(Record):
    """A broker that is to be used. `source` is its URL or its container's image; empty for a private node."""

    kind: BrokerKind
    source: str = Field(default="", repr=False)


class Order(Record):
    """What a supervisor is started with; given on its standard input, since it may hold a password.

    `environment` is for all processes, `coordinator_environment` for the coordinator besides; `worker_grace_s` is how
    long a worker may take to end.
    """

    broker: BrokerChoice = Field(repr=False)
    environment: dict[str, str]
    coordinator_environment: dict[str, str]
    worker_grace_s: float


class Wanted(Record):
    """What a command asks for. A new `generation` makes the supervisor look at the number of workers."""

    generation: int = 0
    workers: int = 0
    down: bool = False


class ProcessPresent(Record):
    """One process as it is. `pid` is None before it has told it; `last_words` explain a failure.

    `clients`: whom it serves at the moment.
    """

    name: str
    state: ProcessState
    pid: int | None = None
    exit_code: int | None = None
    clients: tuple[str, ...] = ()
    last_words: str = ""


class Present(Record):
    """What there is. `generation` is the one whose workers have been started, and others told to end."""

    phase: Phase
    broker: str = ""
    generation: int = -1
    processes: tuple[ProcessPresent, ...] = ()
    error: str = ""


class Origin(Record):
    """What a federation was made with, and how far it is to go.

    `broker` says where its model log is; a container takes it along.
    """

    broker_kind: BrokerKind
    broker: str
    federation: str
    clients: int
    rounds: int | None


R = TypeVar("R", bound=Record)


class StackFiles:
    """The files of one stack."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "lock"
        self.supervisor = root / "supervisor"
        self.wanted = root / "wanted.json"
        self.present = root / "present.json"
        self.logs = root / "logs"
        self.origin = root / "origin.json"
        self.federation = root / "federation"
        self.state = root / "state"
        self.output = root / "output"
        self.broker = root / "broker"

    def log(self, process: str) -> Path:
        """Where a process writes its log lines."""
        return self.logs / f"{process}.log"

    def make(self) -> None:
        """Make the directory; it is nobody else's business."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self) -> None:
        """Forget what the last start wanted, was and logged; its logs are kept once more, as `logs.old`."""
        self.wanted.unlink(missing_ok=True)
        self.present.unlink(missing_ok=True)
        old = self.root / "logs.old"
        if self.logs.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.logs.rename(old)
        self.logs.mkdir(mode=0o700)

    def forget_federation(self) -> None:
        """Remove the federation with all it has learnt, its broker's data included."""
        self.origin.unlink(missing_ok=True)
        for directory in (self.federation, self.state, self.output, self.broker):
            if directory.exists():
                shutil.rmtree(directory)


def read_record(path: Path, kind: type[R]) -> R | None:
    """The record in a file; None if there is none, or none of this version's."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_record(path: Path, record: Record) -> None:
    """Write a record in one step: a reader finds the old one or the new one."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    aside.write_text(record.model_dump_json(indent=1))
    aside.replace(path)
