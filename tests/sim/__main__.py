"""`python -m tests.sim SEEDS` runs seeds over all cores and says what they covered: `shared/docs/simulation.md`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.sim.coverage import Coverage
from tests.sim.world import Outcome, run_seed

SEEDS_FOR_GAPS = 1_000
"""From so many seeds on, what was not covered is an error."""


def main(
    seeds: Annotated[str, typer.Argument(help="One seed (1234), a range (0-1999), or several of both, with commas.")],
    jobs: Annotated[int, typer.Option(help="Processes; 0: one for each core.", min=0)] = 0,
) -> None:
    """Run federations under faults, each decided by one integer, and check what must hold after every step."""
    numbers = list(parse_seeds(seeds))
    coverage, failures = Coverage(), list[Outcome]()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("seeds", total=len(numbers))
        for outcome in outcomes(numbers, jobs or os.cpu_count() or 1):
            coverage.add(outcome.coverage)
            if outcome.failure:
                failures.append(outcome)
                progress.console.print(f"seed {outcome.seed}: {outcome.failure}", markup=False, highlight=False)
            progress.advance(task)
    for line in report(numbers, coverage, failures):
        typer.echo(line)
    gaps = coverage.gaps() if len(numbers) >= SEEDS_FOR_GAPS else []
    raise typer.Exit(1 if failures or gaps else 0)


def parse_seeds(text: str) -> Iterator[int]:
    """The numbers that `SEEDS` names."""
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        try:
            yield from range(int(first), int(last or first) + 1)
        except ValueError as error:
            raise typer.BadParameter(f"{part!r} is neither a number nor a range like 0-1999") from error


def outcomes(seeds: list[int], jobs: int) -> Iterator[Outcome]:
    """Run seeds in so many processes; whichever is done comes first."""
    if jobs == 1 or len(seeds) == 1:
        yield from map(run_seed, seeds)
        return
    # A process that has run many seeds is no different from a new one, and a new one costs seconds.
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(seeds))) as pool:
        yield from pool.imap_unordered(run_seed, seeds)


def report(seeds: list[int], coverage: Coverage, failures: list[Outcome]) -> Iterator[str]:
    """What was covered, what was not, and for each failing seed its trace and how to see it again."""
    yield from coverage.lines()
    if len(seeds) >= SEEDS_FOR_GAPS:
        yield from (f"NOT COVERED: {gap}" for gap in coverage.gaps())
    for outcome in failures[:5] if len(seeds) > 1 else failures:
        yield ""
        yield f"seed {outcome.seed} ({outcome.summary})"
        yield from outcome.trace[-40:] if len(seeds) > 1 else outcome.trace
        yield f"seed {outcome.seed} FAILED: {outcome.failure}"
        yield f"again: make sim SEEDS={outcome.seed}"
    names = ", ".join(str(outcome.seed) for outcome in sorted(failures, key=lambda one: one.seed))
    yield f"{len(failures)} of {len(seeds)} seeds failed" + (f": {names}" if names else "")
    if len(seeds) == 1 and not failures:
        yield "nothing was violated"


if __name__ == "__main__":
    typer.run(main)
