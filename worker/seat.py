"""Who speaks when a worker process speaks for one of its clients?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.wire.messages import Message


@dataclass(frozen=True, slots=True)
class Seat:
    """Who speaks: the client, its site, the worker process that serves it."""

    client: str
    site: str
    worker: str
    seal: Callable[[Message], bytes]
