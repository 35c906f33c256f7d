"""`make bench`: every hot path beside its peers and its limit, and a round over a real RabbitMQ, in one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from threadpoolctl import threadpool_limits

from deploy.brokers import AUTO, Broker, BrokerKind, choose_broker
from shared.errors import BrokerUnavailable, ComitiaError, SettingsError
from tests.bench import codec, dp_sgd, ledger, masks, robust
from tests.bench.measure import HotPath, Row, measure
from tests.bench.report import missing, table, write_json
from tests.bench.rounds import round_rows
from tests.bench.stages import stage_rows

HOT_PATHS: dict[str, Callable[[], Iterable[HotPath]]] = {
    "robust": robust.hot_paths,
    "codec": codec.hot_paths,
    "masks": masks.hot_paths,
    "dp_sgd": dp_sgd.hot_paths,
    "ledger": ledger.hot_paths,
}
"""A module with hot paths of its own is added here."""

BROKER_DIRECTORY = Path(".comitia") / "broker"

OVER_BROKER: dict[str, Callable[[Broker], Iterable[Row]]] = {"rounds": round_rows, "stages": stage_rows}
"""What is measured between real processes."""


def main(
    broker: Annotated[str, typer.Option(help="where the rounds' broker comes from, as in `comitia demo`")] = "auto",
    only: Annotated[
        list[str] | None, typer.Option(help=f"measure only these: {', '.join((*HOT_PATHS, *OVER_BROKER))}")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the rows to this file too")] = None,
) -> None:
    """Run what was asked for and print the table."""
    chosen = set(only or (*HOT_PATHS, *OVER_BROKER))
    if unknown := chosen - {*HOT_PATHS, *OVER_BROKER}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there is {', '.join((*HOT_PATHS, *OVER_BROKER))}")
    # A mistake is told before anything is measured.
    named = None if broker == AUTO else choose_broker(broker, BROKER_DIRECTORY)
    if named is not None and named.kind is BrokerKind.MEMORY and chosen & OVER_BROKER.keys():
        raise SettingsError("broker: rounds and stages are measured over RabbitMQ only")
    rows: list[Row] = []
    # What needs a broker comes last: it would be busy beside the kernels.
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for name, hot_paths in HOT_PATHS.items():
            if name in chosen:
                for path in hot_paths():
                    rows += measure(path)
        if "codec" in chosen:
            rows += codec.byte_rows()
    console = Console(width=None if sys.stdout.isatty() else 200)
    if chosen & OVER_BROKER.keys():
        with named or choose_broker(AUTO, BROKER_DIRECTORY, say=console.print) as found:
            console.print(found.reason)
            if found.kind is BrokerKind.MEMORY:
                raise BrokerUnavailable("rounds and stages are measured over RabbitMQ only")
            for name, over_broker in OVER_BROKER.items():
                if name in chosen:
                    rows += over_broker(found)
    console.print(table(rows))
    if note := missing(rows):
        console.print(note)
    if json is not None:
        write_json(rows, json)


if __name__ == "__main__":
    try:
        typer.run(main)
    except ComitiaError as error:
        typer.echo(f"bench: {error}", err=True)
        sys.exit(error.exit_code)
