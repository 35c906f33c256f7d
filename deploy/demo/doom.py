"""Ends a client at a chosen point of its round, as a power cut would: for demonstrations and tests only.

The worker itself knows nothing of this: its training and its transport are wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shared.transport.port import Delivery, Depth, Outcome, Queue, StreamStart, Topology, Transport
from shared.wire.framing import split_batch
from shared.wire.messages import Kind
from worker.events import Train
from worker.trainer import Training

DROP_PHASES = ("training", "offer", "shares", "words", "agreement")
SECURE_PHASES = ("shares", "agreement")
"""Phases that only groups of more than one client have."""

_KIND_AT = 4
_LAST_WORDS = {
    "offer": Kind.OFFER,
    "shares": Kind.SHARES,
    "words": Kind.WORDS,
    "agreement": Kind.AGREEMENT,
}
_TRAINING_DELAY_S = 0.5
_DELAY_S = 0.3


class Doom:
    """Decides when a client ends: while it trains on `version`, or after a message of its."""

    def __init__(self, phase: str, version: int, die: Callable[[float], None]) -> None:
        """
        Args:
            phase: one of `DROP_PHASES`.
            version: of the model.
            die: called once with the seconds after which the client is to be gone.
        """
        self._phase = phase
        self._version = version
        self._die = die
        self._training_version = -1
        self._dying = False

    def training_starts(self, version: int) -> bool:
        """Whether this run may start; the doomed one never ends."""
        self._training_version = version
        if self._phase == "training" and version == self._version:
            self._begin()
        return not self._dying

    def may_publish(self, body: bytes | memoryview) -> bool:
        """Whether this message may leave. The one that the client dies after still does, nothing later."""
        if self._dying:
            return self._phase == "training"
        wanted = _LAST_WORDS.get(self._phase)
        if self._training_version == self._version and wanted is not None and wanted in _kinds(body):
            self._begin()
        return True

    def _begin(self) -> None:
        self._dying = True
        self._die(_TRAINING_DELAY_S if self._phase == "training" else _DELAY_S)


def _kinds(body: bytes | memoryview) -> set[int]:
    return {frame[_KIND_AT] for frame in split_batch(bytes(body))}


class DoomedTraining:
    """Training that stops at the doomed version."""

    def __init__(self, inner: Training, doom: Doom) -> None:
        self._inner = inner
        self._doom = doom

    def start(self, client: str, order: Train) -> None:
        """See `worker.service.Training`."""
        if self._doom.training_starts(order.task.version):
            self._inner.start(client, order)

    def stop(self, client: str) -> None:
        """See `worker.service.Training`."""
        self._inner.stop(client)

    def forget(self, client: str) -> None:
        """See `worker.service.Training`."""
        self._inner.forget(client)

    def close(self) -> None:
        """See `worker.service.Training`."""
        self._inner.close()


class DoomedTransport:
    """A transport whose client may be dying; see `shared.transport.port.Transport`."""

    def __init__(self, inner: Transport, doom: Doom) -> None:
        self._inner = inner
        self._doom = doom
        self._last_sequence = 0

    def connect(self) -> str:
        """See the port."""
        return self._inner.connect()

    def declare(self, topology: Topology) -> None:
        """See the port."""
        self._inner.declare(topology)

    def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
        """See the port; what a dying client publishes is lost."""
        if self._doom.may_publish(body):
            self._last_sequence = self._inner.publish(exchange, routing_key, body, persistent=persistent)
        return self._last_sequence

    def consume(self, queue: Queue, *, prefetch: int, start: StreamStart | None = None) -> None:
        """See the port."""
        self._inner.consume(queue, prefetch=prefetch, start=start)

    def cancel(self, queue: str) -> None:
        """See the port."""
        self._inner.cancel(queue)

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        """See the port."""
        self._inner.settle(delivery, outcome)

    def depths(self, queues: Sequence[Queue]) -> Mapping[str, Depth | None]:
        """See the port."""
        return self._inner.depths(queues)

    def close(self, timeout_s: float = 5.0) -> None:
        """See the port."""
        self._inner.close(timeout_s)
