"""`comitia inspect`: look into a federation at work without disturbing it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coordinator.settings import CoordinatorSettings
from deploy.inspect.dead import look, put_back
from deploy.inspect.draws import DrawnOffers
from deploy.inspect.log import LogInspection
from deploy.inspect.reading import Desk
from deploy.inspect.tables import LOG_HEADING, client_table, dead_table, log_line, log_summary, queue_table
from shared.crypto.signing import VerificationCache
from shared.inbox import Inbox
from shared.incoming import keys_of
from shared.membership import Membership, load_membership
from shared.settings import ProcessSettings
from shared.telemetry import configure_logging
from shared.transport.port import Sink, Transport, TransportEvent
from shared.transport.rabbitmq import RabbitMqTransport
from shared.wire.framing import Opener
from shared.wire.topology import Names, dead_queue, federation_topology, journal_queue, log_queue
from worker.away import clients_away
from worker.memory import read_client
from worker.settings import WorkerSettings

LOG_PREFETCH = 32
ALARM_EXIT_CODE = 1

app = typer.Typer(
    name="inspect",
    help="Look into a federation at work: its model log, queues, dead letters, a client's state.",
    no_args_is_help=True,
)

_Config = Annotated[
    Path | None, typer.Option(help="TOML file with the coordinator's settings; the environment wins over it.")
]
_FederationDir = Annotated[Path | None, typer.Option(help="Directory with directory.signed and enrolment.pub.")]

Connect = Callable[[ProcessSettings, Sink, str], Transport]


def connect_rabbitmq(settings: ProcessSettings, sink: Sink, name: str) -> Transport:
    """A transport to the broker of the settings."""
    transport = RabbitMqTransport(settings.broker, sink, name=name)
    try:
        transport.connect()
    except BaseException:
        transport.close(0)
        raise
    return transport


@app.callback()
def prepare(context: typer.Context) -> None:
    """Reach brokers through RabbitMQ, unless the caller brings a connection of its own."""
    if context.obj is None:
        context.obj = connect_rabbitmq


@app.command()
def log(
    context: typer.Context,
    config: _Config = None,
    federation_dir: _FederationDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per entry, and one summary.")] = False,
) -> None:
    """Read the model log from its oldest kept entry on, verify it as every worker does, show where the chain stands.

    Every draw whose offers stand in the coordinator's journal is recomputed. Exits with 1 if something stands there
    that no honest coordinator leaves, or if so many draws of one version were void that somebody should ask why.
    Repeats, and what a replaced coordinator still wrote, are skipped and do not count.
    """
    console = _console()
    with (
        _opened(context.obj, config, federation_dir) as (desk, members, opener),
        _opened(context.obj, config, federation_dir) as (later, _, _),
    ):
        names = Names(members.directory.federation)
        drawn = DrawnOffers(opener)
        drawn.read(desk.read_stream(journal_queue(names, 0), later, prefetch=LOG_PREFETCH))
        inspection = LogInspection(opener, members, drawn)
        if not as_json:
            console.print(LOG_HEADING, style="dim", highlight=False)
        for record in inspection.records(desk.read_stream(log_queue(names, 0), later, prefetch=LOG_PREFETCH)):
            if as_json:
                typer.echo(json.dumps(record.as_json()))
            else:
                console.print(log_line(record), soft_wrap=True)
    outlook = inspection.outlook()
    if as_json:
        typer.echo(json.dumps({"summary": outlook}))
    else:
        console.print(log_summary(outlook))
    if inspection.summary.alarming or inspection.summary.often_void:
        raise typer.Exit(ALARM_EXIT_CODE)


@app.command()
def queues(context: typer.Context, config: _Config = None, federation_dir: _FederationDir = None) -> None:
    """Show how many messages wait in every durable queue, and how many consumers it has."""
    with _opened(context.obj, config, federation_dir) as (desk, members, _):
        directory = members.directory
        durable = federation_topology(Names(directory.federation), directory.active_clients(), 0).queues
        _console().print(queue_table(durable, desk.transport.depths(durable)), highlight=False)


@app.command()
def dead(
    context: typer.Context,
    config: _Config = None,
    federation_dir: _FederationDir = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Show at most this many, oldest first.")] = 100,
    number: Annotated[
        int | None,
        typer.Option("--put-back", min=1, max=10_000, help="Send this number back to where it came from."),
    ] = None,
) -> None:
    """Show the messages that nobody could use, where they came from, and why; all of them stay there."""
    with _opened(context.obj, config, federation_dir) as (desk, members, opener):
        queue = dead_queue(Names(members.directory.federation))
        if number is not None:
            letter = put_back(desk, queue, opener, number)
            typer.echo(f"number {number} (sha256 {letter.digest[:12]}) was put back into {letter.queue}")
            return
        letters = look(desk, queue, opener, limit=limit)
    if not letters:
        typer.echo("no dead letters")
        return
    _console().print(dead_table(letters), highlight=False)
    if len(letters) == limit:
        typer.echo(f"these are the oldest {limit}; --limit shows more")


@app.command()
def client(
    name: Annotated[str, typer.Argument(help="The client's name.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="TOML file with the worker's settings; the environment wins over it.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Holds one state directory per client.")] = None,
) -> None:
    """Show what a client's state directory remembers. Takes no lock and changes nothing; its worker may run."""
    settings = WorkerSettings.load(config, state_dir=state_dir)
    away = name in clients_away(settings.state_dir)
    _console().print(client_table(read_client(settings.state_dir / name), away=away), highlight=False)


@contextmanager
def _opened(
    connect: Connect, config: Path | None, federation_dir: Path | None
) -> Iterator[tuple[Desk, Membership, Opener]]:
    """Settings, directory and broker; the connection is closed in the end."""
    settings = CoordinatorSettings.load(config, federation_dir=federation_dir)
    configure_logging(settings.log_format, settings.log_level)
    folder = settings.federation_dir
    members = load_membership(folder)
    directory = members.directory
    inbox: Inbox[TransportEvent] = Inbox()
    transport = connect(settings, inbox.put, f"{directory.federation}-inspect")
    try:
        opener = Opener(directory.federation_id, keys_of(members), VerificationCache())
        yield Desk(transport, inbox), members, opener
    finally:
        transport.close()


def _console() -> Console:
    console = Console()
    # Hashes are to be copied, not cut: into a file or a pipe everything goes in full width.
    return console if console.is_terminal else Console(width=200)
