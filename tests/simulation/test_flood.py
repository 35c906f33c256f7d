"""Does a flood of forged, changed, repeated and oversized messages cost a federation anything but time?

100,000 messages of about a kilobyte come while a federation is at work. If a party kept them, its memory would grow by
100 MB; the bound here is a quarter of that, and what the second half of the flood may add is a tenth of its size.
"""

from __future__ import annotations

import random

import psutil
import pytest

from shared.crypto.signing import SigningKey
from shared.identity import COORDINATOR
from shared.transport.memory import MemoryTransport
from shared.wire.framing import BATCH_BYTES_MAX, pack_batches, seal, split_batch
from shared.wire.group_messages import Words
from shared.wire.log_messages import Piece
from shared.wire.topology import client_queue, groups_queue, offers_queue, sums_queue
from tests.simulation.federation import FederationRun

MESSAGES = 100_000
AT_ONCE = 500
IN_A_BATCH = 50
FILLING = b"f" * 1_000
STRANGER = SigningKey.from_seed(b"s" * 32)
GROWTH_MAX = 25 << 20
GROWTH_LATER_MAX = 5 << 20


class Flooder:
    """Somebody who may publish to every queue, has overheard everything, and holds no key that counts."""

    def __init__(self, run: FederationRun) -> None:
        self._run = run
        self._chance = random.Random(7)
        self._seat = MemoryTransport(run.broker, lambda _: None, name="flooder")
        federation = run.keys.directory.federation_id
        self._forged = []
        for number in range(25):
            words = Words(transcript=bytes([number]) * 32, participants=b"\1", part=0, parts=1, body=FILLING)
            piece = Piece(body=bytes([number]) + FILLING)
            for message, sender in ((words, run.clients[number % 6]), (piece, COORDINATOR)):
                self._forged.append(seal(message, sender=sender, federation=federation, key=STRANGER))
        self._ways: set[tuple[str, str]] = set()
        self.sent = 0

    def flood(self) -> None:
        """Send `AT_ONCE` messages, shared out over all queues, and one that is too large."""
        names, overheard = self._run.keys.names, self._overheard()
        # What comes into a stream stays there, within its retention: that is the broker's memory, and not measured.
        streams = (names.log, names.journal)
        self._ways.update((exchange, key) for exchange, key, _ in overheard if key not in streams)
        frames = [frame for _, _, body in overheard for frame in split_batch(body)] or self._forged
        for _ in range(AT_ONCE // IN_A_BATCH):
            (body,) = pack_batches([self._frame(frames) for _ in range(IN_A_BATCH)])
            exchange, key = self._chance.choice(sorted(self._ways))
            self._seat.publish(exchange, key, body, persistent=False)
        if self.sent == 0:
            self._seat.publish(names.up, names.offer_key("site-0"), bytes(BATCH_BYTES_MAX + 1), persistent=False)
            self._seat.publish(names.down, names.log, body, persistent=False)
        self.sent += AT_ONCE

    def _overheard(self) -> list[tuple[str, str, bytes]]:
        """What was published since the last time, and by which way."""
        histories = [process.history for process in self._run.processes if process is not None]
        found = [entry for history in [self._run.coordinator_history, *histories] for entry in history]
        for history in [self._run.coordinator_history, *histories]:
            history.clear()
        return [(self._exchange(key), key, body) for kind, key, *rest in found if kind == "publish" for body in rest]

    def _exchange(self, key: str) -> str:
        names = self._run.keys.names
        return names.up if key.startswith(("offer.", "reply.")) else names.down

    def _frame(self, overheard: list[bytes]) -> bytes:
        match self._chance.randrange(3):
            case 0:
                return self._chance.choice(self._forged)
            case 1:
                return self._chance.choice(overheard)
            case _:
                changed = bytearray(self._chance.choice(self._forged))
                changed[self._chance.randrange(len(changed))] ^= 1 << self._chance.randrange(8)
                return bytes(changed)


@pytest.mark.slow
def test_a_flood_costs_time_and_nothing_else() -> None:
    run = FederationRun(clients=6, processes=2, plan={"group_size": 3, "round": {"rounds": 12}})
    run.run(lambda: run.version >= 2)
    flooder, memory = Flooder(run), psutil.Process()
    before, halfway = memory.memory_info().rss, 0

    def flood() -> None:
        nonlocal halfway
        if flooder.sent < MESSAGES:
            flooder.flood()
        if not halfway and flooder.sent >= MESSAGES // 2:
            halfway = memory.memory_info().rss

    run.run(lambda: flooder.sent >= MESSAGES and run.coordinator.finished is not None, flood)
    after = memory.memory_info().rss

    assert after - before < GROWTH_MAX
    assert after - halfway < GROWTH_LATER_MAX
    # The run went on: every version has every client, and no client sent an update twice.
    assert [figures["version"] for figures in run.figures()] == list(range(1, 13))
    assert all(figures["clients_counted"] == 6 for figures in run.figures())
    # Everything is accounted for, and nothing is left but what is kept for the operator to see.
    counts = run.coordinator.telemetry.counts
    assert counts["refused.bad_signature"] > MESSAGES / 50
    assert counts["refused.oversized"] > 0
    names = run.keys.names
    queues = [offers_queue(names), groups_queue(names), sums_queue(names)]
    queues += [client_queue(names, client) for client in run.clients]
    waiting = run.coordinator_transport.depths(queues)
    assert {name: depth.messages for name, depth in waiting.items() if depth is not None and depth.messages} == {}
