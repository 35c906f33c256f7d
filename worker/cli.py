"""`comitia worker`: serve clients of a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.telemetry import configure_logging
from worker.app import run_worker
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
