"""`comitia demo` and `comitia simulate`: a whole federation, to look at."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from deploy.brokers import Broker, BrokerKind, choose_broker
from deploy.demo.attacker import Attacker
from deploy.demo.attacks import ATTACKS
from deploy.demo.display import Display, print_summary
from deploy.demo.doom import Doom, DoomedTraining, DoomedTransport
from deploy.demo.options import DemoOptions, takes_options
from deploy.demo.processes import Processes, keep_recent, refuse_unsound
from deploy.demo.report import Run, write_plot, write_report
from deploy.demo.simulation import Simulation
from shared.crypto.signing import load_verifying_key
from shared.directory import DIRECTORY_FILE, ENROLMENT_PUBLIC_FILE, load_directory
from shared.errors import ComitiaError
from shared.plan import Plan
from shared.settings import ProcessSettings
from shared.telemetry import configure_logging
from worker.app import make_trainer, prepare_training, run_worker, workload_of
from worker.settings import WorkerSettings
from worker.trainer import Deliver, Training, TrainingThread

PROJECT_DIR = Path(".comitia")
RUNS_KEPT = 5

Notes = Iterator[tuple[str, dict[str, Any]] | None]


@takes_options
def demo(
    options: DemoOptions,
    broker: Annotated[
        str, typer.Option(help="auto, memory, or an AMQP URL.", show_default="the settings' URL, else auto")
    ] = "",
) -> None:
    """Train one model with many clients over RabbitMQ, on this machine, and watch.

    Starts a broker if needed, then one coordinator and some worker processes, and ends all of them.
    """
    console = Console()
    requested = broker or _url_of_settings() or "auto"
    refuse_unsound(options)
    with _sigterm_ends_in_order(), _broker(requested, console) as chosen:
        run = Run(chosen.kind.value, chosen.version)
        if chosen.kind is BrokerKind.MEMORY:
            follow(console, options, run, _simulated(options))
            return
        runs = (PROJECT_DIR / "demo").absolute()
        keep_recent(runs, RUNS_KEPT - 1)
        # Two may start in the same second.
        directory = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        with Processes(options, chosen, directory) as started:
            console.print(f"logs: {started.directory}", style="dim", highlight=False, soft_wrap=True)
            how = f"comitia pause {started.operator_options}  (or resume, or stop)"
            console.print(f"from another terminal: {how}", style="dim", highlight=False, soft_wrap=True)
            follow(console, options, run, _logged(started))


@takes_options
def simulate(options: DemoOptions) -> None:
    """Run the same federation in this one process, on the in-process broker and a virtual clock."""
    follow(Console(), options, Run(BrokerKind.MEMORY.value, "in-process"), _simulated(options))


def doomed_worker(
    phase: Annotated[str, typer.Option(help="training, offer or words.")],
    version: Annotated[int, typer.Option(help="Of the model.")],
) -> None:
    """Serve clients and die, by SIGKILL, at a chosen point (a part of `comitia demo --drop`)."""
    settings = WorkerSettings.load()
    configure_logging(settings.log_format, settings.log_level)
    doom = Doom(phase, version, _kill_this_process)
    run_worker(
        settings,
        prepare=lambda own, plan, deliver: DoomedTraining(prepare_training(own, plan, deliver), doom),
        wrap_transport=lambda transport, _: DoomedTransport(transport, doom),
    )


def attacking_worker(attack: Annotated[str, typer.Option(help=f"One of {', '.join(ATTACKS)}.")]) -> None:
    """Serve dishonest clients (a part of `comitia demo --attackers`)."""
    settings = WorkerSettings.load()
    configure_logging(settings.log_format, settings.log_level)
    folder = settings.federation_dir
    directory = load_directory(folder / DIRECTORY_FILE, load_verifying_key(folder / ENROLMENT_PUBLIC_FILE))
    honest = [client for client in directory.active_clients() if client not in settings.clients]
    attacker = Attacker(attack, settings.clients, honest, settings.seed or 0)

    def prepare(own: WorkerSettings, plan: Plan, deliver: Deliver) -> Training:
        trainer = make_trainer(own, plan, attacker.poison(workload_of(own, plan)))
        return TrainingThread(attacker.watch(trainer), deliver)

    run_worker(settings, prepare=prepare, encode=attacker.encode)


def follow(console: Console, options: DemoOptions, run: Run, notes: Notes) -> None:
    """Show a run as it goes, then its summary, report and plot.

    Raises:
        ComitiaError: the run failed; what there is of report and plot is written first, if it has begun.
    """
    try:
        with Display(console, run, options.version_count, options.clients) as display:
            for note in notes:
                if note is not None:
                    run.hear(*note)
                    display.hear(*note)
    finally:
        if run.plan:
            _conclude(console, options, run)
    if not run.finished:
        raise RunEnded(f"the run ended at version {len(run.rounds)} of {options.version_count}")


def _conclude(console: Console, options: DemoOptions, run: Run) -> None:
    print_summary(console, run)
    if options.report is not None:
        write_report(run, options.report)
    if options.plot is not None and run.rounds:
        write_plot(run, options.plot)


class RunEnded(ComitiaError):
    """A run ended before its planned rounds were done."""

    exit_code = 1


def _broker(requested: str, console: Console) -> Broker:
    """The broker to use; one line says which, and why."""
    chosen = choose_broker(requested, PROJECT_DIR / "broker", say=lambda line: console.print(line, style="dim"))
    console.print(f"broker: {chosen.reason}", highlight=False, soft_wrap=True)
    return chosen


@contextlib.contextmanager
def _sigterm_ends_in_order() -> Iterator[None]:
    """SIGTERM stops what was started, as Ctrl-C does, instead of ending us on the spot."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _simulated(options: DemoOptions) -> Notes:
    torch.set_num_threads(1)
    return ((note.event, note.fields) for note in Simulation(options).run())


def _logged(processes: Processes) -> Notes:
    return (None if line is None else (str(line["event"]), line) for line in processes.notes())


def _url_of_settings() -> str:
    """The broker URLs, if somebody set them."""
    settings = ProcessSettings.load()
    given = "broker_urls" in settings.model_fields_set
    return settings.broker_urls.get_secret_value() if given else ""


def _kill_this_process(delay_s: float) -> None:
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
