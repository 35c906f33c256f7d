"""How do RabbitMQ nodes in containers come up for the tests, one alone, one with TLS, or a cluster to kill one of?

The container of a test is removed by its fixture.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.brokers.broker import Broker, BrokerKind
from deploy.brokers.handshake import await_broker
from shared.errors import BrokerUnavailable

# The library reads these when it is imported. Its reaper would have to be pulled, which fails where no registry is.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
# Ports are published on this machine's loopback, also where the library believes to be inside a container.
os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from testcontainers.community.rabbitmq import RabbitMqContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network

USER = PASSWORD = "of-the-tests-alone"
PORT, TLS_PORT = 5672, 5671
ANSWERS_S = 10.0
NODES_READY_S = 120.0
TLS_DIRECTORY = "/etc/rabbitmq/tls"
TLS_CONFIGURATION = f"""\
listeners.ssl.default = {TLS_PORT}
ssl_options.cacertfile = {TLS_DIRECTORY}/ca.pem
ssl_options.certfile = {TLS_DIRECTORY}/server.pem
ssl_options.keyfile = {TLS_DIRECTORY}/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
"""
CONFIGURATION = """\
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
"""


class Testcontainer:
    """Control of a broker that testcontainers runs."""

    __test__ = False

    def __init__(self, container: DockerContainer) -> None:
        self._container = container

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` in the container; see `deploy.brokers.broker.Control`."""
        code, output = self._container.exec(["rabbitmqctl", *arguments])
        if code != 0:
            raise BrokerUnavailable(f"rabbitmqctl {arguments[0]} failed: {output!r}")
        return str(output.decode())

    def stop(self) -> None:
        """Remove the container."""
        self._container.stop()


def start_testcontainer(image: str) -> Broker:
    """Start one node and wait until it accepts connections.

    Raises:
        BrokerUnavailable: testcontainers could not start it.
    """
    container = RabbitMqContainer(image, port=PORT, username=USER, password=PASSWORD)
    container.ports = ON_LOOPBACK
    try:
        container.start()
    except Exception as error:
        container.stop()
        raise BrokerUnavailable(f"testcontainers could not start {image}: {error!r}") from error
    host, port = _address(container)
    version = await_broker(host, port, timeout_s=ANSWERS_S, alive=lambda: True)
    return Broker(
        kind=BrokerKind.DOCKER,
        url=f"amqp://{USER}:{PASSWORD}@{host}:{port}/%2F",
        reason=f"testcontainers runs {image}",
        version=version,
        control=Testcontainer(container),
    )


class BrokerCluster:
    """A running cluster, each node in a container of its own. Nodes are numbered from 0."""

    def __init__(self, nodes: list[DockerContainer]) -> None:
        self._nodes = nodes
        addresses = [":".join(map(str, _address(node))) for node in nodes]
        self.urls = " ".join(f"amqp://{USER}:{PASSWORD}@{address}/%2F" for address in addresses)
        """The AMQP URLs of all nodes, separated by spaces, as the settings take them."""

    def await_formed(self) -> None:
        """Wait until every node is a member: a queue's replicas are chosen among those that are when it is declared.

        Raises:
            BrokerUnavailable: a node did not come up, or did not join.
        """
        for node in self._nodes:
            await_broker(*_address(node), timeout_s=NODES_READY_S, alive=lambda: True)
        control = Testcontainer(self._nodes[0])
        control.ctl("await_online_nodes", str(len(self._nodes)), "--timeout", f"{NODES_READY_S:.0f}")

    def kill(self, number: int) -> None:
        """End a node at once, as kill -9 does."""
        self._nodes[number].get_wrapped_container().kill("SIGKILL")


@contextlib.contextmanager
def broker_cluster(image: str, count: int) -> Iterator[BrokerCluster]:
    """Start a cluster of `count` nodes, which find each other by name in a network of their own.

    Raises:
        BrokerUnavailable: it could not be started.
    """
    names = [f"node-{number}" for number in range(count)]
    peers = [f"cluster_formation.classic_config.nodes.{n} = rabbit@{name}" for n, name in enumerate(names, start=1)]
    configuration = CONFIGURATION + "\n".join(peers) + "\n"
    cookie = f"-setcookie {secrets.token_hex(16)}"
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Network())
            nodes = [stack.enter_context(_node(image, network, name, cookie, configuration)) for name in names]
        except Exception as error:
            raise BrokerUnavailable(f"testcontainers could not start {count} x {image}: {error!r}") from error
        cluster = BrokerCluster(nodes)
        cluster.await_formed()
        yield cluster


@contextlib.contextmanager
def tls_broker(image: str, files: Mapping[str, bytes], user: str) -> Iterator[tuple[str, int]]:
    """Start a node that speaks TLS too, and takes a certificate with the common name `user` in place of a password.

    Args:
        image: of RabbitMQ.
        files: `ca.pem`, `server.pem` and `server.key`.
        user: made, with all permissions.

    Returns:
        Host and port of the TLS listener.

    Raises:
        BrokerUnavailable: it could not be started.
    """
    node = DockerContainer(image).with_envs(RABBITMQ_DEFAULT_USER=USER, RABBITMQ_DEFAULT_PASS=PASSWORD)
    node.with_copy_into_container(TLS_CONFIGURATION.encode(), "/etc/rabbitmq/conf.d/20-tls.conf")
    node.with_copy_into_container(b"[rabbitmq_auth_mechanism_ssl].", "/etc/rabbitmq/enabled_plugins")
    for name, content in files.items():
        node.with_copy_into_container(content, f"{TLS_DIRECTORY}/{name}")
    node.ports = {**ON_LOOPBACK, f"{TLS_PORT}/tcp": ("127.0.0.1", None)}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(node)
        except Exception as error:
            raise BrokerUnavailable(f"testcontainers could not start {image}: {error!r}") from error
        await_broker(*_address(node), timeout_s=NODES_READY_S, alive=lambda: True)
        control = Testcontainer(node)
        control.ctl("add_user", user, secrets.token_hex(16))
        control.ctl("set_permissions", user, ".*", ".*", ".*")
        yield node.get_container_host_ip(), node.get_exposed_port(TLS_PORT)


ON_LOOPBACK: Any = {f"{PORT}/tcp": ("127.0.0.1", None)}


def _node(image: str, network: Network, name: str, cookie: str, configuration: str) -> DockerContainer:
    node = DockerContainer(image, hostname=name).with_network(network).with_network_aliases(name)
    node.with_envs(RABBITMQ_NODENAME=f"rabbit@{name}", RABBITMQ_DEFAULT_USER=USER, RABBITMQ_DEFAULT_PASS=PASSWORD)
    node.with_envs(RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=cookie, RABBITMQ_CTL_ERL_ARGS=cookie)
    node.with_copy_into_container(configuration.encode(), "/etc/rabbitmq/conf.d/20-cluster.conf")
    node.ports = ON_LOOPBACK
    return node


def _address(node: DockerContainer) -> tuple[str, int]:
    return node.get_container_host_ip(), node.get_exposed_port(PORT)
