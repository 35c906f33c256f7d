"""`make chaos`: a federation over a real RabbitMQ while everything is killed, frozen and restarted; then the checks."""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.brokers.private_node import find_programs
from shared.errors import BrokerUnavailable
from tests.chaos.run import KILLS_PER_MINUTE, progress, run_chaos, run_undisturbed

POINTS_MAX = 0.02


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="how long to disturb it")] = 5.0,
    seed: Annotated[int | None, typer.Option(help="what is done to whom and when", show_default="random")] = None,
    private: Annotated[bool, typer.Option(help="with record-level privacy")] = False,
    keep: Annotated[Path | None, typer.Option(help="keep logs and state here; the directory must not exist")] = None,
) -> None:
    """Disturb a federation, check what must hold, and compare with a run that nobody disturbs."""
    try:
        find_programs()
    except BrokerUnavailable as error:
        raise SystemExit(f"make chaos kills its broker, so it needs a node of its own: {error}") from error
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    console, began = Console(highlight=False), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="comitia-chaos-") as scratch:
        root = keep or Path(scratch)
        console.print(f"SEED={seed}  {minutes:g} minutes, record-level privacy {'on' if private else 'off'}")
        outcome = run_chaos(
            root, 60 * minutes, seed, lambda text: console.print(progress(began), text), private=private
        )
        console.print(f"{outcome.kills} kills:", outcome.deeds)
        console.print(outcome.figures)
        for text in outcome.unexpected:
            console.print(text, markup=False)
        console.print(f"an undisturbed run of {outcome.versions} versions, to compare …")
        undisturbed = run_undisturbed(root, outcome.versions, private)
    console.print(f"accuracy {outcome.accuracy:.2%}, undisturbed {undisturbed:.2%}")
    wrong = [
        *(["processes ended by themselves"] if outcome.unexpected else []),
        *(["fewer kills than there should be"] if outcome.kills < KILLS_PER_MINUTE * minutes else []),
        *(["it learnt less than undisturbed"] if outcome.accuracy < undisturbed - POINTS_MAX else []),
    ]
    console.print("; ".join(wrong) if wrong else "everything holds")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
