"""What an operator of a coordinator decides; most of it becomes the plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, model_validator

from coordinator.initial_weights import first_weights
from shared.codec.coordinates import coordinate_count
from shared.codec.flatten import layout_of
from shared.codec.validation import validation_slots
from shared.directory import Directory
from shared.errors import LocalProtocolError, PlanError
from shared.modellog.reader import weights_digest
from shared.plan import Plan, make_plan
from shared.plan_sections import (
    AggregationPlan,
    CodecPlan,
    EvaluationPlan,
    OptimizerChoice,
    PrivacyPlan,
    RoundPlan,
    Section,
    SteeringPlan,
    TrainingPlan,
)
from shared.privacy.accountant import epsilon_of
from shared.privacy.calibration import noise_multiplier_for
from shared.privacy.charges import RecordCharge
from shared.privacy.sums import ANSWERING, ClientNoise
from shared.privacy.updates import RecordNoise
from shared.settings import ProcessSettings
from shared.workloads.optimizers import check_optimizer
from shared.workloads.port import TrainingRecipe, Workload

EPSILON, DELTA = 8.0, 1e-4
"""What privacy aims at when nobody says so."""

_SPARSITY = {"selection", "density"}

Role = Literal["scheduler", "summing", "aggregator"]


class CoordinatorSettings(ProcessSettings):
    """Settings of `comitia coordinator`."""

    roles: Annotated[
        list[Role],
        Field(
            min_length=1,
            description="What this process does: scheduler and aggregator belong together, one such process per "
            "federation; summing may run in as many as are wanted.",
        ),
    ] = Field(default_factory=lambda: list(get_args(Role)))
    output_dir: Annotated[Path, Field(description="Where best.safetensors and final.safetensors are written.")] = Path(
        "output"
    )
    workload: Annotated[str, Field(description="A built-in workload, or package.module:object.")] = "digits"
    workload_options: Annotated[
        dict[str, JsonValue], Field(description="Keyword arguments of the workload; part of the plan.")
    ] = Field(default_factory=dict)
    initial_weights: Annotated[
        Path | None,
        Field(description="Parameters (safetensors) that a new federation starts from; the workload's own if not set."),
    ] = None
    float_buffers: Annotated[
        bool,
        Field(description="Float buffers, such as BatchNorm's running statistics, federate too; needs dense updates."),
    ] = False
    group_size: Annotated[
        int, Field(ge=1, description="Clients per group (g), summed before anybody sees them; 1 shows each update.")
    ] = 4
    max_colluders: Annotated[
        int, Field(ge=0, description="Members of a group who may side with the coordinator without harm (c).")
    ] = 1
    threshold_fraction: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Least share of a group that must answer before its sum is opened; 0.8 at the privacy level "
            "client if not set, else 0.",
        ),
    ] = None
    min_summed: Annotated[
        int | None,
        Field(ge=1, description="Fewest updates in a sum that is opened; 3, or the whole group, if not set."),
    ] = None
    weight_records_max: Annotated[
        int, Field(ge=1, description="Records that count as weight 1 (n_max); more count no more.")
    ] = 1000
    training: Annotated[
        TrainingPlan | None, Field(description="How clients train; what is not set is the workload's recipe.")
    ] = None
    privacy: Annotated[
        PrivacyPlan,
        Field(
            description="Level off, record or client; epsilon (8) and delta (1e-4) after the planned rounds, or the "
            "noise multiplier. A level selects a preset of the workload; what is set by hand stays."
        ),
    ] = PrivacyPlan()
    codec: Annotated[CodecPlan, Field(description="Coordinates and integers of an update.")] = CodecPlan()
    aggregation: Annotated[
        AggregationPlan,
        Field(description="Robust rule; server optimizer: fedavg, fedavgm, fedadam, or name and options."),
    ] = AggregationPlan()
    round: Annotated[
        RoundPlan, Field(description="Mode (sync, async), number of rounds, cohort or pool, deadlines.")
    ] = RoundPlan()
    evaluation: Annotated[
        EvaluationPlan, Field(description="Share of its records on which each client measures the model it receives.")
    ] = EvaluationPlan()
    steering: Annotated[
        SteeringPlan,
        Field(
            description="Whose evaluations steer, server's learning rate by version or plateau, early stop, average."
        ),
    ] = SteeringPlan()
    evaluation_threads: Annotated[int, Field(ge=1, description="Threads of torch for the evaluation.")] = 1

    @model_validator(mode="after")
    def _roles_belong_together(self) -> CoordinatorSettings:
        if ("scheduler" in self.roles) != ("aggregator" in self.roles):
            raise ValueError("roles: scheduler and aggregator share one process; name both, or summing alone")
        return self


def plan_of(settings: CoordinatorSettings, directory: Directory, workload: Workload) -> Plan:
    """The plan that these settings ask for.

    Without held-out data at the coordinator, steering follows the clients.

    Raises:
        PlanError: it cannot hold; the message names the fields.
        SettingsError: the initial weights do not fit the workload's model.
        WorkloadError: the workload's model cannot be federated.
    """
    recipe, layout = workload.recipe, layout_of(workload.model(), settings.float_buffers)
    training = _training(settings, recipe)
    codec, answering = _for_level(settings)
    if settings.round.mode == "async" and settings.privacy.level == "record" and not codec.model_fields_set & _SPARSITY:
        # All coordinates are noised while training, whichever the draw chooses afterwards.
        codec = codec.model_copy(update={"selection": "dense", "density": 1.0})
    sent = layout.dimension if codec.selection == "dense" else coordinate_count(layout.dimension, codec.density)
    privacy = _of_clients(settings, sent) if settings.privacy.level == "client" else _calibrated(settings)
    if "clipping_norm" not in codec.model_fields_set:
        norm = _clipping_norm(codec, training, privacy, layout.dimension, recipe)
        codec = codec.model_copy(update={"clipping_norm": norm})
    return make_plan(
        federation=directory.federation,
        federation_id=directory.federation_id,
        workload=settings.workload,
        workload_options=settings.workload_options,
        layout_digest=layout.digest().hex(),
        dimension=layout.dimension,
        float_buffers=settings.float_buffers,
        initial_weights_sha256=_initial_digest(settings, workload),
        group_size=settings.group_size,
        max_colluders=settings.max_colluders,
        threshold_fraction=answering,
        min_summed=settings.min_summed,
        weight_records_max=settings.weight_records_max,
        metric_bounds={
            **(recipe.metric_bounds if privacy.level == "off" else {}),
            **(validation_slots(recipe.validation_bounds) if settings.evaluation.client_share else {}),
        },
        training=training,
        privacy=privacy,
        codec=codec,
        aggregation=settings.aggregation,
        round=settings.round,
        evaluation=settings.evaluation,
        steering=_watching(settings, workload),
    )


def set_by_hand(section: Section) -> dict[str, Any]:
    """What somebody has given of a part of the settings; the rest are defaults."""
    return {name: getattr(section, name) for name in section.model_fields_set}


def _training(settings: CoordinatorSettings, recipe: TrainingRecipe) -> TrainingPlan:
    """The recipe's training, with what somebody has set in its place.

    Raises:
        PlanError: the optimizer does not exist, or does not take these options.
    """
    training = TrainingPlan(
        optimizer=OptimizerChoice(name=recipe.optimizer, options=dict(recipe.options)),
        batch_size=recipe.batch_size,
        local_epochs=recipe.local_epochs,
    )
    if settings.training is not None:
        given = set_by_hand(settings.training)
        if "optimizer" in given:
            given["optimizer"] = training.optimizer.model_copy(update=set_by_hand(given["optimizer"]))
        training = training.model_copy(update=given)
    check_optimizer(training.optimizer.name, training.optimizer.options, field="training.optimizer", error=PlanError)
    return training


def _clipping_norm(
    codec: CodecPlan, training: TrainingPlan, privacy: PrivacyPlan, dimension: int, recipe: TrainingRecipe
) -> float:
    """C for what is sent, where nobody has set it: the recipe speaks of whole updates.

    k of d random coordinates carry sqrt(k/d) of the norm, the k largest of an update and what is owed from before about
    all of it.
    """
    whole = codec.selection in ("dense", "top_k")
    count = dimension if whole else coordinate_count(dimension, codec.density)
    share = count / dimension
    noise = RecordNoise.of(privacy, training, share if codec.selection == "restricted" else 1.0)
    return recipe.clipping_norm * share**0.5 if noise is None else noise.update_norm(count)


def _for_level(settings: CoordinatorSettings) -> tuple[CodecPlan, float]:
    """Codec and least share of a group that must answer, where the level of privacy decides what nobody has set."""
    codec, answering = settings.codec, settings.threshold_fraction
    summed = settings.privacy.level == "client"
    if summed and "adaptive_clipping" not in codec.model_fields_set:
        codec = codec.model_copy(update={"adaptive_clipping": False})
    if answering is None:
        answering = ANSWERING if summed and settings.group_size > 1 else 0.0
    return codec, answering


def _calibrated(settings: CoordinatorSettings) -> PrivacyPlan:
    """The noise for the target, or what the given noise comes to after the planned rounds.

    Raises:
        PlanError: both are given, no noise reaches the target, or something else is set that privacy replaces.
    """
    given = settings.privacy
    if given.level == "off":
        return given
    replaced = {"batch_size", "local_epochs"} & (settings.training or TrainingPlan()).model_fields_set
    if replaced:
        raise PlanError(
            f"training.{', '.join(sorted(replaced))}: no effect with privacy.level 'record'; "
            "set privacy.local_steps and privacy.sampling_rate instead"
        )
    _check_one_target(given)
    rate, steps = given.sampling_rate or 1.0, settings.round.rounds * (given.local_steps or 1)
    delta = given.delta or DELTA
    try:
        if given.noise_multiplier is None:
            epsilon = given.epsilon or EPSILON
            sigma = noise_multiplier_for(epsilon, delta, sampling_rate=rate, steps=steps)
        else:
            sigma = given.noise_multiplier
            charge = RecordCharge(noise_multiplier=sigma, sampling_rate=rate, steps=steps)
            epsilon = epsilon_of([charge], delta)
        return given.model_copy(update={"epsilon": epsilon, "delta": delta, "noise_multiplier": sigma})
    except LocalProtocolError as error:
        raise PlanError(f"privacy: {error}") from error


def _of_clients(settings: CoordinatorSettings, count: int) -> PrivacyPlan:
    """As `_calibrated`, at the level of clients who send `count` values each.

    Raises:
        PlanError: as there.
    """
    given, rounds = settings.privacy, settings.round.rounds
    _check_one_target(given)
    delta = given.delta or DELTA
    try:
        if given.noise_multiplier is None:
            epsilon = given.epsilon or EPSILON
            noise = ClientNoise.calibrated(epsilon, delta, rounds=rounds, count=count)
        else:
            noise = ClientNoise(multiplier=given.noise_multiplier, count=count)
            epsilon = epsilon_of(Counter({noise.charge(1): rounds}), delta)
    except LocalProtocolError as error:
        raise PlanError(f"privacy: {error}") from error
    return given.model_copy(update={"epsilon": epsilon, "delta": delta, "noise_multiplier": noise.multiplier})


def _check_one_target(given: PrivacyPlan) -> None:
    if given.noise_multiplier is not None and given.epsilon is not None:
        raise PlanError("privacy.epsilon and privacy.noise_multiplier each follow from the other: set one")


def _watching(settings: CoordinatorSettings, workload: Workload) -> SteeringPlan:
    steering = settings.steering
    if workload.evaluation_data() is not None:
        return steering
    if settings.privacy.level != "off":
        raise PlanError(
            "privacy.level: the workload has no evaluation_data, and what clients measure would leave without noise; "
            "give the coordinator evaluation_data, or set privacy.level to 'off'"
        )
    if not settings.evaluation.client_share:
        raise PlanError(
            "evaluation.client_share: the workload has no evaluation_data, so nobody measures the model; "
            "set a share of the clients' records, for example 0.2"
        )
    if "watch" in steering.model_fields_set and steering.watch == "held_out":
        raise PlanError("steering.watch='held_out', but the workload has no evaluation_data; use 'clients'")
    return steering.model_copy(update={"watch": "clients"})


def _initial_digest(settings: CoordinatorSettings, workload: Workload) -> str | None:
    """What keeps a federation from being continued with other initial weights than it was founded with.

    A workload's own initial weights may differ from call to call, so they have no part in the plan.
    """
    path = settings.initial_weights
    return None if path is None else weights_digest(first_weights(path, workload, settings.float_buffers)).hex()
