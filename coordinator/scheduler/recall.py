"""What does the scheduler leave to its successor, and how does that go on?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from coordinator.events import CoordinatorEffect, TookOffice
from coordinator.kept import ClientMemory, SchedulerMemory
from coordinator.log_writer import LogWriter
from coordinator.scheduler.clients import ClientRecord, Roll
from coordinator.scheduler.draw import Draw, open_draw_of, sites_of
from coordinator.scheduler.full_pool import FullPool
from coordinator.scheduler.pool import Pool
from coordinator.scheduler.under_way import DrawUnderWay
from shared.effects import note
from shared.modellog.chain import GENESIS
from shared.plan import Plan
from shared.wire.log_messages import ChangeEntry, DrawEntry, Entry, VoidEntry

_UNHEARD = ClientRecord()


def remember(
    entry: Entry, pool: Pool, roll: Roll, full_pool: FullPool, draw: Draw | None, deadline_s: float
) -> SchedulerMemory:
    """The state once `entry` stands in the log; `draw` is the open one, or the one that the entry opens."""
    counted = dict(full_pool.counted_for)
    if isinstance(entry, ChangeEntry) and draw is not None:
        counted |= dict.fromkeys(draw.clients, draw.version)
    drawn, records = pool.drawn_counters, roll.records
    clients = sorted(records.keys() | drawn.keys() | counted.keys())
    live = roll.live
    opened = draw.offers if isinstance(entry, DrawEntry) and draw is not None else ()
    return SchedulerMemory(
        tuple(
            _memory(client, records.get(client, _UNHEARD), drawn.get(client, 0), counted.get(client), client in live)
            for client in clients
        ),
        tuple(signed.frame for signed in opened),
        deadline_s,
    )


def recall(
    memory: SchedulerMemory, enrolled: Iterable[str], now: float, *, pool: Pool, roll: Roll, full_pool: FullPool
) -> None:
    """Take over what is known of the clients that are still enrolled."""
    known = set(enrolled)
    for client in memory.clients:
        if client.client not in known:
            continue
        roll.recall(client, now)
        if client.drawn:
            pool.recall(client.client, client.drawn)
        if client.counted_for is not None:
            full_pool.counted([client.client], client.counted_for)


def resume_draw(
    event: TookOffice, plan: Plan, writer: LogWriter, under_way: DrawUnderWay
) -> Iterator[CoordinatorEffect]:
    """The open draw of a session before, if there is one, goes on if it was made of the offers that the journal keeps.

    If it was not, it is closed without a step.
    """
    chain = writer.chain
    assert chain is not None
    if chain.draw is None:
        return
    draw = open_draw_of(event.drawn, plan.group_size, sites_of(writer.log.directory), chain)
    if draw is None:
        reason = "the coordinator that made it has left no record of its offers"
        yield writer.append(VoidEntry(parent=GENESIS, term=0, draw=chain.draw.entry, reason=reason))
    else:
        yield note("draw_resumed", version=draw.version, groups=len(draw.groups))
        yield from under_way.begin(draw, None)


def _memory(client: str, record: ClientRecord, drawn: int, counted_for: int | None, live: bool) -> ClientMemory:
    return ClientMemory(
        client,
        drawn,
        record.counter,
        record.newest,
        record.strikes,
        record.backed_off_until,
        counted_for,
        live,
    )
