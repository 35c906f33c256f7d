"""The parts of a plan, by what they decide: training, privacy, codec, aggregation, rounds, evaluation, steering."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """What every part of a plan is: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OptimizerChoice(Section):
    """Any optimizer of `torch.optim`, by class name, with its keyword arguments."""

    name: str = "SGD"
    options: dict[str, JsonValue] = {"lr": 1.0}


SERVER_PRESETS = {
    "fedavg": OptimizerChoice(name="SGD", options={"lr": 1.0}),
    "fedavgm": OptimizerChoice(name="SGD", options={"lr": 0.3, "momentum": 0.9}),
    "fedadam": OptimizerChoice(name="Adam", options={"lr": 0.03, "betas": [0.9, 0.99], "eps": 1e-3}),
}
"""Server optimizers by their names in the literature.

Reference: Hsu et al., Measuring the Effects of Non-Identical Data Distribution (2019), for FedAvgM; Reddi et al.,
Adaptive Federated Optimization (2021), for FedAdam with its beta and tau.
"""


def _preset(choice: object) -> object:
    name = choice["name"] if isinstance(choice, dict) and choice.keys() == {"name"} else choice
    if isinstance(name, str) and name in SERVER_PRESETS:
        return SERVER_PRESETS[name]
    if isinstance(choice, str):
        raise ValueError(f"{choice!r} is none of {', '.join(SERVER_PRESETS)}; or give name and options of an optimizer")
    return choice


class TrainingPlan(Section):
    """What a client does with its data in one round.

    `proximal_mu` is FedProx's mu: it holds local training near the global weights. 0 is plain training.
    With record-level privacy `PrivacyPlan.local_steps` and its sampling rate stand for batches and epochs.
    """

    optimizer: OptimizerChoice = OptimizerChoice(name="SGD", options={"lr": 0.1})
    batch_size: Annotated[int, Field(ge=1)] = 16
    local_epochs: Annotated[int, Field(ge=1)] = 1
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0


class PrivacyPlan(Section):
    """What an update may show, and of whom.

    `record`: training is DP-SGD, so that what a client sends hardly depends on any one of its records. Each of
    `local_steps` (None: 1) takes every record with the chance `sampling_rate` (q; None: 1, all of them), clips its
    gradient to an L2 norm of `sample_clipping_norm` (S; None: 1), adds noise of `noise_multiplier` (sigma) times that
    norm to the sum, and divides it by q times `nominal_records` (n_bar), which is public and stands for any client's
    number of records. `epsilon` at `delta` is what the planned rounds cost a client that takes part in all of them;
    settings give it or the noise multiplier, and the plan holds both.

    `client`: the sum of a group hardly depends on any one member. Its honest members add integer noise to clipped
    values, together of standard deviation `noise_multiplier` times the clipping norm; training is what it is.
    """

    level: Literal["off", "record", "client"] = "off"
    epsilon: Annotated[float, Field(gt=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    sample_clipping_norm: Annotated[float, Field(gt=0)] | None = None
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    local_steps: Annotated[int, Field(ge=1)] | None = None
    nominal_records: Annotated[float, Field(ge=1)] | None = None


class CodecPlan(Section):
    """Which coordinates are sent, and how their values become integers.

    `random` sends k coordinates that the round's seed chooses; with `restricted` training moves only these. With
    `top_k` every client sends its k largest values with their positions, and holds the rest back for its next update.
    `bits` is chosen by `shared.codec.quantize.choose_bits` when None. `clipping_norm` (C, an L2 norm) is the
    first round's; with `adaptive_clipping` every change entry carries the next.
    """

    selection: Literal["random", "restricted", "dense", "top_k"] = "random"
    density: Annotated[float, Field(gt=0, le=1)] = 0.1
    bits: Literal[16, 32] | None = None
    clipping_norm: Annotated[float, Field(gt=0)] = 1.0
    adaptive_clipping: bool = True


class AggregationPlan(Section):
    """How group means become one step.

    `trim` is how many attacked groups the rule must bear. `gates` drop sums that no honest group can send; each one
    dropped need not be trimmed any more. `quorum` counts group sums; None means 60 % of the draw's groups. The server
    optimizer's name may be fedavg, fedavgm or fedadam, without options; the plan holds what it stands for.
    """

    rule: Literal["nnm-trimmed-mean", "trimmed-mean", "median", "mean"] = "nnm-trimmed-mean"
    trim: Annotated[int, Field(ge=0)] = 1
    gates: bool = True
    quorum: Annotated[int, Field(ge=1)] | None = None
    server_optimizer: Annotated[OptimizerChoice, BeforeValidator(_preset)] = SERVER_PRESETS["fedavg"]


STALENESS_MAX = 50
"""How stale an update may be when `max_staleness` is not set."""


class RoundPlan(Section):
    """When a round goes on. All durations in seconds.

    `cohort_size` None gives the task to every live client; `min_clients` holds the first round back.
    In the mode `async` nobody waits for the slow: a draw takes the offers that are there as soon as `pool_size` are,
    updates up to `max_staleness` versions old count, the older the less, and a client drawn for a version is drawn
    again `cooldown` versions later at the earliest. None lets pool and cooldown follow the number of live clients
    (`coordinator.scheduler.full_pool`), and the staleness be `STALENESS_MAX`.
    """

    mode: Literal["sync", "async"] = "sync"
    rounds: Annotated[int, Field(ge=1)] = 30
    min_clients: Annotated[int, Field(ge=1)] = 1
    pool_size: Annotated[int, Field(ge=1)] | None = None
    max_staleness: Annotated[int, Field(ge=0)] | None = None
    cooldown: Annotated[int, Field(ge=1)] | None = None
    cohort_size: Annotated[int, Field(ge=1)] | None = None
    offer_quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    straggler_grace_s: Annotated[float, Field(ge=0)] = 2.0
    round_deadline_s: PositiveSeconds = 30.0
    group_step_s: PositiveSeconds = 10.0
    sums_deadline_s: PositiveSeconds = 60.0
    status_interval_s: PositiveSeconds = 8.0
    snapshot_every: Annotated[int, Field(ge=1)] = 20

    @property
    def staleness_max(self) -> int:
        """How many versions may lie between an update's and its draw's; none in synchronous mode."""
        if self.mode == "sync":
            return 0
        return STALENESS_MAX if self.max_staleness is None else self.max_staleness


class EvaluationPlan(Section):
    """What clients measure of the model they receive.

    Each client keeps `client_share` of its records, always the same ones, out of its training, and measures the
    weights it is given on them before it trains. 0 is off.
    """

    client_share: Annotated[float, Field(ge=0, lt=1)] = 0.0


class SteeringPlan(Section):
    """How the run is steered by what evaluations say. Versions are counted; nothing here reaches a worker.

    `watch` says whose: those on the coordinator's held-out data, or the means over the clients' validation records.
    Where the coordinator has no such data, it is the clients'.
    `schedule` moves the server's learning rate by version: along half a cosine to 0 at the last of the planned rounds,
    or times `rate_drop` every `step_every` versions. With `plateau_patience` it is multiplied by `rate_drop` after so
    many versions without a new best one; with `stop_patience` the run then ends. With `ema` above 0, what is evaluated
    and written to files is that moving average of the versions; clients train from the model itself.
    """

    watch: Literal["held_out", "clients"] = "held_out"
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_every: Annotated[int, Field(ge=1)] | None = None
    plateau_patience: Annotated[int, Field(ge=1)] | None = None
    rate_drop: Annotated[float, Field(gt=0, lt=1)] = 0.5
    stop_patience: Annotated[int, Field(ge=1)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
