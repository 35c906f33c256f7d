"""`comitia up`, `down`, `workers`, `scale`, `status`, `logs`: the local stack, in the background of this machine."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.brokers.choose import AUTO
from deploy.stack import control
from deploy.stack.files import Origin, Present, StackFiles, read_record
from deploy.stack.logs import read_logs
from deploy.stack.overview import overview, read_progress
from deploy.stack.preparing import CLIENTS, prepare
from shared.errors import SettingsError
from shared.settings import ProcessSettings
from worker.away import clients_away

STACK_DIR = Path(".comitia") / "stack"

_Count = Annotated[int, typer.Argument(help="How many worker processes; at most one per client.")]


def up(
    broker: Annotated[str, typer.Option(help="auto or an AMQP URL.", show_default="the settings' URL, else auto")] = "",
    clients: Annotated[
        int | None, typer.Option(help="How many clients to enroll.", show_default=f"{CLIENTS}, or those there are")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="How many model versions to make.", show_default="the settings' round.rounds")
    ] = None,
) -> None:
    """Start a broker and a coordinator in the background, with enrolled clients that wait for workers.

    A federation that is there from an earlier `up` is continued; with more --rounds also one that has
    finished. Settings come from the environment and .env, as for `comitia coordinator` and `comitia worker run`.
    """
    console, files = Console(), _files()

    def say(line: str) -> None:
        console.print(line, style="dim", highlight=False)

    with control.locked(files) as lock:
        files.begin()
        prepared = prepare(files, broker or _url_of_settings() or AUTO, clients, rounds, say)
        say("starting broker and coordinator")
        try:
            present = control.start(files, prepared.order, lock)
        except BaseException:
            if prepared.is_new:  # nothing was learnt, and other settings may be needed
                files.forget_federation()
            raise
    console.print(f"broker: {present.broker}", highlight=False)
    _say_how_far(console, files, prepared.origin)


def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove the federation too, with all it has learnt.")] = False,
) -> None:
    """Stop everything that `comitia up` started. The federation is kept for the next time."""
    console, files = Console(), _files()
    was_up = control.stop(files)
    console.print("the stack is down" if was_up else "the stack was not up")
    if purge and files.root.exists():
        with control.locked(files):
            files.forget_federation()
            shutil.rmtree(files.root)
        console.print("and its federation is gone")


def workers(count: _Count = 8) -> None:
    """Start worker processes that share the clients out among themselves."""
    files = _files()
    running = _workers(control.present(files))
    if running:
        raise control.StackError(f"there are {running} workers already; `comitia scale N` changes their number")
    _set_workers(files, count, least=1)


def scale(count: _Count) -> None:
    """Change the number of worker processes while the federation learns.

    Workers that stay are not restarted: they give clients to new ones, and take those of the ones that end.
    """
    files = _files()
    control.present(files)
    _set_workers(files, count, least=0)


def status() -> None:
    """Show how far the federation is, and its processes."""
    files = _files()
    present, progress = control.present(files), read_progress(files.log("coordinator"))
    picture = overview(present, progress, _origin(files).clients, clients_away(files.state))
    Console().print(picture, highlight=False)


def logs(
    lines: Annotated[int, typer.Option(min=0, help="How many of each process's last lines to begin with.")] = 10,
    follow: Annotated[bool, typer.Option(help="Go on with what comes, while the stack is up.")] = True,
) -> None:
    """Show what the processes log; Ctrl-C ends it."""
    files = _files()
    if not files.logs.exists():
        raise control.StackError("there are no logs; start the stack with `comitia up`")
    with contextlib.suppress(KeyboardInterrupt):
        for line in read_logs(files.logs, lines, lambda: follow and control.is_up(files)):
            typer.echo(line)


def mount(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (up, down, workers, scale, status, logs):
        app.command()(command)


def _set_workers(files: StackFiles, count: int, *, least: int) -> None:
    clients = _origin(files).clients
    if not least <= count <= clients:
        raise SettingsError(f"workers: must be {least} to the number of clients ({clients}), not {count}")
    present = control.set_workers(files, count, clients)
    served = sum(len(one.clients) for one in present.processes)
    running = _workers(present)
    Console().print(f"{running} worker{'' if running == 1 else 's'}, {served} clients served", highlight=False)


def _workers(present: Present) -> int:
    return sum(1 for one in present.processes if one.name != "coordinator" and one.state != "stopping")


def _say_how_far(console: Console, files: StackFiles, origin: Origin) -> None:
    progress = read_progress(files.log("coordinator"))
    console.print(
        f"federation {origin.federation}: {origin.clients} clients, version {progress.version} of {progress.rounds}",
        highlight=False,
    )
    if progress.version == progress.rounds:
        console.print("it is finished; `comitia down --purge` makes room for a new one")
    else:
        console.print("the coordinator waits for clients; `comitia workers N` starts workers")


def _origin(files: StackFiles) -> Origin:
    origin = read_record(files.origin, Origin)
    if origin is None:
        raise control.StackError("the stack is not up; start it with `comitia up`")
    return origin


def _files() -> StackFiles:
    return StackFiles(STACK_DIR.absolute())


def _url_of_settings() -> str:
    """The broker URLs, if somebody set them."""
    settings = ProcessSettings.load()
    given = "broker_urls" in settings.model_fields_set
    return settings.broker_urls.get_secret_value() if given else ""
