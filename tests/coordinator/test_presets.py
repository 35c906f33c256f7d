"""Privacy in the settings: a level selects a preset, what is set by hand stays, and the noise follows from a target."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.dry_run import foresee
from coordinator.presets import preset_of, with_preset
from coordinator.settings import CoordinatorSettings, plan_of
from shared.errors import PlanError, WorkloadError
from shared.plan import Plan
from shared.plan_sections import CodecPlan, PrivacyPlan, RoundPlan
from shared.privacy.accountant import epsilon_of
from shared.workloads.loading import load_workload
from shared.workloads.port import Preset
from tests.builders import make_federation
from tests.tiny_workload import TinyWorkload

RECORD: dict[str, Any] = {"level": "record", "nominal_records": 71.85}


def plan(**given: Any) -> Plan:
    settings = with_preset(CoordinatorSettings(**{"privacy": RECORD, **given}))
    workload = load_workload(settings.workload, settings.workload_options)
    return plan_of(settings, make_federation(20).directory, workload)


def test_the_preset_of_digits_is_the_measured_recipe() -> None:
    made = plan()
    assert (made.dimension, made.coordinate_count, made.bits, made.codec.selection) == (4810, 1202, 16, "restricted")
    assert (made.round.rounds, made.steering.ema, made.rescale) == (60, 0.85, pytest.approx(4.0, rel=0.01))
    assert made.training.optimizer.options == {"lr": 2.0}
    assert (made.metric_bounds, made.privacy.epsilon, made.privacy.delta) == ({}, 8.0, 1e-4)
    assert made.privacy.noise_multiplier == pytest.approx(4.55, rel=0.02)
    charge, noise = made.charge_of_run(), made.record_noise
    assert charge is not None
    assert noise is not None
    assert 7.9 < epsilon_of([charge] * 60, 1e-4) <= 8.0
    # 0.5 lr S' + nu (sqrt(k) + 2.5), by hand from the numbers above.
    assert made.codec.clipping_norm == pytest.approx(0.5 + 0.0633 * (34.67 + 2.5), rel=0.02)


def test_what_is_set_by_hand_stays() -> None:
    made = plan(
        workload_options={"network": "relu-128", "clients": 20},
        codec={"density": 0.5},
        round={"rounds": 10},
        training={"optimizer": {"name": "SGD", "options": {"lr": 0.5}}},
        steering={"ema": 0.0},
    )
    assert (made.dimension, made.codec.density, made.codec.selection) == (9610, 0.5, "restricted")
    assert (made.round.rounds, made.training.optimizer.options, made.steering.ema) == (10, {"lr": 0.5}, 0.0)


def test_in_asynchronous_mode_the_preset_is_dense_and_less_is_warned_about() -> None:
    made = plan(round={"mode": "async"})
    assert (made.codec.selection, made.codec.density, made.round.rounds) == ("dense", 1.0, 60)
    assert foresee(made, 20).warnings == ()

    sparse = plan(round={"mode": "async"}, codec={"selection": "random", "density": 0.6})
    (warning,) = foresee(sparse, 20).warnings
    assert "in the mode 'async' nobody knows while training which coordinates are sent" in warning


def test_asynchronous_records_are_sent_dense_without_a_preset_too() -> None:
    given = {"round": RoundPlan(mode="async"), "workload": "digits_linear", "privacy": PrivacyPlan(**RECORD)}
    workload = load_workload("digits_linear", {})
    directory = make_federation(20).directory
    assert plan_of(CoordinatorSettings(**given), directory, workload).codec.selection == "dense"
    sparse = CoordinatorSettings(**given, codec=CodecPlan(density=0.5))
    assert plan_of(sparse, directory, workload).codec.selection == "random"


@pytest.mark.parametrize(("epsilon", "rate"), [(8.0, 2.0), (2.0, 1.0)])
def test_less_epsilon_takes_smaller_steps(epsilon: float, rate: float) -> None:
    assert plan(privacy={**RECORD, "epsilon": epsilon}).training.optimizer.options == {"lr": rate}


def test_a_level_alone_changes_the_plan_and_off_changes_nothing() -> None:
    settings = CoordinatorSettings()
    assert with_preset(settings) == settings
    found = preset_of(CoordinatorSettings(privacy={"level": "record"}))
    assert found is not None
    assert found.name == "digits/record"
    assert preset_of(CoordinatorSettings(privacy={"level": "record"}, workload="breast_cancer")) is None


def test_a_given_noise_says_what_it_comes_to() -> None:
    made = plan(privacy={**RECORD, "noise_multiplier": 9.1})
    assert made.privacy.epsilon == pytest.approx(3.5, rel=0.05)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"privacy": {"level": "record"}}, "privacy.nominal_records is needed"),
        ({"privacy": {**RECORD, "epsilon": 8.0, "noise_multiplier": 4.0}}, "each follows? from the other: set one"),
        ({"training": {"batch_size": 8}}, "training.batch_size: no effect with privacy.level 'record'"),
        ({"evaluation": {"client_share": 0.2}}, "evaluation.client_share: leaves its client without noise"),
        ({"privacy": {"level": "client"}, "codec": {"adaptive_clipping": True}}, "adaptive_clipping"),
        ({"privacy": {**RECORD, "epsilon": 1e-9, "delta": 1e-12}}, "privacy: no noise reaches this target"),
    ],
)
def test_what_contradicts_privacy_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        plan(**given)


class BadPreset(TinyWorkload):
    @staticmethod
    def preset(level: str, epsilon: float) -> Preset:
        return Preset(name="bad", sections={"codec": {"density": 7}})


def test_a_preset_that_does_not_fit_is_the_workloads_fault() -> None:
    with pytest.raises(WorkloadError, match=r"preset bad\.density"):
        with_preset(CoordinatorSettings(workload=f"{__name__}:BadPreset", privacy=RECORD))


def test_a_workload_without_data_at_the_coordinator_is_told_why_it_cannot_be() -> None:
    class Blind(TinyWorkload):
        def evaluation_data(self) -> Any:
            return None

    with pytest.raises(PlanError, match="give the coordinator evaluation_data"):
        plan_of(CoordinatorSettings(privacy=RECORD), make_federation(4).directory, Blind())
