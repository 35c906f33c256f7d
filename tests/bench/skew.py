"""What does label skew cost, and does FedProx help? `python -m tests.bench.skew [SEEDS]` prints the table of the docs.

A seed fixes partition, initial weights and training; which coordinates each round sends is drawn anew in every run.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

import torch
from rich.console import Console

from deploy.demo.options import DemoOptions
from deploy.demo.report import Run
from deploy.demo.simulation import Simulation

PARTITIONS = ("dirichlet:0.5", "labels:2", "labels:1")
PROXIMAL_MUS = (0.0, 0.01, 0.1)
SEEDS = 6
GOAL = 0.85


def accuracies(partition: str, proximal_mu: float, seed: int) -> list[float]:
    """Held-out accuracy by version of a run with the defaults otherwise: 20 clients, 30 rounds."""
    run = Run("memory", "in-process")
    for note in Simulation(DemoOptions(partition=partition, proximal_mu=proximal_mu, seed=seed)).run():
        run.hear(note.event, note.fields)
    return [one["accuracy"] for one in run.rounds]


def rows(seeds: int) -> Iterator[str]:
    """The table's lines, each when it is done."""
    yield "| partition | mu | accuracy, mean and deviation | least, most | rounds to 85 % |"
    yield "|---|---|---|---|---|"
    for partition in PARTITIONS:
        for proximal_mu in PROXIMAL_MUS:
            runs = [accuracies(partition, proximal_mu, seed) for seed in range(seeds)]
            final = [100 * run[-1] for run in runs]
            reached = sorted(
                next((version for version, value in enumerate(run, 1) if value >= GOAL), len(run) + 1) for run in runs
            )
            median = reached[len(reached) // 2]
            yield (
                f"| `{partition}` | {proximal_mu:g} | {statistics.mean(final):.1f} ± {statistics.stdev(final):.1f} % "
                f"| {min(final):.1f}, {max(final):.1f} % | {median if median <= len(runs[0]) else 'more than 30'} |"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS):
        Console().print(row, soft_wrap=True, highlight=False, markup=False)
