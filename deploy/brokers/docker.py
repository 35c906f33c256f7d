"""How does a RabbitMQ in a Docker container come up, and how is it sure to go away again?

The command line is used rather than a client library: it is there wherever Docker is, and knows the user's contexts.
The container is tied to this process (`deploy.leash`) and carries a label with its owner, so that one which
survived even that is removed by the next start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from deploy.brokers.broker import Broker, BrokerKind
from deploy.brokers.handshake import await_broker
from deploy.leash import Leashed
from shared.errors import BrokerUnavailable

LOCAL_IMAGES = ("rabbitmq:4-local", "rabbitmq:4-management", "rabbitmq:4")
PULLED_IMAGE = "rabbitmq:4"
OWNER_LABEL = "org.comitia.owner"
HOST = "127.0.0.1"
USER = "comitia"
ANSWER_S = 3.0
PULL_S = 60.0
READY_S = 60.0
COMMAND_S = 60.0
STOP_S = 15.0


class Container:
    """A running container and the leash that ties it to this process."""

    def __init__(self, container_id: str, leashed: Leashed) -> None:
        self._id = container_id
        self._leashed = leashed
        self._stopped = False

    @property
    def alive(self) -> bool:
        """Whether the container runs."""
        return self._leashed.alive

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` in the container; see `deploy.brokers.broker.Control`."""
        return _docker("exec", self._id, "rabbitmqctl", *arguments, timeout_s=90.0)

    def stop(self) -> None:
        """Remove the container, with its data."""
        if self._stopped:
            return
        self._stopped = True
        # Failure means that it is gone already, or that the daemon is: the next start looks for the label.
        with contextlib.suppress(BrokerUnavailable):
            _docker("rm", "--force", "--volumes", self._id)
        self._leashed.stop()


def find_image(say: Callable[[str], None]) -> str:
    """Return a RabbitMQ 4 image: a local one, or else one that can be pulled in time.

    Args:
        say: told before something slow is tried.

    Raises:
        BrokerUnavailable: Docker or its daemon is not there, or no image is.
    """
    if shutil.which("docker") is None:
        raise BrokerUnavailable("Docker is not installed")
    try:
        _docker("version", "--format", "{{.Server.Version}}", timeout_s=ANSWER_S)
    except BrokerUnavailable:
        raise BrokerUnavailable(f"no Docker daemon answers within {ANSWER_S:.0f} s") from None
    for image in LOCAL_IMAGES:
        if _docker("images", "--quiet", image):
            return image
    say(f"pulling {PULLED_IMAGE} (at most {PULL_S:.0f} s)")
    try:
        _docker("pull", "--quiet", PULLED_IMAGE, timeout_s=PULL_S)
    except BrokerUnavailable:
        raise BrokerUnavailable(f"Docker has no RabbitMQ image and cannot pull one in {PULL_S:.0f} s") from None
    return PULLED_IMAGE


def start_container(image: str, directory: Path, *, ready_s: float = READY_S) -> Broker:
    """Start a broker from `image` on a free loopback port and wait until it accepts connections.

    Args:
        directory: what the container prints goes to `docker.out` in here (made if missing).

    Raises:
        BrokerUnavailable: Docker refused, or the broker did not come up within `ready_s`.
    """
    remove_stale_containers()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = secrets.token_hex(16)
    container = _create(image, password)
    # Attached with signal proxy: SIGTERM of the leash reaches the broker, and --rm removes the container after it.
    leashed = Leashed(
        ["docker", "start", "--attach", container],
        environment=os.environ,
        directory=directory,
        log=directory / "docker.out",
        grace_s=STOP_S,
    )
    control = Container(container, leashed)
    try:
        port = _published_port(container, leashed)
        version = await_broker(HOST, port, timeout_s=ready_s, alive=lambda: control.alive)
    except BaseException as error:
        control.stop()
        if isinstance(error, BrokerUnavailable):
            raise BrokerUnavailable(f"a container of {image} did not start: {error}") from error
        raise
    return Broker(
        kind=BrokerKind.DOCKER,
        url=f"amqp://{USER}:{password}@{HOST}:{port}/%2F",
        reason=f"RabbitMQ {version} in Docker ({image})",
        version=version,
        control=control,
    )


def remove_stale_containers() -> None:
    """Remove containers whose owner was a process of this machine that is no more."""
    listing = _docker("ps", "--all", "--filter", f"label={OWNER_LABEL}", "--format", _LISTING)
    for line in listing.splitlines():
        container, _, owner = line.partition(" ")
        host, _, pid = owner.rpartition(":")
        # The same daemon may serve other hosts and containers, whose process ids mean nothing here.
        if host == socket.gethostname() and not _is_running(int(pid)):
            with contextlib.suppress(BrokerUnavailable):
                _docker("rm", "--force", "--volumes", container)


_LISTING = '{{.ID}} {{.Label "' + OWNER_LABEL + '"}}'


def _create(image: str, password: str) -> str:
    # The values of --env are taken from the environment, because arguments can be read by every user.
    credentials = {"RABBITMQ_DEFAULT_USER": USER, "RABBITMQ_DEFAULT_PASS": password}
    return _docker(
        "create",
        "--rm",
        f"--label={OWNER_LABEL}={socket.gethostname()}:{os.getpid()}",
        f"--publish={HOST}::5672",
        *(f"--env={name}" for name in credentials),
        image,
        environment=credentials,
    )


def _published_port(container: str, leashed: Leashed) -> int:
    """The loopback port that Docker chose; it is known as soon as the container runs."""
    deadline = time.monotonic() + COMMAND_S
    while leashed.alive and time.monotonic() < deadline:
        with contextlib.suppress(BrokerUnavailable):
            if addresses := _docker("port", container, "5672/tcp"):
                return int(addresses.splitlines()[0].rpartition(":")[2])
        time.sleep(0.1)
    raise BrokerUnavailable("it ended at once or published no port")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _docker(*arguments: str, timeout_s: float = COMMAND_S, environment: dict[str, str] | None = None) -> str:
    """Run the docker command line and return what it printed, stripped."""
    try:
        done = subprocess.run(
            ["docker", *arguments],
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerUnavailable(f"docker {arguments[0]} took longer than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise BrokerUnavailable(f"docker {arguments[0]} failed: {done.stderr[-500:].strip()}")
    return done.stdout.strip()
