"""`comitia pause`, `resume`, `stop`: steer a run from another terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from deploy.run_control import steer
from shared.crypto.signing import load_signing_key
from shared.directory import COORDINATOR_KEY_FILE
from shared.membership import load_membership
from shared.settings import ProcessSettings
from shared.transport.rabbitmq import RabbitMqTransport
from shared.wire.log_messages import RunEntry
from shared.wire.messages import RunState

_Config = Annotated[
    Path | None, typer.Option(help="TOML file with the broker's settings; the environment wins over it.")
]
_FederationDir = Annotated[
    Path | None, typer.Option(help="Directory with directory.signed, enrolment.pub and coordinator.key.")
]
_Timeout = Annotated[float, typer.Option("--timeout", min=1, help="How long to wait for the coordinator (seconds).")]

TIMEOUT_S = 30.0


def pause(config: _Config = None, federation_dir: _FederationDir = None, timeout_s: _Timeout = TIMEOUT_S) -> None:
    """Pause a run: a draw under way is finished, then nobody trains, until `comitia resume`.

    A pause is part of the model log: it also holds for a coordinator that is started again.
    """
    entry = _steer(RunState.PAUSED, config, federation_dir, timeout_s)
    typer.echo(f"paused at version {entry.version}; `comitia resume` goes on")


def resume(config: _Config = None, federation_dir: _FederationDir = None, timeout_s: _Timeout = TIMEOUT_S) -> None:
    """Let a paused run go on, or call a stop off that has not come to its end."""
    entry = _steer(RunState.RUNNING, config, federation_dir, timeout_s)
    typer.echo(f"running at version {entry.version}")


def stop(config: _Config = None, federation_dir: _FederationDir = None, timeout_s: _Timeout = TIMEOUT_S) -> None:
    """End a run after the round under way, as if its rounds were done: the model is kept, the coordinator exits with 0.

    The federation can be continued by starting its coordinator again.
    """
    entry = _steer(RunState.STOPPING, config, federation_dir, timeout_s)
    typer.echo(f"stopping at version {entry.version}: the round under way is finished, then the coordinator ends")


def mount(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (pause, resume, stop):
        app.command()(command)


def _steer(run: RunState, config: Path | None, federation_dir: Path | None, timeout_s: float) -> RunEntry:
    settings = ProcessSettings.load(config, federation_dir=federation_dir)
    return steer(
        load_membership(settings.federation_dir),
        load_signing_key(settings.federation_dir / COORDINATOR_KEY_FILE),
        lambda sink, name: RabbitMqTransport(settings.broker, sink, name=name),
        run,
        issued_us=time.time_ns() // 1000,
        timeout_s=timeout_s,
    )
