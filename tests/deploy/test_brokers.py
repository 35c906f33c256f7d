"""Brokers on demand: the choice, its reasons, and that nothing which was started stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.brokers import choose, docker, private_node
from deploy.brokers.broker import Broker, BrokerKind
from deploy.brokers.choose import choose_broker
from deploy.brokers.handshake import await_broker, broker_version
from deploy.leash import Leashed
from shared.errors import BrokerUnavailable, SettingsError


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def needed(find: Callable[[], object]) -> None:
    """Skip without what `find` looks for; in CI it has to be there."""
    try:
        find()
    except BrokerUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


# --- the choice ------------------------------------------------------------------------------------------------------


def test_a_url_is_taken_as_it_is_and_its_password_is_not_shown(tmp_path: Path) -> None:
    broker = choose_broker("amqp://user:secret@rabbit.example:5673/vhost", tmp_path)

    assert (broker.kind, broker.url) == (BrokerKind.URL, "amqp://user:secret@rabbit.example:5673/vhost")
    assert "rabbit.example:5673" in broker.reason
    assert "secret" not in repr(broker) + broker.reason


def test_the_urls_of_several_nodes_are_one_broker(tmp_path: Path) -> None:
    assert "one, two:5673" in choose_broker("amqp://one amqps://user:secret@two:5673/", tmp_path).reason


@pytest.mark.parametrize(
    "requested", ["", "rabbit.example", "http://rabbit.example", "amqp://", "amqp:///vhost", "amqp://a:b@c:d"]
)
def test_what_is_no_broker_is_refused_by_the_name_of_its_setting(requested: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^broker: "):
        choose_broker(requested, tmp_path)


def test_memory_says_that_it_is_not_rabbitmq_and_has_no_rabbitmqctl(tmp_path: Path) -> None:
    with choose_broker("memory", tmp_path) as broker:
        assert (broker.kind, broker.url) == (BrokerKind.MEMORY, "memory")
        assert "not RabbitMQ" in broker.reason
        with pytest.raises(BrokerUnavailable, match="memory"):
            broker.restart_app()


def test_auto_without_docker_and_rabbitmq_falls_back_to_memory_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(private_node, "DEBIAN_SERVER", tmp_path / "rabbitmq-server")

    broker = choose_broker("auto", tmp_path)

    assert broker.kind is BrokerKind.MEMORY
    for part in ("not RabbitMQ", "Docker is not installed", "rabbitmq-server is not installed", "make broker"):
        assert part in broker.reason


def fake(kind: BrokerKind) -> Broker:
    return Broker(kind=kind, url="amqp://here", reason=f"a {kind} broker")


def unavailable(*_: object) -> Broker:
    raise BrokerUnavailable("no such luck")


def test_auto_prefers_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_image", lambda say: "some:image")
    monkeypatch.setattr(choose, "start_container", lambda image, directory: fake(BrokerKind.DOCKER))
    monkeypatch.setattr(choose, "start_private_node", lambda directory: fake(BrokerKind.PRIVATE_NODE))

    broker = choose_broker("auto", tmp_path)

    assert broker.kind is BrokerKind.DOCKER
    assert broker.reason == "a docker broker: no broker URL was set"


def test_auto_takes_a_private_node_when_docker_fails_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_image", lambda say: "some:image")
    monkeypatch.setattr(choose, "start_container", unavailable)
    monkeypatch.setattr(choose, "start_private_node", lambda directory: fake(BrokerKind.PRIVATE_NODE))

    broker = choose_broker("auto", tmp_path)

    assert broker.kind is BrokerKind.PRIVATE_NODE
    assert "no such luck" in broker.reason


def docker_program(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a `docker` of our own in front of the real one."""
    program = directory / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)


