"""Nodes of a RabbitMQ of our own, one or a cluster, each of which may be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deploy.brokers.handshake import await_broker
from deploy.brokers.private_node import HOST, READY_S, STOP_S, USER, configure, find_programs, free_ports
from deploy.brokers.private_node import node_environment as environment_of
from deploy.leash import Leashed
from tests.integration.federation import wait_until

PASSWORD = "of-this-test-alone"
CLUSTER = "cluster_partition_handling = pause_minority\ncluster_formation.peer_discovery_backend = classic_config\n"


class BrokerNodes:
    """`count` nodes (numbered from 0) and their epmd. They keep their ports and data over restarts."""

    def __init__(self, root: Path, count: int = 1) -> None:
        """
        Raises:
            BrokerUnavailable: RabbitMQ is not installed.
        """
        self._programs = find_programs()
        self._root = root
        epmd_port, *ports = free_ports(1 + 2 * count)
        self._ports = ports[:count]
        (root / ".erlang.cookie").write_text("cookieofthistest")
        (root / ".erlang.cookie").chmod(0o600)
        names = [f"node-{number}@localhost" for number in range(count)]
        peers = "".join(f"cluster_formation.classic_config.nodes.{n + 1} = {name}\n" for n, name in enumerate(names))
        self._environments = []
        for number, name in enumerate(names):
            directory = self._directory(number)
            directory.mkdir()
            configure(directory, PASSWORD, CLUSTER + peers if count > 1 else "")
            environment = environment_of(directory, ports[number], ports[count + number], epmd_port, name)
            # Nodes of one cluster have one cookie.
            self._environments.append(environment | {"HOME": str(root)})
        self._epmd = self._leash(str(self._programs.epmd), 0, root / "epmd.out", 1.0)
        self._servers: dict[int, Leashed] = {}

    @property
    def urls(self) -> str:
        """The AMQP URLs of all nodes, separated by spaces, as the settings take them."""
        return " ".join(f"amqp://{USER}:{PASSWORD}@{HOST}:{port}/%2F" for port in self._ports)

    def start(self, number: int = 0) -> None:
        """Start a node; does not wait until it is ready."""
        (self._directory(number) / "pid").unlink(missing_ok=True)
        log = self._directory(number) / "server.out"
        self._servers[number] = self._leash(str(self._programs.server), number, log, STOP_S)

    def await_ready(self, number: int = 0) -> None:
        """Wait until a node accepts connections."""
        server = self._servers[number]
        await_broker(HOST, self._ports[number], timeout_s=READY_S, alive=lambda: server.alive)

    def await_cluster(self) -> None:
        """Wait until every node runs as a member: a queue's replicas are chosen among those when it is declared."""
        command = [str(self._programs.ctl), "--node", "node-0@localhost", "await_online_nodes", str(len(self._ports))]
        subprocess.run(
            [*command, "--timeout", str(int(READY_S))],
            env=self._environments[0],
            cwd=self._root,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def send(self, number: int, wanted: signal.Signals) -> None:
        """Send a signal to a node: SIGKILL, SIGSTOP, SIGCONT. Returns after SIGKILL when the node is gone."""
        pid = wait_until(lambda: self._pid(number), "the node's process id")
        os.kill(pid, wanted)
        if wanted is signal.SIGKILL:
            wait_until(lambda: not self._servers[number].alive, "the end of the node")

    def alive(self, number: int) -> bool:
        """Whether a node runs, be it frozen."""
        return self._servers[number].alive

    def close(self) -> None:
        """End everything."""
        for number, server in self._servers.items():
            if server.alive:
                with contextlib.suppress(ProcessLookupError):
                    self.send(number, signal.SIGKILL)
            server.stop()
        self._epmd.stop()

    def _pid(self, number: int) -> int:
        file = self._directory(number) / "pid"
        return int(file.read_text().strip() or 0) if file.exists() else 0

    def _directory(self, number: int) -> Path:
        return self._root / f"node-{number}"

    def _leash(self, program: str, number: int, log: Path, grace_s: float) -> Leashed:
        return Leashed(
            [program], environment=self._environments[number], directory=self._root, log=log, grace_s=grace_s
        )


@contextlib.contextmanager
def broker_nodes(root: Path, count: int = 1) -> Iterator[BrokerNodes]:
    """Nodes that accept connections."""
    nodes = BrokerNodes(root, count)
    try:
        for number in range(count):
            nodes.start(number)
        for number in range(count):
            nodes.await_ready(number)
        if count > 1:
            nodes.await_cluster()
        yield nodes
    finally:
        nodes.close()
