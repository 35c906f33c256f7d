"""What does the rest of the program hold in its hand, wherever its broker came from?"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from shared.errors import BrokerUnavailable

MEMORY_URL = "memory"
"""Stands where a URL would, for the broker inside this process."""


class BrokerKind(StrEnum):
    """Where a broker came from. The values are part of the report's format."""

    URL = "url"
    DOCKER = "docker"
    PRIVATE_NODE = "private-node"
    MEMORY = "memory"


class Control(Protocol):
    """Power over a broker that we started ourselves."""

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on the broker and return what it printed.

        Raises:
            BrokerUnavailable: it failed; the message carries its last words.
        """

    def stop(self) -> None:
        """End the broker and wait until it is gone. Idempotent."""


@dataclass(kw_only=True)
class Broker:
    """A broker to connect to. As a context manager it is stopped at the end, if it was started by us.

    `url` is an AMQP URL with credentials (so it is left out of the repr), or `MEMORY_URL`. `version` is empty until
    somebody has asked the broker. `reason` is one line: what was chosen, and why.
    """

    kind: BrokerKind
    url: str = field(repr=False)
    reason: str
    version: str = ""
    control: Control | None = field(default=None, repr=False)

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this broker.

        Raises:
            BrokerUnavailable: it failed, or this broker was not started by us.
        """
        if self.control is None:
            raise BrokerUnavailable(f"rabbitmqctl needs a broker that was started here, not one of kind {self.kind}")
        return self.control.ctl(*arguments)

    def stop_app(self) -> None:
        """Stop the broker's application: every connection is lost, durable queues and streams stay."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Start the application again; returns when it accepts connections."""
        self.ctl("start_app")

    def restart_app(self) -> None:
        """Stop and start the broker's application."""
        self.stop_app()
        self.start_app()

    def stop(self) -> None:
        """End the broker if it was started here, and wait until it is gone. Idempotent."""
        if self.control is not None:
            self.control.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
