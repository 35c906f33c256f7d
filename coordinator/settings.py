"""What an operator of a coordinator decides; most of it becomes the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue

from coordinator.initial_weights import first_weights
from shared.codec.coordinates import coordinate_count
from shared.codec.flatten import layout_of
from shared.directory import Directory
from shared.errors import PlanError
from shared.modellog.reader import weights_digest
from shared.plan import (
    AggregationPlan,
    CodecPlan,
    OptimizerChoice,
    Plan,
    RoundPlan,
    SteeringPlan,
    TrainingPlan,
    make_plan,
)
from shared.settings import ProcessSettings
from shared.workloads.optimizers import check_optimizer
from shared.workloads.port import Workload


class CoordinatorSettings(ProcessSettings):
    """Settings of `comitia coordinator`."""

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
    group_size: Annotated[int, Field(ge=1, description="Clients per group (g).")] = 1
    weight_records_max: Annotated[
        int, Field(ge=1, description="Records that count as weight 1 (n_max); more count no more.")
    ] = 1000
    training: Annotated[
        TrainingPlan | None, Field(description="How clients train; what is not set is the workload's recipe.")
    ] = None
    codec: Annotated[CodecPlan, Field(description="Coordinates and integers of an update.")] = CodecPlan()
    aggregation: Annotated[
        AggregationPlan,
        Field(description="Robust rule; server optimizer: fedavg, fedavgm, fedadam, or name and options."),
    ] = AggregationPlan()
    round: Annotated[RoundPlan, Field(description="Number of rounds, cohort, deadlines.")] = RoundPlan()
    steering: Annotated[
        SteeringPlan, Field(description="Server's learning rate by version or on a plateau, early stop, average.")
    ] = SteeringPlan()
    evaluation_threads: Annotated[int, Field(ge=1, description="Threads of torch for the evaluation.")] = 1


def plan_of(settings: CoordinatorSettings, directory: Directory, workload: Workload) -> Plan:
    """The plan that these settings ask for.

    Raises:
        PlanError: it cannot hold; the message names the fields.
        SettingsError: the initial weights do not fit the workload's model.
        WorkloadError: the workload's model cannot be federated.
    """
    recipe, layout = workload.recipe, layout_of(workload.model())
    training = TrainingPlan(
        optimizer=OptimizerChoice(name=recipe.optimizer, options=dict(recipe.options)),
        batch_size=recipe.batch_size,
        local_epochs=recipe.local_epochs,
    )
    if settings.training is not None:
        given = {name: getattr(settings.training, name) for name in settings.training.model_fields_set}
        training = training.model_copy(update=given)
    check_optimizer(training.optimizer.name, training.optimizer.options, field="training.optimizer", error=PlanError)
    codec = settings.codec
    if "clipping_norm" not in codec.model_fields_set:
        # The recipe speaks of whole updates; k of d random coordinates carry sqrt(k/d) of the norm.
        dense = codec.selection == "dense"
        share = 1.0 if dense else coordinate_count(layout.dimension, codec.density) / layout.dimension
        codec = codec.model_copy(update={"clipping_norm": recipe.clipping_norm * share**0.5})
    return make_plan(
        federation=directory.federation,
        federation_id=directory.federation_id,
        workload=settings.workload,
        workload_options=settings.workload_options,
        layout_digest=layout.digest().hex(),
        dimension=layout.dimension,
        initial_weights_sha256=_initial_digest(settings.initial_weights, workload),
        group_size=settings.group_size,
        weight_records_max=settings.weight_records_max,
        metric_bounds=dict(recipe.metric_bounds),
        training=training,
        codec=codec,
        aggregation=settings.aggregation,
        round=settings.round,
        steering=settings.steering,
    )


def _initial_digest(path: Path | None, workload: Workload) -> str | None:
    """What keeps a federation from being continued with other initial weights than it was founded with.

    A workload's own initial weights may differ from call to call, so they have no part in the plan.
    """
    return None if path is None else weights_digest(first_weights(path, workload)).hex()
