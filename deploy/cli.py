"""The `comitia` command: every subcommand in one place, and errors as one line with an exit code."""

from __future__ import annotations

import errno
import os
import sys

import typer
from dotenv import load_dotenv

from coordinator.cli import coordinator
from coordinator.settings import CoordinatorSettings
from deploy.commands import keys, run_control
from deploy.commands.definitions import definitions
from deploy.commands.export import export
from deploy.commands.plan import plan
from deploy.commands.settings import settings
from deploy.demo.cli import attacking_worker, demo, doomed_worker, simulate
from deploy.inspect import cli as inspect_cli
from deploy.stack import cli as stack_cli
from shared.errors import ComitiaError, SettingsError
from shared.settings import refuse_unknown_variables
from worker import cli as worker_cli
from worker.settings import WorkerSettings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Comitia: federated learning as a message-queue pipeline. Start with `comitia demo`.",
)
app.command()(demo)
app.command()(simulate)
stack_cli.mount(app)
run_control.mount(app)
app.command()(coordinator)
app.add_typer(worker_cli.app, name="worker")
app.add_typer(keys.app, name="keys")
app.add_typer(inspect_cli.app, name="inspect")
app.command()(plan)
app.command()(export)
app.command()(settings)
app.command()(definitions)
app.command("doomed-worker", hidden=True)(doomed_worker)
app.command("attacking-worker", hidden=True)(attacking_worker)


UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR})
"""What the system answers where a file or directory cannot be used, and could not after a restart either."""


def main() -> None:
    """Run the command line; a `ComitiaError`, or a place that cannot be used, is one line on standard error."""
    try:
        _read_env_file()
        refuse_unknown_variables(os.environ, (CoordinatorSettings, WorkerSettings))
        app(standalone_mode=True)
    except ComitiaError as error:
        typer.echo(f"comitia: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in UNUSABLE or error.filename is None:
            raise
        reason = f"{error.strerror}; choose another place, or make it usable for this user"
        typer.echo(f"comitia: {error.filename}: {reason}", err=True)
        sys.exit(SettingsError.exit_code)


def _read_env_file() -> None:
    """
    Raises:
        SettingsError: it is there, but cannot be read.
    """
    try:
        load_dotenv(".env")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env: cannot be read: {error}") from error
