"""`comitia plan`: what a coordinator would sign with these settings, and what that would cost and bear."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from coordinator.dry_run import DryRun, foresee
from coordinator.presets import preset_of, with_preset
from coordinator.settings import CoordinatorSettings, plan_of
from deploy.sizes import attacked_text, odds_text, saving_text, size_text
from shared.crypto.signing import SigningKey, load_verifying_key
from shared.directory import DIRECTORY_FILE, ENROLMENT_PUBLIC_FILE, Directory, load_directory
from shared.errors import SettingsError
from shared.plan import Plan
from shared.privacy.accountant import epsilon_of
from shared.workloads.loading import load_workload

NOT_YET = "not-yet-made"
"""The federation of a plan for which there are no keys."""


def plan(
    check: Annotated[bool, typer.Option("--check", help="Print a dry run: sizes, memory, odds, deadlines.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run as JSON; with --check.")] = False,
    clients: Annotated[
        int | None, typer.Option(min=1, help="For this many clients.", show_default="those of the directory")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; the environment wins over it.")] = None,
    federation_dir: Annotated[
        Path | None, typer.Option(help="Directory with directory.signed and enrolment.pub; not needed with --clients.")
    ] = None,
    workload: Annotated[str | None, typer.Option(help="A built-in workload, or package.module:object.")] = None,
) -> None:
    """Print the plan that a coordinator would sign with these settings, as JSON, or with --check a dry run of it.

    Nothing is started and no broker is needed. What the coordinator would refuse is refused here, with exit code 2.
    """
    if as_json and not check:
        raise SettingsError("json: the plan itself is JSON already; add --check for the dry run")
    settings = CoordinatorSettings.load(config, federation_dir=federation_dir, workload=workload)
    directory = _directory(settings.federation_dir, clients)
    settings = with_preset(settings)
    made = plan_of(settings, directory, load_workload(settings.workload, settings.workload_options))
    foreseen = foresee(made, clients or len(directory.active_clients()))
    if not check:
        typer.echo(json.dumps(made.model_dump(mode="json"), indent=2, sort_keys=True))
    elif as_json:
        typer.echo(json.dumps({"federation": made.federation, **dataclasses.asdict(foreseen)}, indent=2))
    else:
        preset = preset_of(settings)
        _show(Console(), made, foreseen, "" if preset is None else preset.name)


def _directory(folder: Path, clients: int | None) -> Directory:
    """The federation's directory; without one but with a number of clients, the directory of nobody.

    Raises:
        SettingsError: neither is there.
        DirectoryError: it does not verify.
    """
    if (folder / DIRECTORY_FILE).exists():
        return load_directory(folder / DIRECTORY_FILE, load_verifying_key(folder / ENROLMENT_PUBLIC_FILE))
    if clients is None:
        raise SettingsError(f"clients: there is no {folder / DIRECTORY_FILE}; give --clients N, or --federation-dir")
    key = SigningKey.from_seed(bytes(32)).public.raw.hex()
    return Directory(federation=NOT_YET, federation_id=UUID(int=0), number=1, coordinator_key=key)


def _show(console: Console, made: Plan, run: DryRun, preset: str) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in [*_rows(made, run), *privacy_rows(made, run, preset)]:
        table.add_row(name, text)
    console.print(table, highlight=False)
    for warning in run.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def _rows(made: Plan, run: DryRun) -> list[tuple[str, str]]:
    rule = made.aggregation
    drawn = "" if run.drawn == run.clients else f", {run.drawn} of them in a round"
    return [
        ("federation", made.federation),
        ("clients", f"{run.clients}{drawn}; a draw needs {run.min_offers} offers"),
        ("model", f"{made.workload}: {run.dimension} values federate, {size_text(run.dense_bytes_up)}"),
        ("update", f"{run.values_per_update} values of {run.bits} bits, clipped to a norm of {run.clipping_norm:.3g}"),
        ("evaluation", _evaluation(made, run)),
        (
            "per update up",
            f"{size_text(run.update_bytes_up)}, of these {run.offer_bytes} B for the offer"
            + (f" and {size_text(run.group_bytes)} for the group; " if run.group_bytes else "; ")
            + f"float32 and dense {size_text(run.dense_bytes_up)}: "
            + saving_text(run.update_bytes_up, run.dense_bytes_up),
        ),
        ("per version down", f"{size_text(run.change_bytes_down)} for each worker process"),
        ("to join", f"a snapshot of {size_text(run.snapshot_bytes_down)}"),
        (
            f"{run.rounds} rounds",
            f"{size_text(run.run_bytes_up)} from all clients, {size_text(run.run_bytes_log)} into the model log",
        ),
        ("stream at the broker", f"at most {size_text(run.log_stream_bytes_max)} for the model log"),
        ("coordinator memory", f"about {size_text(run.coordinator_memory_bytes)} of vectors"),
        (
            "worker memory",
            f"about {size_text(run.worker_memory_bytes)} of vectors, and {size_text(run.seat_memory_bytes)} per client",
        ),
        ("rule", f"{rule.rule}, trim {rule.trim}, gates {'on' if rule.gates else 'off'}"),
        ("groups", f"{run.groups} of up to {run.members} members; {run.quorum} sums make a step"),
        ("in a group", _in_a_group(made, run)),
        (attacked_text(rule.trim), odds_text(run.attack_odds)),
        (
            "deadlines",
            f"round {run.round_deadline_s:g} s, group step {run.group_step_s:g} s, sums {run.sums_deadline_s:g} s; "
            f"a client is lost after {run.client_silent_s:g} s of silence",
        ),
    ]


def _in_a_group(made: Plan, run: DryRun) -> str:
    if made.group_size == 1:
        return "nothing is masked: the coordinator sees every update"
    return (
        f"{run.threshold} of {run.members} must answer, so {run.members - run.threshold} may be lost; "
        f"{made.max_colluders} may side with the coordinator; no sum of fewer than "
        f"{made.summed_floor(run.members)} updates is opened"
    )


def privacy_rows(made: Plan, run: DryRun, preset: str) -> list[tuple[str, str]]:
    """What privacy costs, if there is any."""
    privacy, noise, summed = made.privacy, made.record_noise, made.client_noise
    if summed is not None:
        return _sum_rows(made, run, preset)
    if noise is None or run.epsilon_run is None:
        return [("privacy", "off: updates show what clients' records say")]
    return [
        ("privacy", f"one record of a client; preset {preset or 'none'}"),
        (
            "epsilon",
            f"{run.epsilon_round:.3g} per round, {run.epsilon_run:.3g} after {run.rounds} rounds, at delta "
            f"{privacy.delta:g}, for a client that takes part in all",
        ),
        (
            "noise",
            f"{noise.multiplier:.3g} times the clip of {noise.gradient_norm:.3g}; over the signal "
            f"{run.noise_over_signal_group:.2g} in a group mean, {run.noise_over_signal_aggregate:.2g} in that of all",
        ),
        (
            "training",
            f"{noise.steps} steps per round, records sampled at {noise.sampling_rate:g}, lr {noise.rate:g}, "
            f"sums divided by {noise.records:g}",
        ),
    ]


def _sum_rows(made: Plan, run: DryRun, preset: str) -> list[tuple[str, str]]:
    noise, charge, delta = made.client_noise, made.charge_of_run(), made.privacy.delta
    assert noise is not None
    assert charge is not None
    assert delta is not None
    alone = epsilon_of(Counter({charge: run.rounds}), delta, alone=True)
    return [
        ("privacy", f"a whole client; preset {preset or 'none'}"),
        (
            "epsilon",
            f"{run.epsilon_round:.3g} per round, {run.epsilon_run:.3g} after {run.rounds} rounds, at delta {delta:g}, "
            f"for a client that takes part in all; {alone:.3g} if all other members of its groups collude",
        ),
        (
            "noise",
            f"{noise.multiplier:.3g} times the clip of {run.clipping_norm:.3g}, from any {made.noising(run.members)} "
            f"members of {run.members}; over the signal {run.noise_over_signal_group:.2g} in a group mean, "
            f"{run.noise_over_signal_aggregate:.2g} in that of all",
        ),
    ]


def _evaluation(made: Plan, run: DryRun) -> str:
    watched = "the clients' means" if made.steering.watch == "clients" else "the coordinator's held-out data"
    if run.validation_records_min is None:
        return f"clients measure nothing; steering watches {watched}"
    return (
        f"each client of {run.validation_records_min} or more records measures the model it receives on "
        f"{made.evaluation.client_share:.0%} of them, {run.validation_words} words of an update; "
        f"steering watches {watched}"
    )
