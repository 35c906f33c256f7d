"""From an operator's settings to the plan: what is filled in, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from coordinator.output import save_model
from coordinator.settings import CoordinatorSettings, plan_of
from shared.codec.validation import validation_slots
from shared.errors import PlanError, SettingsError
from shared.modellog.reader import weights_digest
from shared.plan import Plan
from shared.workloads.port import TrainingRecipe
from tests.builders import make_federation
from tests.tiny_workload import TinyWorkload


def plan(workload: TinyWorkload | None = None, **given: Any) -> Plan:
    return plan_of(CoordinatorSettings(**given), make_federation(4).directory, workload or TinyWorkload())


def test_the_plan_names_the_federation_and_the_models_layout() -> None:
    made = plan()
    directory = make_federation(4).directory

    assert (made.federation, made.federation_id) == (directory.federation, directory.federation_id)
    assert (made.dimension, made.layout_digest) == (4, TinyWorkload().layout_digest)
    assert made.metric_bounds == {"loss": 50.0}


def test_the_plan_has_slots_for_what_clients_are_to_measure() -> None:
    made = plan(evaluation={"client_share": 0.2})
    recipe = TinyWorkload.recipe

    assert made.metric_bounds == {"loss": 50.0, **validation_slots(recipe.validation_bounds)}
    assert set(recipe.validation_bounds) == {"loss", "accuracy"}
    assert made.steering.watch == "held_out"


def test_training_is_the_workloads_recipe_unless_it_is_set() -> None:
    recipe = TinyWorkload.recipe
    made = plan().training
    assert (made.optimizer.name, made.optimizer.options) == (recipe.optimizer, recipe.options)
    assert (made.batch_size, made.local_epochs) == (recipe.batch_size, recipe.local_epochs)

    ours = plan(training={"batch_size": 7, "local_epochs": 3}).training
    assert (ours.batch_size, ours.local_epochs) == (7, 3)
    assert ours.optimizer == made.optimizer

    near = plan(training={"proximal_mu": 0.5}).training
    assert near == made.model_copy(update={"proximal_mu": 0.5})


def test_half_an_optimizer_is_completed_from_the_workloads_recipe() -> None:
    workload = TinyWorkload()
    workload.recipe = TrainingRecipe(optimizer="Adam", options={"lr": 0.03}, metric_bounds={"loss": 50.0})

    rate = plan(workload, training={"optimizer": {"options": {"lr": 0.01}}}).training.optimizer
    assert (rate.name, rate.options) == ("Adam", {"lr": 0.01})
    kind = plan(workload, training={"optimizer": {"name": "AdamW"}}).training.optimizer
    assert (kind.name, kind.options) == ("AdamW", {"lr": 0.03})


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        ({"selection": "dense", "density": 1.0}, 10.0),
        ({"density": 0.25}, 5.0),
        ({"density": 0.25, "clipping_norm": 3.0}, 3.0),
        # An explicit 1.0 is not the default that happens to be 1.0.
        ({"density": 0.25, "clipping_norm": 1.0}, 1.0),
    ],
)
def test_the_clipping_norm_speaks_of_the_coordinates_that_are_sent(codec: dict[str, Any], expected: float) -> None:
    assert plan(TinyWorkload(features=63), codec=codec).codec.clipping_norm == pytest.approx(expected)


def test_the_recipes_norm_may_be_another() -> None:
    workload = TinyWorkload()
    workload.recipe = TrainingRecipe(clipping_norm=2.0)

    assert plan(workload, codec={"selection": "dense", "density": 1.0}).codec.clipping_norm == 2.0


def test_what_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"2·trim >= quorum \(aggregation.trim=2, quorum=4\)"):
        plan(aggregation={"trim": 2, "quorum": 4})
    with pytest.raises(PlanError, match="group_size=2"):
        plan(group_size=2)


def test_initial_weights_are_part_of_the_plan(tmp_path: Path) -> None:
    assert plan().initial_weights_sha256 is None
    made = []
    for value in (1.0, 2.0):
        model = TinyWorkload().model()
        nn.init.constant_(model.weight, value)  # type: ignore[arg-type]
        save_model(model, tmp_path / "start.safetensors", {})
        made.append(plan(initial_weights=tmp_path / "start.safetensors"))

    expected = weights_digest(np.array([1, 1, 1, 0], np.float32)).hex()
    assert made[0].initial_weights_sha256 == expected
    assert made[0].digest() != made[1].digest()


@pytest.mark.parametrize(
    ("given", "field"),
    [({"round": {"rounds": 0}}, "round.rounds"), ({"unknown": 1}, "unknown"), ({"group_size": 0}, "group_size")],
)
def test_a_bad_setting_is_one_line_that_names_the_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingsError) as refused:
        CoordinatorSettings.load(None, **given)
    assert field in str(refused.value).replace("__", ".").lower()
    assert "\n" not in str(refused.value)
