"""Which broker does a command use, and why?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from deploy.brokers.broker import MEMORY_URL, Broker, BrokerKind
from deploy.brokers.docker import find_image, start_container
from deploy.brokers.private_node import start_private_node
from shared.errors import BrokerUnavailable, SettingsError

AUTO = "auto"
EXAMPLE = "amqp://user:password@host:5672/"


def _silent(_line: str) -> None:
    """Nobody listens."""


def choose_broker(requested: str, directory: Path, *, say: Callable[[str], None] = _silent) -> Broker:
    """Return the broker that `requested` asks for; `auto` takes the first that can be had.

    The order of `auto`: a container, if a Docker daemon answers in 3 s and has a RabbitMQ image or pulls one in 60 s;
    else a private node, if RabbitMQ is installed; else the broker inside this process. What was passed over stands,
    with its reason, in the returned broker's `reason`.

    Args:
        requested: AMQP URLs of one broker's nodes, separated by spaces, or `memory`, or `auto`.
        directory: where a private node or a container's output lives; made when needed.
        say: told, in one line, before something slow is tried.

    Raises:
        SettingsError: `requested` is none of the three.
    """
    if requested == AUTO:
        return _first_that_starts(directory, say)
    if requested == MEMORY_URL:
        return _memory("as requested")
    addresses = ", ".join(_address(url) for url in requested.split())
    if not addresses:
        raise SettingsError(f"broker: give {AUTO}, {MEMORY_URL} or a URL like {EXAMPLE}")
    return Broker(kind=BrokerKind.URL, url=requested, reason=f"RabbitMQ at {addresses}: its URL was set")


def _address(url: str) -> str:
    """Host and port of an AMQP URL, without its password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("amqp", "amqps"):
        # What is no URL may still hold a password, so it is not repeated.
        raise SettingsError(f"broker: neither {AUTO} nor {MEMORY_URL} nor a URL like {EXAMPLE}")
    return host if port is None else f"{host}:{port}"


def _first_that_starts(directory: Path, say: Callable[[str], None]) -> Broker:
    passed_over = "no broker URL was set"
    for start in (_in_docker, _as_private_node):
        try:
            broker = start(directory, say)
        except BrokerUnavailable as error:
            passed_over += f"; {error}"
        else:
            broker.reason += f": {passed_over}"
            return broker
    return _memory(f"{passed_over}. Install Docker, or RabbitMQ with `make broker`")


def _in_docker(directory: Path, say: Callable[[str], None]) -> Broker:
    image = find_image(say)
    say(f"starting {image} in Docker")
    return start_container(image, directory)


def _as_private_node(directory: Path, say: Callable[[str], None]) -> Broker:
    say("starting a private RabbitMQ node")
    return start_private_node(directory)


def _memory(why: str) -> Broker:
    return Broker(
        kind=BrokerKind.MEMORY, url=MEMORY_URL, reason=f"broker inside this process, this is not RabbitMQ: {why}"
    )