def test_a_docker_daemon_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_program(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(docker, "ANSWER_S", 0.2)

    with pytest.raises(BrokerUnavailable, match="no Docker daemon answers"):
        docker.find_image(lambda line: None)


def test_an_image_that_cannot_be_pulled_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_program(tmp_path, "case $1 in pull) exec sleep 60;; version) echo 20;; esac", monkeypatch)
    monkeypatch.setattr(docker, "PULL_S", 0.2)
    said: list[str] = []

    with pytest.raises(BrokerUnavailable, match="cannot pull"):
        docker.find_image(said.append)
    assert "pulling" in said[0]


def test_local_images_are_preferred_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_program(tmp_path, 'case "$*" in *management*|*:4) echo c0ffee;; version*) echo 20;; esac', monkeypatch)

    assert docker.find_image(lambda line: None) == "rabbitmq:4-management"


# --- the handshake ---------------------------------------------------------------------------------------------------

PROPERTIES = b"\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x054.0.5"
START_PAYLOAD = struct.pack(">HHBB", 10, 10, 0, 9) + struct.pack(">I", len(PROPERTIES)) + PROPERTIES
START = struct.pack(">BHI", 1, 0, len(START_PAYLOAD)) + START_PAYLOAD + b"\xce"


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """A server that answers one connection with the given bytes; returns its port."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def listen(answer: bytes) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(5)
        sockets.append(server)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(8)
                connection.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(server.getsockname()[1])

    yield listen
    for thread in threads:
        thread.join()
    for each in sockets:
        each.close()


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (START, "4.0.5"),
        (START.replace(b"versionS", b"verzionS"), ""),
        (b"AMQP\x00\x01\x00\x00", None),
        (START[:20], None),
        (b"\x01\x00\x00\xff\xff\xff\xff" + START_PAYLOAD, None),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
    ],
)
def test_the_version_is_read_from_the_handshake(
    answer: bytes, version: str | None, answering: Callable[[bytes], int]
) -> None:
    assert broker_version("127.0.0.1", answering(answer)) == version


def test_ports_that_were_found_free_are_given_to_nobody_who_asks_for_any() -> None:
    ports = private_node.free_ports(300)

    assert len(set(ports)) == 300
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(300)]
        assert not set(ports) & {other.getsockname()[1] for other in others}
        taken = stack.enter_context(socket.create_server(("127.0.0.1", ports[0])))
        assert taken.getsockname()[1] not in private_node.free_ports(300)


def test_waiting_ends_when_the_process_does() -> None:
    with pytest.raises(BrokerUnavailable, match="ended"):
        await_broker("127.0.0.1", private_node.free_ports(1)[0], timeout_s=30, alive=lambda: False)


# --- the leash -------------------------------------------------------------------------------------------------------


def leashed(script: str, directory: Path) -> Leashed:
    return Leashed(
        [sys.executable, "-c", script],
        environment=os.environ,
        directory=directory,
        log=directory / "out",
        grace_s=0.3,
    )


def printed_pid(directory: Path) -> int:
    log = directory / "out"
    assert eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    return int(log.read_text())


STUBBORN = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"


def test_a_command_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    command = leashed(STUBBORN, tmp_path)
    pid = printed_pid(tmp_path)
    assert command.alive

    command.stop()
    command.stop()

    assert not command.alive
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_command_ends_with_its_parent_however_that_dies(signal_name: str, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, signal, sys, time\n"
            "from pathlib import Path\n"
            "from deploy.leash import Leashed\n"
            # As from a terminal: what runs in the background ignores Ctrl-C from the start.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "directory = Path(sys.argv[1])\n"
            "child = Leashed(['sh', '-c', 'echo $$; exec sleep 60'], environment=os.environ, directory=directory,\n"
            "                log=directory / 'out', grace_s=1.0)\n"
            "time.sleep(60)\n",
            str(tmp_path),
        ],
        stderr=subprocess.DEVNULL,
    )
    pid = printed_pid(tmp_path)

    parent.send_signal(signal.Signals[signal_name])
    parent.wait()

    assert eventually(lambda: not psutil.pid_exists(pid), timeout_s=10)


# --- the real things -------------------------------------------------------------------------------------------------


def processes_of(directory: Path) -> list[psutil.Process]:
    """Everything that works in this directory: node, epmd and their leashes."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(directory):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


@pytest.mark.rabbitmq
def test_a_private_node_keeps_its_data_and_leaves_no_process(tmp_path: Path) -> None:
    needed(private_node.find_programs)
    directory = tmp_path / "a node"

    with private_node.start_private_node(directory) as broker:
        assert broker.kind is BrokerKind.PRIVATE_NODE
        assert broker.version
        secret_files = (directory / "password", directory / "rabbitmq.conf")
        assert {path.stat().st_mode & 0o777 for path in secret_files} == {0o600}
        sockets = [each for process in processes_of(directory) for each in process.net_connections()]
        ports = {each.laddr.port: each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        assert len(ports) == 3
        assert set(ports.values()) <= {"127.0.0.1", "::1"}
        with pytest.raises(BrokerUnavailable, match="another process"):
            private_node.start_private_node(directory)
        broker.ctl("add_vhost", "kept")
        broker.restart_app()
        with pytest.raises(BrokerUnavailable, match="no_such_command"):
            broker.ctl("no_such_command")

    assert processes_of(directory) == []
    with private_node.start_private_node(directory) as broker:
        assert "kept" in broker.ctl("list_vhosts", "--quiet").split()
        broker.stop()
        assert processes_of(directory) == []


@pytest.mark.rabbitmq
def test_a_container_is_removed_and_so_are_those_of_dead_owners(tmp_path: Path) -> None:
    needed(lambda: docker.find_image(lambda line: None))
    image = docker.find_image(lambda line: None)
    ended = subprocess.Popen(["true"])
    ended.wait()
    owner = f"--label={docker.OWNER_LABEL}={socket.gethostname()}:"
    stale = docker._docker("create", f"{owner}{ended.pid}", image)
    foreign = docker._docker("create", f"--label={docker.OWNER_LABEL}=elsewhere:{ended.pid}", image)

    def containers() -> str:
        return docker._docker("ps", "--all", "--no-trunc", "--quiet")

    try:
        with docker.start_container(image, tmp_path) as broker:
            assert broker.kind is BrokerKind.DOCKER
            assert broker.url.rpartition("@")[2].startswith("127.0.0.1:")
            assert stale not in containers()
            assert foreign in containers()
            broker.restart_app()
            mine = docker._docker("ps", "--no-trunc", "--quiet", f"--filter=label={docker.OWNER_LABEL}")
            assert mine
        assert mine not in containers()
    finally:
        docker._docker("rm", "--force", foreign)
