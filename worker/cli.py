"""`comitia worker`: serve clients of a federation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from typer.core import TyperGroup

from shared.errors import SettingsError, StateError
from shared.plan import describe_errors
from shared.telemetry import configure_logging
from worker.app import load_members, run_worker
from worker.away import Departure, bring_back, take_out
from worker.ledger_report import ledger_tables, report_of
from worker.memory import read_client
from worker.policy import PrivacyBudget
from worker.seating import named_clients
from worker.settings import WorkerSettings


class _RunUnlessNamed(TyperGroup):
    """Options without a command are those of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_RunUnlessNamed, help="Serve clients of a federation on this machine.")


@app.command()
def run(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; the environment wins over it.")] = None,
    client: Annotated[
        list[str] | None, typer.Option(help="Serve this client and share none out; may be repeated.")
    ] = None,
    seats: Annotated[
        int | None,
        typer.Option(help="Serve at most this many of the clients that are shared out.", show_default="any number"),
    ] = None,
    client_ids: Annotated[
        str | None,
        typer.Option(
            help="Share these clients out with all workers that are started so: 1-20, or 1-8,ward-b.",
            show_default="all of the site whose keys are here",
        ),
    ] = None,
    federation_dir: Annotated[
        Path | None, typer.Option(help="Directory with directory.signed, enrolment.pub and clients/<id>.key.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Holds one state directory per client.")] = None,
) -> None:
    """Train whenever the coordinator asks, until SIGTERM. `comitia worker --seats 4` is short for this.

    Workers that have the same state directory share its clients out: start as many as you like, wherever it can be
    reached. When one comes, goes or dies, the others adjust within seconds; a client goes on where it was.
    """
    if client and (client_ids or seats):
        raise SettingsError("client: those are served whoever else is there; leave out --client-ids and --seats")
    settings = WorkerSettings.load(
        config,
        clients=client or None,
        client_ids=client_ids,
        seats=seats,
        federation_dir=federation_dir,
        state_dir=state_dir,
    )
    configure_logging(settings.log_format, settings.log_level)
    run_worker(settings)


_ClientIds = Annotated[str, typer.Option(help="Which clients: 3,7-9 or ward-b.", show_default=False)]
_Config = Annotated[
    Path | None, typer.Option(help="TOML file with the worker's settings; the environment wins over it.")
]
_FederationDir = Annotated[Path | None, typer.Option(help="Directory with directory.signed and enrolment.pub.")]
_StateDir = Annotated[Path | None, typer.Option(help="The workers' own: holds one state directory per client.")]


@app.command()
def leave(
    client_ids: _ClientIds,
    config: _Config = None,
    federation_dir: _FederationDir = None,
    state_dir: _StateDir = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="How long to wait for them (seconds).")] = 30.0,
) -> None:
    """Take clients out of the federation for the time being; workers go on, and serve them no more until `rejoin`.

    A client finishes a group in progress (within the worker's drain_s) and tells the coordinator, which counts on it
    no more. Its ledger and an unspent update stay where they are. Exits with 1 if one is still served when time is up.
    """
    settings, clients = _named(client_ids, config, federation_dir, state_dir)
    late = False
    for client, departure in take_out(settings.state_dir, clients, timeout_s):
        late = late or departure is Departure.STILL_SERVED
        typer.echo(f"{client} {departure.value}")
    if late:
        text = "no worker takes them again, but one has not let go yet: ask once more with a longer --timeout than its "
        typer.echo(f"comitia: {text}drain_s, or end a worker that does not react (SIGTERM, then SIGKILL)", err=True)
        raise typer.Exit(1)


@app.command()
def rejoin(
    client_ids: _ClientIds,
    config: _Config = None,
    federation_dir: _FederationDir = None,
    state_dir: _StateDir = None,
) -> None:
    """Bring clients back whom `leave` took out: a running worker serves them again within seconds."""
    settings, clients = _named(client_ids, config, federation_dir, state_dir)
    back = bring_back(settings.state_dir, clients)
    for client in clients:
        typer.echo(f"{client} {'may be served again' if client in back else 'was not away'}")


def _named(
    client_ids: str, config: Path | None, federation_dir: Path | None, state_dir: Path | None
) -> tuple[WorkerSettings, list[str]]:
    settings = WorkerSettings.load(config, client_ids=client_ids, federation_dir=federation_dir, state_dir=state_dir)
    return settings, named_clients(settings, load_members(settings.federation_dir, settings.state_dir).directory)


@app.command()
def ledger(
    client: Annotated[list[str] | None, typer.Option(help="Only this client; may be repeated.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; the environment wins over it.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Holds one state directory per client.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="The budget.", show_default="policy.privacy_budget.epsilon")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Delta of epsilon.", show_default="policy.privacy_budget.delta")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per client.")] = False,
) -> None:
    """Show what clients have spent of their privacy, what is left, and for how many rounds.

    Takes no lock and changes nothing; the worker may run. Where neither the worker's settings nor options say so, the
    budget is the plan's, which `comitia plan` shows: give its epsilon and delta here.
    """
    settings = WorkerSettings.load(config, state_dir=state_dir)
    own = settings.policy.privacy_budget
    given = {"epsilon": epsilon, "delta": delta}
    try:
        budget = PrivacyBudget(**own.model_dump() | {name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(describe_errors(error, "budget")) from error
    for name in client or _clients_in(settings.state_dir):
        report = report_of(read_client(settings.state_dir / name), budget)
        if as_json:
            typer.echo(json.dumps(report))
        else:
            for table in ledger_tables(report):
                Console().print(table, highlight=False)


def _clients_in(folder: Path) -> list[str]:
    """
    Raises:
        StateError: there is none.
    """
    found = sorted(path.parent.name for path in folder.glob("*/identity.json"))
    if not found:
        raise StateError(f"{folder}: holds no client's state directory")
    return found
