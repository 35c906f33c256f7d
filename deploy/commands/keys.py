"""`comitia keys`: the commands that make and show a federation's keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deploy.federation_keys import FederationKeys, enroll_clients, init_keys, load_keys, numbered_names, revoke_clients
from shared.crypto.signing import read_secret_file
from shared.errors import SettingsError

app = typer.Typer(
    name="keys",
    help="Make and show the keys of a federation: enrolment key, coordinator's key, clients' keys, signed directory.",
    no_args_is_help=True,
)

_Dir = Annotated[Path, typer.Option("--dir", help="The directory that `comitia keys init` made.")]
_ClientNames = Annotated[
    list[str] | None, typer.Option("--client", help="Name of a client; may be repeated.", show_default=False)
]
_PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="A private file (mode 0600) with the passphrase of the enrolment key. Without it, the key is in clear.",
        show_default=False,
    ),
]


@app.command()
def init(
    federation: Annotated[str, typer.Option(help="Name of the federation; it prefixes every queue.")],
    out: Annotated[Path, typer.Option(help="Where to put the keys; must not hold any yet.")],
    passphrase_file: _PassphraseFile = None,
) -> None:
    """Make the enrolment key, the coordinator's key and an empty directory (number 1)."""
    keys = init_keys(out, federation, passphrase=_passphrase(passphrase_file))
    typer.echo(f"federation {federation} ({keys.directory.federation_id}) made in {out}")
    typer.echo(f"keep {keys.enrolment_key_file} away from the coordinator: who holds it decides who belongs")
    typer.echo(f"next: comitia keys enroll --dir {out} --site NAME --clients N")


@app.command()
def enroll(
    directory: _Dir,
    site: Annotated[str, typer.Option(help="The site (operator of workers) that the clients belong to.")],
    client: _ClientNames = None,
    clients: Annotated[
        int | None, typer.Option(help="Enroll this many, called client-001 and so on.", show_default=False)
    ] = None,
    broker_user: Annotated[
        str | None, typer.Option(help="The site's RabbitMQ user; default: the site's name.", show_default=False)
    ] = None,
    passphrase_file: _PassphraseFile = None,
) -> None:
    """Make keys for new clients, and the next directory, which names them."""
    if bool(client) == (clients is not None):
        raise SettingsError("give either --client NAME (may be repeated) or --clients N")
    keys = load_keys(directory)
    names = client or numbered_names(keys.directory, clients or 0)
    keys = enroll_clients(keys, site, names, broker_user=broker_user, passphrase=_passphrase(passphrase_file))
    typer.echo(f"{len(names)} clients enrolled at site {site}: {_abridged(names)}")
    typer.echo(_what_now(keys))


@app.command()
def revoke(directory: _Dir, client: _ClientNames = None, passphrase_file: _PassphraseFile = None) -> None:
    """Revoke clients for good, in the next directory. Their names are never given again."""
    if not client:
        raise SettingsError("give at least one --client NAME")
    keys = revoke_clients(load_keys(directory), client, passphrase=_passphrase(passphrase_file))
    typer.echo(f"{len(client)} clients revoked: {_abridged(client)}")
    typer.echo(_what_now(keys))


@app.command()
def show(directory: _Dir) -> None:
    """Verify the directory and show who belongs to the federation. Needs no private key."""
    keys = load_keys(directory)
    members = keys.directory
    typer.echo(f"federation   {members.federation} ({members.federation_id})")
    typer.echo(f"directory    number {members.number}, sha256 {members.digest().hex()}")
    typer.echo(f"coordinator  key {members.coordinator.fingerprint}")
    for name, site in sorted(members.sites.items()):
        own = sorted(client for client, entry in members.clients.items() if entry.site == name)
        typer.echo(f"site {name} (broker user {site.broker_user}): {len(own)} clients")
        for client in own:
            mark = "  REVOKED" if client in members.revoked else ""
            typer.echo(f"  {client}  key {members.clients[client].key[:16]}{mark}")


def _what_now(keys: FederationKeys) -> str:
    return (
        f"{keys.directory_file} has number {keys.directory.number}: put it in the place of the coordinator's, which "
        "takes it over while it runs; running workers read it in the model log"
    )


def _passphrase(path: Path | None) -> bytes | None:
    if path is None:
        return None
    passphrase = read_secret_file(path).rstrip(b"\r\n")
    if not passphrase:
        raise SettingsError(f"passphrase-file: {path} is empty")
    return passphrase


def _abridged(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{names[0]}, {names[1]}, … {names[-1]}"
