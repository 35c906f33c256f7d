"""A RabbitMQ node of our own, which may be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from deploy.brokers.handshake import await_broker
from deploy.brokers.private_node import (
    HOST,
    READY_S,
    STOP_S,
    USER,
    configure,
    find_programs,
    free_ports,
    node_environment,
)
from deploy.leash import Leashed
from tests.integration.federation import wait_until

PASSWORD = "of-this-test-alone"


class BrokerNode:
    """A node and its epmd. It keeps its ports and data over restarts."""

    def __init__(self, root: Path) -> None:
        """
        Raises:
            BrokerUnavailable: RabbitMQ is not installed.
        """
        programs = find_programs()
        self._root = root
        self._server_program = str(programs.server)
        self._port, distribution_port, epmd_port = free_ports(3)
        configure(root, PASSWORD)
        self._environment = node_environment(root, self._port, distribution_port, epmd_port)
        self._epmd = self._leash(str(programs.epmd), "epmd.out", 1.0)
        self._server: Leashed | None = None

    @property
    def url(self) -> str:
        """The AMQP URL."""
        return f"amqp://{USER}:{PASSWORD}@{HOST}:{self._port}/%2F"

    @property
    def alive(self) -> bool:
        """Whether the node runs, be it frozen."""
        return self._server is not None and self._server.alive

    def start(self) -> None:
        """Start the node and wait until it accepts connections."""
        (self._root / "pid").unlink(missing_ok=True)
        self._server = self._leash(self._server_program, "server.out", STOP_S)
        await_broker(HOST, self._port, timeout_s=READY_S, alive=lambda: self.alive)

    def send(self, wanted: signal.Signals) -> None:
        """Send a signal to the node: SIGKILL, SIGSTOP, SIGCONT. Returns after SIGKILL when the node is gone."""
        pid = wait_until(self._pid, "the node's process id")
        os.kill(pid, wanted)
        if wanted is signal.SIGKILL:
            wait_until(lambda: not self.alive, "the end of the node")

    def close(self) -> None:
        """End everything."""
        if self._server is not None:
            if self.alive:
                with contextlib.suppress(ProcessLookupError):
                    self.send(signal.SIGKILL)
            self._server.stop()
        self._epmd.stop()

    def _pid(self) -> int:
        file = self._root / "pid"
        return int(file.read_text().strip() or 0) if file.exists() else 0

    def _leash(self, program: str, log: str, grace_s: float) -> Leashed:
        return Leashed(
            [program], environment=self._environment, directory=self._root, log=self._root / log, grace_s=grace_s
        )


@contextlib.contextmanager
def broker_node(root: Path) -> Iterator[BrokerNode]:
    """A node that accepts connections; `root` is an empty directory of its own."""
    node = BrokerNode(root)
    try:
        node.start()
        yield node
    finally:
        node.close()
