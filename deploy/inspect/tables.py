"""How is what was found shown to people? Lines for a log that may be long, tables for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from deploy.inspect.dead import DeadLetter
from deploy.inspect.log import LogRecord
from shared.transport.port import Depth, Queue
from worker.memory import ClientMemory
from worker.stored_update import TaskId

_HASH_CHARS = 12
LOG_HEADING = f"{'offset':>8}  {'entry':<9} {'version':>7} {'term':>5} {'groups':>6}  {'hash':<12} {'bytes':>11}"


def log_line(record: LogRecord) -> Text:
    """One entry of the log; what was skipped stands out, and says why."""
    line = (
        f"{record.offset:>8}  {record.kind or '?':<9} {_number(record.version):>7} {_number(record.term):>5} "
        f"{_number(record.groups):>6}  {record.digest[:_HASH_CHARS]:<12} {record.size:>11,}"
    )
    if record.draw == "differs":
        return Text(f"{line}  ANOTHER DRAW than that of its offers", style="bold red")
    if record.outcome != "skipped":
        return Text(line, style="dim" if record.outcome == "mark" else "")
    style = "bold red" if record.alarming else "yellow"
    return Text(f"{line}  skipped: {record.reason} ({record.detail})", style=style)


def log_summary(outlook: Mapping[str, Any]) -> Table:
    """Where the chain stands."""
    table = _pairs()
    if outlook["head"] is None:
        table.add_row("chain", "none: no snapshot has been read")
    else:
        table.add_row("head", outlook["head"])
        table.add_row("version", f"{outlook['version']}, term {outlook['term']}")
        table.add_row("weights", f"sha256 {outlook['weights_sha256']}")
        table.add_row("snapshot", f"a new worker begins at offset {outlook['snapshot_offset']}")
        table.add_row(
            "draw", f"{outlook['open_draw'][:_HASH_CHARS]} is open" if outlook["open_draw"] else "none is open"
        )
    void = outlook["void_draws"]
    versions = ", ".join(f"{count} for version {version}" for version, count in void.items())
    table.add_row("void draws", f"{sum(void.values())} ({versions})" if void else "0")
    draws = ", ".join(f"{count} {outcome}" for outcome, count in outlook["draws"].items())
    table.add_row("draws", draws or "none")
    skipped = ", ".join(f"{count} {reason}" for reason, count in outlook["skipped"].items())
    table.add_row("entries", f"{outlook['accepted']} accepted, skipped: {skipped or 'none'}")
    table.add_row("bytes", f"{outlook['bytes']:,}")
    for version in outlook["often_void"]:
        table.add_row("ALARM", f"{void[str(version)]} draws of version {version} were void", style="bold red")
    if outlook["alarming"]:
        table.add_row("ALARM", f"{outlook['alarming']} that no honest coordinator leaves there", style="bold red")
    return table


def client_table(memory: ClientMemory, *, away: bool) -> Table:
    """What a client remembers, and whether the operator has taken it out."""
    table = _pairs()
    table.add_row(
        "client", f"{memory.client} (away; `comitia worker rejoin` brings it back)" if away else memory.client
    )
    table.add_row("federation", str(memory.federation))
    table.add_row("offer counter", str(memory.counter))
    table.add_row("last task", "none" if memory.last_task is None else _task(memory.last_task))
    update = memory.unspent
    if update is None:
        table.add_row("unspent update", "none")
    else:
        table.add_row(
            "unspent update",
            f"number {update.update_id}, trained on {_task(update.meta.task)}: {update.meta.num_examples} examples, "
            f"{update.values.size:,} values, norm {memory.unspent_norm:.6g}",
        )
    table.add_row("spent updates", str(len(memory.spent)))
    if memory.spent:
        last = memory.spent[-1]
        table.add_row("last spent", f"number {last.update}, trained on {_task(TaskId(last.version, last.attempt))}")
    return table


def queue_table(queues: Sequence[Queue], depths: Mapping[str, Depth | None]) -> Table:
    """Every queue with what waits in it and who consumes it; "-" is what a broker does not count."""
    table = Table(box=None, pad_edge=False)
    for title, justify in (("queue", "left"), ("kind", "left"), ("messages", "right"), ("consumers", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for queue in queues:
        depth = depths[queue.name]
        if depth is None:
            table.add_row(queue.name, queue.kind.value, "missing", "", style="red")
        else:
            table.add_row(queue.name, queue.kind.value, _number(depth.messages), _number(depth.consumers))
    return table


def dead_table(letters: Sequence[DeadLetter]) -> Table:
    """Dead letters, oldest first."""
    table = Table(box=None, pad_edge=False)
    for title in ("number", "from", "reason", "bytes", "sha256", "content"):
        table.add_column(title, justify="right" if title in ("number", "bytes") else "left", overflow="fold")
    for letter in letters:
        place = (letter.queue or "?", letter.reason or "?", f"{letter.size:,}", letter.digest[:_HASH_CHARS])
        # Text: what a stranger sent is not to be taken for markup.
        table.add_row(str(letter.number), *(Text(cell) for cell in (*place, letter.content)))
    return table


def _pairs() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _task(task: TaskId) -> str:
    return f"version {task.version}" + (f", attempt {task.attempt}" if task.attempt else "")


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
