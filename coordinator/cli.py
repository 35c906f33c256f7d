"""`comitia coordinator`: run the coordinator of one federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.app import run_coordinator
from coordinator.settings import CoordinatorSettings
from shared.telemetry import configure_logging


def coordinator(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; the environment wins over it.")] = None,
    federation_dir: Annotated[
        Path | None, typer.Option(help="Directory with directory.signed, enrolment.pub and coordinator.key.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where best.safetensors and final.safetensors are written.")
    ] = None,
    roles: Annotated[
        str | None,
        typer.Option(
            help="What this process does, with commas between: scheduler, summing, aggregator.", show_default="all"
        ),
    ] = None,
    initial_weights: Annotated[
        Path | None, typer.Option(help="Parameters (safetensors) that a new federation starts from.")
    ] = None,
) -> None:
    """Run the coordinator of a federation until its rounds are done.

    With --roles summing it only adds up groups, beside the process that coordinates, until it is told to stop: start as
    many of these as secure sums need.

    A federation that exists already is continued at its present version; a finished one goes on if `round.rounds` is
    raised. SIGTERM ends the process cleanly; what it was doing is in the model log.
    """
    settings = CoordinatorSettings.load(
        config,
        federation_dir=federation_dir,
        output_dir=output_dir,
        roles=None if roles is None else [role.strip() for role in roles.split(",")],
        initial_weights=initial_weights,
    )
    configure_logging(settings.log_format, settings.log_level)
    run_coordinator(settings)
