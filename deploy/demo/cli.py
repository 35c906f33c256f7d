"""`comitia demo` and `comitia simulate`: a whole federation, to look at."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from deploy.brokers import BrokerKind, choose_broker
from deploy.demo.display import Display, print_summary
from deploy.demo.doom import Doom, DoomedTraining, DoomedTransport
from deploy.demo.options import DemoOptions
from deploy.demo.processes import Processes, keep_recent
from deploy.demo.report import Run, write_plot, write_report
from deploy.demo.simulation import Simulation
from shared.errors import ComitiaError
from shared.settings import ProcessSettings
from shared.telemetry import configure_logging
from worker.app import run_worker
from worker.settings import WorkerSettings
from worker.trainer import TrainingThread

PROJECT_DIR = Path(".comitia")
RUNS_KEPT = 5

Notes = Iterator[tuple[str, dict[str, Any]] | None]

_Workload = Annotated[str, typer.Option(help="A built-in workload (digits) or package.module:object.")]
_Clients = Annotated[int, typer.Option(help="How many clients hold a share of the data.")]
_Processes = Annotated[int, typer.Option(help="How many worker processes serve them.")]
_Rounds = Annotated[int, typer.Option(help="How many model versions to make.")]
_Partition = Annotated[str, typer.Option(help="How the data are shared out: iid or dirichlet:ALPHA.")]
_Density = Annotated[float, typer.Option(help="Share of the coordinates in one update; 1 is dense.")]
_Robust = Annotated[str, typer.Option(help="How group means become one: trimmed-mean or mean.")]
_Trim = Annotated[
    int | None, typer.Option(help="Groups trimmed at each end of each coordinate.", show_default="1; 0 with mean")
]
_Drop = Annotated[int, typer.Option(help="How many clients are killed at version ROUNDS/3.")]
_DropAt = Annotated[
    str | None, typer.Option(help="Where they are: training, offer or words.", show_default="one after the other")
]
_Seed = Annotated[int, typer.Option(help="Of the partition, the initial weights, training and rounding.")]
_Report = Annotated[Path | None, typer.Option(help="Write a JSON report to this file.", show_default=False)]
_Plot = Annotated[Path | None, typer.Option(help="Draw the curves to this PNG file.", show_default=False)]


def demo(
    broker: Annotated[
        str, typer.Option(help="auto, memory, or an AMQP URL.", show_default="the settings' URL, else auto")
    ] = "",
    workload: _Workload = "digits",
    clients: _Clients = 20,
    processes: _Processes = 4,
    rounds: _Rounds = 30,
    partition: _Partition = "dirichlet:1.0",
    density: _Density = 0.1,
    robust: _Robust = "trimmed-mean",
    trim: _Trim = None,
    drop: _Drop = 0,
    drop_at: _DropAt = None,
    seed: _Seed = 0,
    report: _Report = None,
    plot: _Plot = None,
) -> None:
    """Train one model with many clients over RabbitMQ, on this machine, and watch.

    Starts a broker if needed, then one coordinator and some worker processes, and ends all of them.
    """
    options = DemoOptions(
        workload=workload,
        clients=clients,
        processes=min(processes, clients),
        rounds=rounds,
        partition=partition,
        density=density,
        robust=robust,
        trim=trim,
        drop=drop,
        drop_at=drop_at,
        seed=seed,
        report=report,
        plot=plot,
    )
    console = Console()
    requested = broker or _url_of_settings() or "auto"
    with choose_broker(requested, PROJECT_DIR / "broker", say=lambda line: console.print(line, style="dim")) as chosen:
        console.print(f"broker: {chosen.reason}", highlight=False)
        run = Run(chosen.kind.value, chosen.version)
        if chosen.kind is BrokerKind.MEMORY:
            follow(console, options, run, _simulated(options))
            return
        runs = (PROJECT_DIR / "demo").absolute()
        keep_recent(runs, RUNS_KEPT - 1)
        with Processes(options, chosen, runs / time.strftime("%Y%m%d-%H%M%S")) as started:
            console.print(f"logs: {started.directory}", style="dim", highlight=False)
            follow(console, options, run, _logged(started))


def simulate(
    workload: _Workload = "digits",
    clients: _Clients = 20,
    processes: _Processes = 4,
    rounds: _Rounds = 30,
    partition: _Partition = "dirichlet:1.0",
    density: _Density = 0.1,
    robust: _Robust = "trimmed-mean",
    trim: _Trim = None,
    drop: _Drop = 0,
    drop_at: _DropAt = None,
    seed: _Seed = 0,
    report: _Report = None,
    plot: _Plot = None,
) -> None:
    """Run the same federation in this one process, on the in-process broker and a virtual clock."""
    options = DemoOptions(
        workload=workload,
        clients=clients,
        processes=min(processes, clients),
        rounds=rounds,
        partition=partition,
        density=density,
        robust=robust,
        trim=trim,
        drop=drop,
        drop_at=drop_at,
        seed=seed,
        report=report,
        plot=plot,
    )
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
        make_training=lambda trainer, deliver: DoomedTraining(TrainingThread(trainer, deliver), doom),
        wrap_transport=lambda transport, _: DoomedTransport(transport, doom),
    )


def follow(console: Console, options: DemoOptions, run: Run, notes: Notes) -> None:
    """Show a run as it goes, then its summary, report and plot.

    Raises:
        ComitiaError: the run failed; what there is of report and plot is written first.
    """
    try:
        with Display(console, run, options.rounds) as display:
            for note in notes:
                if note is not None:
                    run.hear(*note)
                    display.hear(*note)
    finally:
        print_summary(console, run)
        if options.report is not None:
            write_report(run, options.report)
        if options.plot is not None and run.rounds:
            write_plot(run, options.plot)
    if not run.finished:
        raise RunEnded(f"the run ended at version {len(run.rounds)} of {options.rounds}")


class RunEnded(ComitiaError):
    """A run ended before its planned rounds were done."""

    exit_code = 1


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
