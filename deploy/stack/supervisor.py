"""The background process that owns the local stack: it starts a broker, a coordinator and workers, and ends them.

It is started by `comitia up` with an `Order` on its standard input and the stack's lock among its descriptors, and runs
until it is told to stop, by a file (`Wanted.down`) or by SIGTERM. Everything it starts is leashed to it.

All workers are alike and share the clients out among themselves (`worker.seating`), so the supervisor only changes
their number: it starts some, or tells the newest to end. Nobody else is restarted.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

from deploy.brokers.broker import Broker, BrokerKind
from deploy.brokers.docker import start_container
from deploy.brokers.private_node import start_private_node
from deploy.leash import Leashed
from deploy.stack.files import BrokerChoice, Order, Phase, Present, StackFiles, Wanted, read_record, write_record
from deploy.stack.kept import Kept
from deploy.stack.lock import acquire
from shared.errors import ComitiaError
from worker.replicas import live_replicas

POLL_S = 0.1
COORDINATOR_GRACE_S = 20.0
COORDINATOR_READY = "in_office"
WORKER_READY = "worker_started"

# Signals go to the process that the leash started, not to the leash: so it tells its id, then becomes the command.
ANNOUNCE_AND_RUN = 'echo "{\\"event\\": \\"process_started\\", \\"pid\\": $$}"; exec "$@"'


class StackFailed(ComitiaError):
    """The stack could not be started; the message carries the last words of what failed."""

    exit_code = 1


class Supervisor:
    """The processes of one stack, and how they follow what is wanted."""

    def __init__(self, files: StackFiles, order: Order, broker: Broker, lock: int) -> None:
        """
        Args:
            files: the stack's directory.
            order: what to run.
            broker: the running broker.
            lock: a descriptor of the stack's lock, for the leashes to hold too.
        """
        self._files = files
        self._order = order
        self._broker = broker
        self._lock = lock
        self._phase: Phase = "starting"
        self._generation = 0
        self._workers: list[Kept] = []
        self._leaving: list[Kept] = []
        self._coordinator = self._keep(
            "coordinator", ["coordinator"], order.coordinator_environment, COORDINATOR_READY, COORDINATOR_GRACE_S
        )

    def run(self) -> None:
        """Run until `down` is wanted.

        Raises:
            StackFailed: the coordinator cannot work; the stack did not come up.
        """
        self._coordinator.start(time.monotonic())
        while not (wanted := read_record(self._files.wanted, Wanted) or Wanted()).down:
            self.step(wanted, time.monotonic())
            self._tell()
            time.sleep(POLL_S)

    def step(self, wanted: Wanted, now: float) -> None:
        """Go one step towards what is wanted."""
        self._coordinator.step(now)
        if self._phase == "starting":
            if self._coordinator.failed:
                raise StackFailed(f"the coordinator did not start: {self._coordinator.last_words}")
            if self._coordinator.state != "starting":
                self._phase = "up"
        for worker in [*self._leaving, *self._workers]:
            worker.step(now)
        self._leaving = [worker for worker in self._leaving if worker.state != "ended"]
        if wanted.generation != self._generation:
            self._generation = wanted.generation
            self._change_workers(wanted.workers, now)

    def stop(self) -> None:
        """End every process: workers first, since they may want to finish a group with the coordinator."""
        self._phase = "stopping"
        self._tell()
        workers = [*self._workers, *self._leaving]
        for worker in workers:
            worker.ask_to_stop()
        for worker in workers:
            worker.stop()
        self._coordinator.stop()

    def _change_workers(self, count: int, now: float) -> None:
        leaving, self._workers = self._workers[count:], self._workers[:count]
        for worker in leaving:
            worker.ask_to_stop()
        self._leaving += leaving
        taken = {worker.name for worker in [*self._workers, *self._leaving]}
        free = (name for number in itertools.count(1) if (name := f"worker-{number}") not in taken)
        for name in itertools.islice(free, count - len(self._workers)):
            worker = self._keep(name, ["worker", "run"], {}, WORKER_READY, self._order.worker_grace_s)
            worker.start(now)
            self._workers.append(worker)

    def _keep(
        self,
        name: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        ready_event: str,
        grace_s: float,
    ) -> Kept:
        log = self._files.log(name)
        command = ["/bin/sh", "-c", ANNOUNCE_AND_RUN, "sh", sys.executable, "-m", "deploy", *arguments]
        whole = os.environ | self._order.environment | {"COMITIA_BROKER_URLS": self._broker.url} | environment

        def start() -> Leashed:
            return Leashed(
                command, environment=whole, directory=Path.cwd(), log=log, grace_s=grace_s, keep_open=[self._lock]
            )

        return Kept(name, start, log, ready_event)

    def _tell(self) -> None:
        served: dict[int | None, tuple[str, ...]] = {
            one.pid: tuple(sorted(one.clients)) for one in live_replicas(self._files.state)
        }
        processes = [one.present() for one in (self._coordinator, *self._workers, *self._leaving)]
        present = Present(
            phase=self._phase,
            broker=self._broker.reason,
            generation=self._generation,
            processes=tuple(one.model_copy(update={"clients": served.get(one.pid, ())}) for one in processes),
        )
        if present != read_record(self._files.present, Present):
            write_record(self._files.present, present)


def start_broker(choice: BrokerChoice, directory: Path) -> Broker:
    """Start the broker that was chosen, or connect to it.

    Raises:
        BrokerUnavailable: it did not start.
    """
    match choice.kind:
        case BrokerKind.PRIVATE_NODE:
            broker = start_private_node(directory)
        case BrokerKind.DOCKER:
            broker = start_container(choice.source, directory)
        case _:
            broker = Broker(kind=BrokerKind.URL, url=choice.source, reason="the broker whose URL was set")
    return broker


def supervise(files: StackFiles, order: Order, lock: int) -> None:
    """Run a stack from its start to its end.

    Raises:
        ComitiaError: it did not come up; `present.json` says so too.
    """
    write_record(files.present, Present(phase="starting"))
    try:
        with ExitStack() as stack:
            broker = stack.enter_context(start_broker(order.broker, files.broker))
            supervisor = Supervisor(files, order, broker, lock)
            stack.callback(supervisor.stop)
            supervisor.run()
    except ComitiaError as error:
        write_record(files.present, Present(phase="failed", error=str(error)))
        raise
    files.present.unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """Supervise the stack in the directory `arguments[0]`, whose lock is the descriptor `arguments[1]`."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    files, lock = StackFiles(Path(arguments[0])), int(arguments[1])
    acquire(files.supervisor)
    try:
        supervise(files, Order.model_validate_json(sys.stdin.buffer.read()), lock)
    except ComitiaError as error:
        sys.stderr.write(f"comitia: {error}\n")
        return error.exit_code
    return 0


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    # Only once: what ends the processes must not be interrupted itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
