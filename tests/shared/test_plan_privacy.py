"""The plan's privacy: what it refuses, what one update costs, and how much noise is in it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared.errors import PlanError
from shared.privacy.charges import RecordCharge
from shared.privacy.updates import RecordNoise
from tests.builders import tiny_plan

RECORD: dict[str, Any] = {
    "level": "record",
    "epsilon": 8.0,
    "delta": 1e-4,
    "noise_multiplier": 4.55,
    "nominal_records": 71.85,
}
SOUND: dict[str, Any] = {
    "privacy": RECORD,
    "metric_bounds": {},
    "training": {"optimizer": {"name": "SGD", "options": {"lr": 2.0}}},
}


def plan(**fields: Any) -> Any:
    return tiny_plan(4_810, **{**SOUND, **fields})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"privacy": {"delta": 1e-5}}, "privacy.delta: no effect at the level 'off'"),
        ({"privacy": {**RECORD, "nominal_records": None}}, "privacy.nominal_records is needed"),
        ({"privacy": {**RECORD, "noise_multiplier": None}}, "privacy.noise_multiplier is needed"),
        ({"metric_bounds": {"loss": 20.0}}, "metric_bounds: leaves its client without noise"),
        ({"float_buffers": True, "codec": {"selection": "dense", "density": 1.0}}, "float_buffers: leaves its client"),
        ({"evaluation": {"client_share": 0.2}}, "evaluation.client_share: leaves its client without noise"),
        ({"training": {"optimizer": {"name": "Adam", "options": {"lr": 0.1}}}}, "use SGD with lr alone"),
        (
            {"training": {"optimizer": {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9}}}},
            "use SGD with lr alone",
        ),
        ({"training": {**SOUND["training"], "proximal_mu": 0.1}}, "training.proximal_mu"),
        ({"codec": {"selection": "top_k"}, "group_size": 1}, "'top_k' would send the largest values of the noise"),
    ],
)
def test_what_would_leak_or_mean_nothing_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told.replace("(", r"\(").replace(".", r"\.")):
        plan(**fields)


CLIENT: dict[str, Any] = {"level": "client", "epsilon": 8.0, "delta": 1e-4, "noise_multiplier": 4.55}
SUMMED: dict[str, Any] = {
    "privacy": CLIENT,
    "group_size": 4,
    "threshold_fraction": 0.8,
    "codec": {"selection": "restricted", "density": 0.25, "adaptive_clipping": False},
}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"privacy": {**CLIENT, "noise_multiplier": None}}, "privacy.noise_multiplier is needed at the level 'client'"),
        ({"privacy": {**CLIENT, "delta": None}}, "privacy.delta is needed at the level 'client'"),
        ({"privacy": {**CLIENT, "local_steps": 3}}, "privacy.local_steps: no effect at the level 'client'"),
        ({"codec": {"selection": "dense", "density": 1.0}}, "codec.adaptive_clipping: whose update was clipped"),
        ({"codec": {**SUMMED["codec"], "bits": 16}}, "codec.bits=16 has no room for the noise"),
        ({"codec": {**SUMMED["codec"], "selection": "top_k"}, "group_size": 1}, "tell which were largest before it"),
        ({"threshold_fraction": 0.7}, "threshold_fraction=0.7: at the privacy.level 'client'"),
        ({"metric_bounds": {"loss": 20.0}}, "metric_bounds: leaves its client without noise"),
        ({"evaluation": {"client_share": 0.2}}, "evaluation.client_share: leaves its client without noise"),
        ({"privacy": {**CLIENT, "noise_multiplier": 1e5}}, "6 standard deviations of their noise reach"),
    ],
)
def test_what_would_leak_at_client_level_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told.replace(".", r"\.")):
        tiny_plan(4_810, **{**SUMMED, **fields})


@pytest.mark.parametrize("selection", ["random", "restricted"])
def test_coordinates_that_everybody_knows_may_be_chosen_at_client_level(selection: str) -> None:
    made = tiny_plan(4_810, **{**SUMMED, "codec": {**SUMMED["codec"], "selection": selection}})
    assert made.client_noise is not None
    assert made.record_noise is None
    assert (made.client_noise.count, made.bits, made.weight(3), made.lightest_records_max) == (1202, 32, 1.0, 1)
    assert made.sum_format(4, 0.5).scale == 2.0 * 65_536
    # Any plain training goes: whatever it does is clipped.
    tiny_plan(
        4_810, **{**SUMMED, "training": {"optimizer": {"name": "Adam", "options": {"lr": 0.1}}, "proximal_mu": 0.1}}
    )


def test_without_privacy_nothing_is_charged_and_records_count() -> None:
    made = tiny_plan(weight_records_max=100)
    assert made.record_noise is None
    assert made.charge_of_run() is None
    assert (made.weight(50), made.weight(500), made.lightest_records_max) == (0.5, 1.0, 100)


def test_with_privacy_all_clients_weigh_the_same() -> None:
    made = plan(weight_records_max=100)
    assert (made.weight(1), made.weight(500), made.lightest_records_max) == (1.0, 1.0, 1)


def test_a_run_is_charged_by_its_noise_its_samples_and_its_steps() -> None:
    assert plan().charge_of_run() == RecordCharge(noise_multiplier=4.55, sampling_rate=1.0, steps=1)
    several = plan(privacy={**RECORD, "sampling_rate": 0.1, "local_steps": 5}).charge_of_run()
    assert several == RecordCharge(noise_multiplier=4.55, sampling_rate=0.1, steps=5)


def test_restricted_training_is_clipped_and_noised_by_its_share_of_the_norm() -> None:
    noise = plan(codec={"selection": "restricted", "density": 0.25}).record_noise
    assert noise is not None
    share = 1202 / 4810
    assert noise.gradient_norm == pytest.approx(math.sqrt(share))
    assert noise.deviation == pytest.approx(2.0 * 4.55 * math.sqrt(share) / 71.85)
    whole = plan(codec={"selection": "random", "density": 0.25}).record_noise
    assert whole is not None
    assert whole.gradient_norm == 1.0


def test_noise_of_steps_adds_up_and_small_samples_weigh_more() -> None:
    def noise(**fields: Any) -> RecordNoise:
        made = plan(privacy={**RECORD, **fields}).record_noise
        assert made is not None
        return made  # type: ignore[no-any-return]

    one = noise()
    assert noise(local_steps=4).deviation == pytest.approx(2 * one.deviation)
    assert noise(sampling_rate=0.1).deviation == pytest.approx(10 * one.deviation)
    assert noise(sample_clipping_norm=3.0).deviation == pytest.approx(3 * one.deviation)
    assert one.noise_over_signal(4810, 16) == pytest.approx(one.noise_over_signal(4810, 1) / 4)


def test_running_on_is_no_other_plan_though_it_costs_more() -> None:
    more = plan(round={"rounds": 99}, privacy={**RECORD, "epsilon": 11.0})
    assert more.digest() == plan().digest()
    assert plan(privacy={**RECORD, "noise_multiplier": 5.0}).digest() != plan().digest()
