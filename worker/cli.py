"""`comitia worker`: serve clients of a federation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from shared.errors import SettingsError, StateError
from shared.plan import describe_errors
from shared.telemetry import configure_logging
from worker.app import run_worker
from worker.ledger_report import ledger_tables, report_of
from worker.memory import read_client
from worker.policy import PrivacyBudget
from worker.settings import WorkerSettings

app = typer.Typer(no_args_is_help=True, help="Serve clients of a federation on this machine.")


@app.command()
def run(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; the environment wins over it.")] = None,
    client: Annotated[list[str] | None, typer.Option(help="Serve this client; may be repeated.")] = None,
    seats: Annotated[int | None, typer.Option(help="Serve this many free clients of the site.")] = None,
    federation_dir: Annotated[
        Path | None, typer.Option(help="Directory with directory.signed, enrolment.pub and clients/<id>.key.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Holds one state directory per client.")] = None,
) -> None:
    """Train whenever the coordinator asks, until SIGTERM.

    A worker that is stopped or killed goes on from its state directory when it is started again.
    """
    settings = WorkerSettings.load(
        config, clients=client or None, seats=seats, federation_dir=federation_dir, state_dir=state_dir
    )
    configure_logging(settings.log_format, settings.log_level)
    run_worker(settings)


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
