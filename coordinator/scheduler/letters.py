"""What does the scheduler write to one client's own queue?"""

from __future__ import annotations

from coordinator.log_writer import LogWriter
from coordinator.scheduler.pool import Pool
from shared.effects import Publish
from shared.modellog.entries import Sealer
from shared.wire.messages import Message, Reminder, Task
from shared.wire.topology import Names


class Letters:
    """Makes tasks and reminders."""

    def __init__(self, names: Names, writer: LogWriter, pool: Pool, seal: Sealer) -> None:
        self._names = names
        self._writer = writer
        self._pool = pool
        self._seal = seal

    def task(self, client: str) -> Publish:
        """Train on the present version, or offer again; the log is there."""
        chain = self._writer.chain
        assert chain is not None
        task = Task(
            client=client,
            version=chain.version,
            attempt=chain.attempt,
            head=chain.version_head,
            snapshot_offset=self._writer.log.snapshot_offset,
            drawn=self._pool.drawn_counter(client),
        )
        return self._to(client, task)

    def reminder(self, client: str, frame: bytes) -> Publish:
        """This is what you have signed, and you do not know of it."""
        return self._to(client, Reminder(client=client, frame=frame))

    def _to(self, client: str, message: Message) -> Publish:
        return Publish(self._names.down, self._names.client(client), self._seal(message))
