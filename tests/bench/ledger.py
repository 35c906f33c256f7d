"""How long does a client with ten thousand spent updates take to open, and its privacy to be added up?

More than a second would be noticed at every start of a worker. The limit is the hash over the same bytes, without which
nothing would be checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from uuid import UUID

from shared.identity import ClientId
from shared.privacy.accountant import epsilon_of
from shared.privacy.charges import RecordCharge
from tests.bench.measure import HotPath
from worker.ledger import LedgerEnd, SpentMark, encode_frame
from worker.state import ClientState
from worker.storage import MemoryStorage

RECORDS = 10_000
CHARGE = RecordCharge(noise_multiplier=2.0, sampling_rate=0.1, steps=7)


def long_lived(records: int = RECORDS) -> MemoryStorage:
    """The disk of a client that has spent so many updates."""
    disk, end, frames = MemoryStorage(), LedgerEnd(), []
    open_client(disk)
    for number in range(records):
        mark = SpentMark(2 * number + 1, 2 * number + 2, number, 0, 1_700_000_000_000_000 + number, CHARGE)
        frame, end = encode_frame(end, [mark])
        frames.append(frame)
    disk.append("ledger.log", frames)
    return disk


def open_client(disk: MemoryStorage) -> ClientState:
    """As a worker does when it starts."""
    return ClientState(disk, client=ClientId("client"), federation=UUID(int=7))


def open_and_account(disk: MemoryStorage) -> float:
    """Open, check and decode everything, and add it up."""
    return epsilon_of(open_client(disk).charges, 1e-5)


def hot_paths() -> Iterator[HotPath]:
    """The one path."""
    disk = long_lived()
    content = disk.read("ledger.log") or b""
    yield HotPath(
        name=f"open a ledger of {RECORDS:,} records, and its epsilon",
        ours=lambda: open_and_account(disk),
        limit_name="SHA-256 of its bytes",
        limit=lambda: hashlib.sha256(content).digest(),
    )
