"""Where do tests get a broker from?

A URL in `COMITIA_TEST_BROKER_URL` wins. `COMITIA_TEST_BROKER` may force `docker` (testcontainers; `docker:IMAGE` takes
a certain image) or `node` (a private node of the installed RabbitMQ). Otherwise Docker is used where it is, else a
private node. Without any of them, the tests that need RabbitMQ are skipped, and fail where `CI` is set: a leg that
silently did not run proves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch
from hypothesis import HealthCheck, settings

from deploy.brokers.broker import Broker, BrokerKind
from deploy.brokers.docker import find_image
from deploy.brokers.private_node import start_private_node
from shared.errors import BrokerUnavailable

if TYPE_CHECKING:
    from tests.certificates import TlsSite
    from tests.containers import BrokerCluster

BROKER_FIXTURES = {"broker", "rabbitmq_url", "restartable_broker", "cluster", "tls"}
SOURCE = pytest.StashKey[str]()

# How long the making of examples takes is the machine's affair, and no property of ours.
settings.register_profile("comitia", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("comitia")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs RabbitMQ, by its fixtures or by a parameter that says so."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if BROKER_FIXTURES & set(getattr(item, "fixturenames", ())) or any(
            value == "rabbitmq" for value in parameters.values() if isinstance(value, str)
        ):
            item.add_marker(pytest.mark.rabbitmq)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Record in the JUnit report which broker a test ran against; the CI counts these."""
    if item.get_closest_marker("rabbitmq") and (source := item.config.stash.get(SOURCE, "")):
        item.user_properties.append(("broker", source))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Broker]:
    """A real RabbitMQ for the whole session."""
    try:
        chosen, source = _start(tmp_path_factory.mktemp("broker"))
    except BrokerUnavailable as error:
        _go_without(f"no RabbitMQ for the tests: {error}")
    pytestconfig.stash[SOURCE] = f"{source} {chosen.version}"
    with chosen:
        yield chosen


@pytest.fixture(scope="session")
def rabbitmq_url(broker: Broker) -> str:
    """The AMQP URL of a real RabbitMQ."""
    return broker.url


@pytest.fixture
def restartable_broker(broker: Broker) -> Broker:
    """A RabbitMQ whose application may be stopped and started; the tests after it find it running again."""
    if broker.kind is BrokerKind.URL:
        _go_without("the broker of COMITIA_TEST_BROKER_URL is not ours to stop")
    return broker


@pytest.fixture
def cluster() -> Iterator[BrokerCluster]:
    """Three nodes of RabbitMQ 4 in containers, whatever the session's broker is."""
    from tests.containers import broker_cluster

    try:
        with broker_cluster(_container_image(), 3) as nodes:
            yield nodes
    except BrokerUnavailable as error:
        _go_without(f"no RabbitMQ cluster for the test: {error}")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    """RabbitMQ 4 in a container, with TLS, and the files of those who connect."""
    from tests.certificates import TlsSite
    from tests.containers import tls_broker

    site = TlsSite.made(tmp_path_factory.mktemp("tls"))
    try:
        with tls_broker(_container_image(), site.broker_files, site.user) as (site.host, site.port):
            yield site
    except BrokerUnavailable as error:
        _go_without(f"no RabbitMQ with TLS for the test: {error}")


def _container_image() -> str:
    forced, _, image = os.environ.get("COMITIA_TEST_BROKER", "").partition(":")
    return (image if forced == "docker" else "") or find_image(print)


def _go_without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _start(directory: Path) -> tuple[Broker, str]:
    """Start the broker that the environment asks for; returns it and the name of its source."""
    if url := os.environ.get("COMITIA_TEST_BROKER_URL"):
        return Broker(kind=BrokerKind.URL, url=url, reason="COMITIA_TEST_BROKER_URL is set"), "url"
    forced, _, image = os.environ.get("COMITIA_TEST_BROKER", "").partition(":")
    if forced not in ("", "docker", "node"):
        raise pytest.UsageError(f"COMITIA_TEST_BROKER: {forced!r} is none of docker, docker:IMAGE, node")
    without_docker = ""
    if forced != "node":
        try:
            from tests.containers import start_testcontainer

            return start_testcontainer(image or find_image(print)), "testcontainers"
        except BrokerUnavailable as error:
            if forced == "docker":
                raise
            without_docker = f"{error}; "
    try:
        return start_private_node(directory), "node"
    except BrokerUnavailable as error:
        raise BrokerUnavailable(f"{without_docker}{error}") from error
