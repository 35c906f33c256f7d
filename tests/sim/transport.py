"""The transport of a simulated process: every effect is a place to die at, and somebody watches what leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shared.transport.memory import MemoryTransport
from shared.transport.port import Delivery, Depth, Outcome, Queue, StreamStart, Topology


class Killed(BaseException):
    """The process ends here, between two effects. No `except Exception` of the code under test may catch it."""


class WatchedTransport:
    """A seat at the in-process broker. `boundary` is called before and after every effect, and may raise `Killed`."""

    def __init__(
        self,
        inner: MemoryTransport,
        boundary: Callable[[str], None],
        published: Callable[[str, bytes], None],
        settled: Callable[[str, Outcome], None],
    ) -> None:
        self.inner = inner
        self._boundary = boundary
        self._published = published
        self._settled = settled

    def connect(self) -> str:
        return self.inner.connect()

    def declare(self, topology: Topology) -> None:
        self.inner.declare(topology)

    def publish(self, exchange: str, routing_key: str, body: bytes | memoryview, *, persistent: bool = True) -> int:
        owned = bytes(body)
        self._boundary("before publish")
        # Before it is on its way: what must hold when something leaves must hold now.
        self._published(routing_key, owned)
        sequence = self.inner.publish(exchange, routing_key, owned, persistent=persistent)
        self._boundary("after publish")
        return sequence

    def consume(self, queue: Queue, *, prefetch: int, start: StreamStart | None = None) -> None:
        self._boundary("before consume")
        self.inner.consume(queue, prefetch=prefetch, start=start)

    def cancel(self, queue: str) -> None:
        self.inner.cancel(queue)

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        self._boundary("before settle")
        self.inner.settle(delivery, outcome)
        self._settled(delivery.queue, outcome)
        self._boundary("after settle")

    def depths(self, queues: Sequence[Queue]) -> Mapping[str, Depth | None]:
        return self.inner.depths(queues)

    def close(self, timeout_s: float = 5.0) -> None:
        self.inner.close(timeout_s)
