"""What `comitia demo` and `comitia simulate` can be asked for, and the settings that it becomes."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

from coordinator.settings import EPSILON, CoordinatorSettings
from deploy.demo.attacks import ATTACKS
from deploy.demo.doom import DROP_PHASES, SECURE_PHASES
from deploy.federation_keys import CLIENTS_PER_COMMAND_MAX
from shared.errors import SettingsError
from shared.plan_sections import SERVER_PRESETS, STALENESS_MAX
from shared.workloads.batches import example_count
from shared.workloads.loading import BUILT_IN, find_preset, load_workload
from shared.workloads.partition import PARTITIONS
from worker.policy import Policy

CLIENTS_MAX = CLIENTS_PER_COMMAND_MAX
ROUNDS = 30
STILL = "still"
"""The built-in workload that trains nothing."""

ATTACK = "sign-flip"
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
LEVELS = ("off", "record", "client")
ROUND_DEADLINE_S = 10.0
GROUP_STEP_S = 5.0
STATUS_INTERVAL_S = 4.0


@dataclass(frozen=True, slots=True)
class Share:
    """The clients of one worker process, and what is wrong with them, if anything."""

    clients: tuple[str, ...]
    doomed_in: str | None = None
    attacks: bool = False


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """One demonstration run; the fields are also the command line's options.

    `privacy` selects a preset of the workload (`coordinator.presets`): model, rounds, learning rate, coordinates.
    `trim` None means 1 where the rule trims, and 0 where it does not; `selection` None means random, but dense at a
    density of 1.
    """

    workload: Annotated[str, Option(help=f"A built-in workload ({', '.join(BUILT_IN)}) or package.module:object.")] = (
        "digits"
    )
    clients: Annotated[int, Option(help="How many clients hold a share of the data.")] = 20
    processes: Annotated[int, Option(help="How many worker processes serve them, at most.")] = 4
    mode: Annotated[
        str,
        Option(
            help="sync (rounds that wait for everybody) or async (a step whenever a pool of updates is full; clients "
            "train on, and older updates count less)."
        ),
    ] = "sync"
    pool_size: Annotated[
        int | None,
        Option(help="Offers that a draw waits for, with async.", show_default="what a draw needs, or clients/6"),
    ] = None
    max_staleness: Annotated[
        int | None,
        Option(help="How many versions old an update may be, with async.", show_default=str(STALENESS_MAX)),
    ] = None
    cooldown: Annotated[
        int | None,
        Option(
            help="After how many versions a client may be drawn again, with async.",
            show_default="clients/(2 pool_size), at least 1",
        ),
    ] = None
    rounds: Annotated[
        int | None, Option(help="How many model versions to make.", show_default="30, or the preset's of privacy")
    ] = None
    privacy: Annotated[
        str,
        Option(
            help="Whose part nobody can tell: off, record (one record's, from an update), or client (a whole client's, "
            "from a sum; wants hundreds of clients in one)."
        ),
    ] = "off"
    epsilon: Annotated[
        float | None,
        Option(help="What all rounds together may cost a client; less is more private.", show_default="8"),
    ] = None
    delta: Annotated[float | None, Option(help="At this delta.", show_default="0.0001")] = None
    partition: Annotated[str, Option(help=f"How the data are shared out: {PARTITIONS}.")] = "dirichlet:1.0"
    density: Annotated[
        float | None,
        Option(help="Share of the coordinates in one update; 1 is dense.", show_default="0.1; 1 with dense"),
    ] = None
    selection: Annotated[
        str | None,
        Option(
            help="Which coordinates: random, restricted (training moves only these), top_k (each its own) or dense.",
            show_default="random; dense at density 1",
        ),
    ] = None
    group_size: Annotated[
        int, Option(help="Clients per group, whose updates are summed before anybody sees them; 1 shows each update.")
    ] = 4
    max_colluders: Annotated[
        int, Option(help="Members of a group who may side with the coordinator without harm to the others.")
    ] = 1
    robust: Annotated[
        str, Option(help="How group means become one: nnm-trimmed-mean, trimmed-mean, median or mean.")
    ] = "nnm-trimmed-mean"
    trim: Annotated[
        int | None,
        Option(help="Groups trimmed at each end of each coordinate.", show_default="1; 0 with mean and median"),
    ] = None
    gates: Annotated[str, Option(help="Drop sums that no honest group can send: on or off.")] = "on"
    attackers: Annotated[int, Option(help="How many clients are dishonest.")] = 0
    attack: Annotated[str | None, Option(help=f"What these do: {', '.join(ATTACKS)}.", show_default=ATTACK)] = None
    server: Annotated[str, Option(help=f"The server's optimizer: {', '.join(SERVER_PRESETS)}.")] = "fedavg"
    proximal_mu: Annotated[float, Option(help="FedProx: holds training near the global weights; 0 is off.")] = 0.0
    schedule: Annotated[
        str, Option(help="Server's learning rate by version: constant, cosine, or step:N (halved every N).")
    ] = "constant"
    plateau: Annotated[int, Option(help="Halve it after so many versions without a better one; 0 never.")] = 0
    stop_after: Annotated[int, Option(help="End after so many versions without a better one; 0 never.")] = 0
    validation: Annotated[
        float, Option(help="Share of its records on which each client measures the model it receives; 0 is off.")
    ] = 0.0
    watch: Annotated[
        str | None,
        Option(
            help="Whose evaluations steer: held_out (the coordinator's data) or clients.",
            show_default="held_out, if there are such data",
        ),
    ] = None
    ema: Annotated[
        float | None,
        Option(
            help="Evaluate a moving average of the versions with this decay; 0 is off.",
            show_default="0, or the preset's of privacy",
        ),
    ] = None
    drop: Annotated[int, Option(help="How many clients are killed at version ROUNDS/3.")] = 0
    drop_at: Annotated[
        str | None, Option(help=f"Where they are: {', '.join(DROP_PHASES)}.", show_default="one after the other")
    ] = None
    float_buffers: Annotated[
        bool, Option(help="Float buffers, such as BatchNorm's statistics, federate too; needs density 1.")
    ] = False
    seed: Annotated[int, Option(help="Of the partition, the initial weights, training, rounding, and noise.")] = 0
    initial_weights: Annotated[
        Path | None, Option(help="Parameters (safetensors) to start from.", show_default="the workload's own")
    ] = None
    report: Annotated[Path | None, Option(help="Write a JSON report to this file.", show_default=False)] = None
    plot: Annotated[
        Path | None, Option(help="Draw the curves to this file (.png, .pdf, .svg).", show_default=False)
    ] = None

    def __post_init__(self) -> None:
        """
        Raises:
            SettingsError: an option is out of bounds or contradicts another.
        """
        if not 1 <= self.clients <= CLIENTS_MAX:
            raise SettingsError(f"clients: must be 1 to {CLIENTS_MAX}, not {self.clients}")
        if self.processes < 1:
            raise SettingsError(f"processes: must be 1 or more, not {self.processes}")
        if self.gates not in ("on", "off"):
            raise SettingsError(f"gates: must be on or off, not {self.gates!r}")
        if not 0 <= self.attackers < self.clients:
            raise SettingsError(f"attackers: must be 0 to {self.clients - 1}, not {self.attackers}")
        if self.attack is not None and not self.attackers:
            raise SettingsError("attack has no effect without attackers; add --attackers K")
        if self.attack_or_default not in ATTACKS:
            raise SettingsError(f"attack: must be one of {', '.join(ATTACKS)}, not {self.attack!r}")
        if not 0 <= self.drop < self.clients - self.attackers:
            raise SettingsError(f"drop: must be 0 to {self.clients - self.attackers - 1}, not {self.drop}")
        if self.drop_at is not None and self.drop_at not in DROP_PHASES:
            raise SettingsError(f"drop-at: must be one of {', '.join(DROP_PHASES)}, not {self.drop_at!r}")
        if self.drop_at in SECURE_PHASES and self.group_size == 1:
            raise SettingsError(f"drop-at: a group of one has no {self.drop_at}; use another phase, or larger groups")
        if self.drop_at is not None and not self.drop:
            raise SettingsError("drop-at has no effect without drop; add --drop K")
        if self.privacy not in LEVELS:
            raise SettingsError(f"privacy: must be one of {', '.join(LEVELS)}, not {self.privacy!r}")
        if self.privacy == "off" and (self.epsilon, self.delta) != (None, None):
            raise SettingsError("epsilon and delta have no effect without privacy; add --privacy record")
        if self.drop and self.version_count < 3:
            raise SettingsError("drop: clients are dropped at version rounds/3; use at least 3 rounds")
        for name, path in (("report", self.report), ("plot", self.plot)):
            if path is not None:
                _check_writable(name, path.absolute())
        if self.plot is not None and self.plot.suffix.lower() not in PLOT_SUFFIXES:
            raise SettingsError(f"plot: {self.plot} must end in one of {', '.join(PLOT_SUFFIXES)}")

    @property
    def attack_or_default(self) -> str:
        """What dishonest clients do."""
        return self.attack or ATTACK

    @property
    def workload_options(self) -> dict[str, Any]:
        """Options of the built-in workloads that share out data; a workload from outside has its own defaults."""
        if ":" in self.workload or not self.trains:
            return {}
        return {"partition": self.partition, "clients": self.clients, "seed": self.seed}

    @property
    def trains(self) -> bool:
        """Whether there is anything to learn, so that accuracies mean something."""
        return self.workload != STILL

    @property
    def drop_version(self) -> int:
        """The version at which clients are killed."""
        return self.version_count // 3

    @property
    def version_count(self) -> int:
        """How many versions are planned."""
        if self.rounds is not None:
            return self.rounds
        preset = None
        if self.privacy != "off":
            preset = find_preset(self.workload, self.privacy, self.epsilon or EPSILON)
        return ROUNDS if preset is None else int(preset.sections.get("round", {}).get("rounds", ROUNDS))

    def shares(self, clients: tuple[str, ...]) -> list[Share]:
        """Who is served by which process: the shared ones, one for all attackers, one for each doomed client."""
        attacking = clients[: self.attackers]
        doomed = self._doomed(clients)
        healthy = [client for client in clients if client not in doomed and client not in attacking]
        processes = min(self.processes, len(healthy))
        shares = [Share(tuple(healthy[i::processes])) for i in range(processes)]
        if attacking:
            shares.append(Share(attacking, attacks=True))
        return [*shares, *(Share((client,), phase) for client, phase in doomed.items())]

    def _doomed(self, clients: tuple[str, ...]) -> dict[str, str]:
        """The clients that are to be killed, the last ones, and the phase of each."""
        possible = [phase for phase in DROP_PHASES if self.group_size > 1 or phase not in SECURE_PHASES]
        phases = [self.drop_at] if self.drop_at else possible
        chosen = clients[len(clients) - self.drop :]
        return {client: phases[i % len(phases)] for i, client in enumerate(chosen)}

    def _codec(self) -> dict[str, Any]:
        if self.privacy != "off":
            given = {"selection": self.selection, "density": self.density}
            return {name: value for name, value in given.items() if value is not None}
        selection = self.selection or ("dense" if self.density == 1.0 else "random")
        density = self.density if self.density is not None else (1.0 if selection == "dense" else 0.1)
        return {"selection": selection, "density": density}

    @property
    def policy(self) -> Policy:
        """What the demonstration's workers demand: no less than the plan that they are meant for."""
        size = self.group_size
        return Policy(
            min_summed=min(size, Policy().min_summed),
            min_members=min(size, Policy().min_members),
            max_colluders=self.max_colluders if size > 1 else 0,
            allow_groups_of_one=size == 1,
        )

    def _steering(self) -> dict[str, Any]:
        schedule, _, every = self.schedule.partition(":")
        return {
            **({} if self.watch is None else {"watch": self.watch}),
            "schedule": schedule,
            "step_every": every or None,
            "plateau_patience": self.plateau or None,
            "stop_patience": self.stop_after or None,
            **({} if self.ema is None else {"ema": self.ema}),
        }

    def _privacy(self, records: list[int]) -> dict[str, Any]:
        if self.privacy == "off":
            return {"level": "off"}
        nominal = sum(records) / len(records) if self.privacy == "record" else None
        given = {"epsilon": self.epsilon, "delta": self.delta, "nominal_records": nominal}
        return {"level": self.privacy} | {name: value for name, value in given.items() if value is not None}

    def coordinator_environment(self, clients: tuple[str, ...]) -> dict[str, str]:
        """Environment variables that give a coordinator this run's plan.

        Raises:
            WorkloadError: the workload cannot be loaded.
        """
        workload = load_workload(self.workload, self.workload_options)
        trim = self.trim if self.trim is not None else int(self.robust not in ("mean", "median"))
        records = [example_count(workload.client_data(client, None)) for client in clients]
        sections = {
            "TRAINING": {"proximal_mu": self.proximal_mu},
            "PRIVACY": self._privacy(records),
            "CODEC": self._codec(),
            "AGGREGATION": {
                "rule": self.robust,
                "trim": trim,
                "gates": self.gates == "on",
                "server_optimizer": self.server,
            },
            "ROUND": {
                "mode": self.mode,
                "pool_size": self.pool_size,
                "max_staleness": self.max_staleness,
                "cooldown": self.cooldown,
                "rounds": self.version_count,
                "min_clients": len(clients),
                "round_deadline_s": ROUND_DEADLINE_S,
                "group_step_s": GROUP_STEP_S,
                "status_interval_s": STATUS_INTERVAL_S,
            },
            "EVALUATION": {"client_share": self.validation},
            "STEERING": self._steering(),
            "FLOAT_BUFFERS": self.float_buffers,
            "WORKLOAD_OPTIONS": self.workload_options,
        }
        variables = {f"COMITIA_{name}": json.dumps(section) for name, section in sections.items()}
        if self.initial_weights is not None:
            variables["COMITIA_INITIAL_WEIGHTS"] = str(self.initial_weights.absolute())
        return variables | {
            "COMITIA_WORKLOAD": self.workload,
            "COMITIA_WEIGHT_RECORDS_MAX": str(max(1, *records)),
            "COMITIA_GROUP_SIZE": str(self.group_size),
            "COMITIA_MAX_COLLUDERS": str(self.max_colluders),
        }


def _check_writable(name: str, path: Path) -> None:
    """A run may take long: what it is to write is looked at before it.

    Raises:
        SettingsError: no file can be written there.
    """
    if not path.parent.is_dir():
        raise SettingsError(f"{name}: there is no directory {path.parent}")
    if path.is_dir():
        raise SettingsError(f"{name}: {path} is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingsError(f"{name}: no permission to write {path}")


def settings_from(variables: dict[str, str], **given: Any) -> CoordinatorSettings:
    """Settings as a coordinator process would read them from these variables."""
    values = {name.removeprefix("COMITIA_").lower(): value for name, value in variables.items()}
    decoded = {name: json.loads(value) if value.startswith("{") else value for name, value in values.items()}
    return CoordinatorSettings.load(None, **decoded, **given)


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that takes one `DemoOptions`, then parameters of its own, have the fields as its options."""
    hints = get_type_hints(DemoOptions, include_extras=True)
    names = [field.name for field in fields(DemoOptions)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=hints[field.name])
        for field in fields(DemoOptions)
    ]
    own_hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(kind=keyword, annotation=own_hints[parameter.name])
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]

    def run(**given: Any) -> None:
        command(DemoOptions(**{name: given.pop(name) for name in names}), **given)

    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run
