"""`comitia export`: the present model of a federation as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.settings import CoordinatorSettings
from deploy.log_export import agreed_workload, read_model, write_export
from shared.errors import SettingsError
from shared.membership import load_membership
from shared.transport.rabbitmq import RabbitMqTransport


def export(
    out: Annotated[Path, typer.Option(help="Where to write model.safetensors and plan.json.")] = Path("export"),
    workload: Annotated[
        str | None, typer.Option(help="The plan's workload, whose code is imported.", show_default="the settings'")
    ] = None,
    federation_dir: Annotated[Path | None, typer.Option(help="Directory with directory.signed, enrolment.pub.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with a coordinator's settings.")] = None,
) -> None:
    """Write the present model of a federation, read from its log at the broker, and its plan.

    Only listens: needs a broker user that may read the log, and no private key. Every signature, the hash chain and the
    weights are verified. The log has ended when nothing has come for a second, or what was written since has begun.
    """
    settings = CoordinatorSettings.load(config, federation_dir=federation_dir, workload=workload)
    folder = settings.federation_dir
    members = load_membership(folder)
    directory = members.directory
    found = read_model(
        members,
        lambda sink, name: RabbitMqTransport(settings.broker, sink, name=name),
        patience_s=settings.broker_start_timeout_s,
    )
    made = agreed_workload(found.plan, settings.workload)
    try:
        model, plan = write_export(found, made, out)
    except OSError as error:
        raise SettingsError(f"out: {out} cannot be written: {error}") from error
    typer.echo(f"{model}: version {found.chain.version} of federation {directory.federation}")
    typer.echo(f"weights sha256 {found.chain.weights_sha256.hex()}, log head {found.chain.head.hex()}, plan in {plan}")
