"""How does any user get a RabbitMQ node of their own, next to whatever else runs on the machine?

Everything the node has lives in one directory: data, logs, Erlang cookie, password. It listens on 127.0.0.1 alone, on
ports that were free, with an epmd (Erlang's port mapper) of its own. Started again in the same directory, it finds its
queues again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.brokers.broker import Broker, BrokerKind
from deploy.brokers.handshake import await_broker
from deploy.leash import Leashed
from shared.errors import BrokerUnavailable
from shared.wire.topology import UNSETTLED_MS

HOST = "127.0.0.1"
PORTS = range(20_000, 32_768)
"""Linux hands out ports from 32768 on, other systems from 49152 on, where nobody has changed that."""

NODE = "comitia@localhost"
USER = "comitia"
# Debian's /usr/sbin/rabbitmq-server insists on the user rabbitmq; the script behind it runs as anybody.
DEBIAN_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# Four to ten seconds are usual, a machine under full load has been seen to need over thirty.
READY_S = 120.0
STOP_S = 30.0
CTL_S = 90.0
CONFIGURATION = """\
default_user = {user}
default_pass = {password}
heartbeat = 10
consumer_timeout = {unsettled_ms}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The programs a node consists of."""

    server: Path
    ctl: Path
    epmd: Path


def find_programs() -> Programs:
    """Find an installed RabbitMQ.

    Raises:
        BrokerUnavailable: there is none, or its parts are not where they belong.
    """
    on_path = shutil.which("rabbitmq-server")
    server = DEBIAN_SERVER if DEBIAN_SERVER.exists() else Path(on_path).resolve() if on_path else None
    if server is None:
        raise BrokerUnavailable("rabbitmq-server is not installed")
    ctl = server.with_name("rabbitmqctl")
    epmd = shutil.which("epmd")
    if not ctl.exists() or epmd is None:
        raise BrokerUnavailable(f"{server} was found, but not rabbitmqctl beside it or epmd on the PATH")
    return Programs(server=server, ctl=ctl, epmd=Path(epmd))


class PrivateNode:
    """A node and its epmd, in one directory."""

    def __init__(self, programs: Programs, directory: Path, environment: dict[str, str]) -> None:
        self._programs = programs
        self._directory = directory
        self._environment = environment
        self._children: list[Leashed] = []

    @property
    def alive(self) -> bool:
        """Whether the node and its epmd run."""
        return all(child.alive for child in self._children)

    def start(self, lock: int) -> None:
        """Start epmd and the node, which keep the lock's descriptor open; does not wait until they are ready."""
        for command, grace_s in ((self._programs.epmd, 1.0), (self._programs.server, STOP_S)):
            self._children.append(
                Leashed(
                    [str(command)],
                    environment=self._environment,
                    directory=self._directory,
                    log=self._directory / f"{command.name}.out",
                    grace_s=grace_s,
                    keep_open=[lock],
                )
            )

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on the node; see `deploy.brokers.broker.Control`."""
        try:
            done = subprocess.run(
                [str(self._programs.ctl), *arguments],
                env=self._environment,
                cwd=self._directory,
                capture_output=True,
                text=True,
                timeout=CTL_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BrokerUnavailable(f"rabbitmqctl {arguments[0]} took longer than {CTL_S:.0f} s") from error
        if done.returncode != 0:
            raise BrokerUnavailable(f"rabbitmqctl {arguments[0]} failed: {(done.stderr or done.stdout)[-500:].strip()}")
        return done.stdout

    def stop(self) -> None:
        """Stop the node, then its epmd."""
        while self._children:
            self._children.pop().stop()


def start_private_node(directory: Path, *, ready_s: float = READY_S) -> Broker:
    """Start a node in `directory` (made if missing) and wait until it accepts connections.

    Raises:
        BrokerUnavailable: RabbitMQ is not installed, another process runs a node in this directory, or the node did
            not come up within `ready_s`; what it printed stays in the directory.
    """
    programs = find_programs()
    directory = directory.resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with _locked(directory) as lock:
            return _start(programs, directory, lock, ready_s)
    except BrokerUnavailable as error:
        raise BrokerUnavailable(f"a private node in {directory} did not start: {error}") from error


def _start(programs: Programs, directory: Path, lock: int, ready_s: float) -> Broker:
    password = _secret(directory / "password")
    _secret(directory / ".erlang.cookie")
    port, distribution_port, epmd_port = free_ports(3)
    configure(directory, password)
    node = PrivateNode(programs, directory, node_environment(directory, port, distribution_port, epmd_port))
    try:
        node.start(lock)
        version = await_broker(HOST, port, timeout_s=ready_s, alive=lambda: node.alive)
    except BaseException:
        node.stop()
        raise
    return Broker(
        kind=BrokerKind.PRIVATE_NODE,
        url=f"amqp://{USER}:{password}@{HOST}:{port}/%2F",
        reason=f"private RabbitMQ {version} node in {directory}",
        version=version,
        control=node,
    )


def configure(directory: Path, password: str) -> None:
    """Write a node's configuration: one user with this password, no plugins."""
    lines = CONFIGURATION.format(user=USER, password=password, unsettled_ms=UNSETTLED_MS)
    _write_private(directory / "rabbitmq.conf", lines)
    (directory / "enabled_plugins").write_text("[].\n")


def node_environment(directory: Path, port: int, distribution_port: int, epmd_port: int) -> dict[str, str]:
    """What the node, its epmd and rabbitmqctl have to agree on; foreign RabbitMQ settings must not leak in."""
    loopback_only = "-kernel inet_dist_use_interface {127,0,0,1}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
    return inherited | {
        "HOME": str(directory),
        "LC_ALL": "C.UTF-8",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": HOST,
        "RABBITMQ_NODENAME": NODE,
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "no-such-file"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback_only} -start_epmd false",
        "RABBITMQ_CTL_ERL_ARGS": f"{loopback_only} -start_epmd false",
    }


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Yield a lock on the directory; it is held for as long as anybody keeps the descriptor open."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError as error:
        raise BrokerUnavailable("another process runs a node there") from error
    finally:
        os.close(descriptor)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of this machine's loopback that nobody listens on now.

    They lie below those that the system hands out, so no socket is given one before the node listens, or while it is
    down and will come back.

    Raises:
        BrokerUnavailable: there are not as many.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind((HOST, port))
                found.append(port)
            if len(found) == count:
                return tuple(found)
    raise BrokerUnavailable(f"there are no {count} free ports between {PORTS.start} and {PORTS.stop}")


def _secret(path: Path) -> str:
    """The secret in a file. The node's data depends on it, so it is made once and kept for the next start."""
    if not path.exists():
        _write_private(path, secrets.token_hex(16))
    return path.read_text().strip()


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
