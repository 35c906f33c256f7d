"""`comitia definitions`: what a broker's operator imports before a federation starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.federation_keys import load_keys
from shared.wire.topology import Names
from shared.wire.topology import definitions as definitions_of


def definitions(
    model_parameters: Annotated[int, typer.Option(min=1, help="How many parameters federate; sizes the streams.")],
    federation_dir: Annotated[Path, typer.Option(help="Directory with directory.signed and enrolment.pub.")] = Path(
        "federation"
    ),
    vhost: Annotated[str, typer.Option(help="The broker's virtual host.")] = "/",
) -> None:
    """Print a federation's exchanges, queues and permissions as RabbitMQ's definitions.json.

    The coordinator declares the same queues when it starts; import this first where sites have broker users of their
    own. The users themselves (`coordinator`, and one for each site) and their credentials are yours to make.
    """
    directory = load_keys(federation_dir).directory
    clients = {
        site: [client for client in directory.active_clients() if directory.clients[client].site == site]
        for site in directory.sites
    }
    users = {name: site.broker_user for name, site in directory.sites.items()}
    printed = definitions_of(Names(directory.federation), clients, 4 * model_parameters, vhost, users)
    typer.echo(json.dumps(printed, indent=2))
