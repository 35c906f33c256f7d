"""What does a level of privacy change besides the noise?

A level selects a preset of the workload: model, rounds, learning rate, coordinates. Whatever was set by hand stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from coordinator.settings import EPSILON, CoordinatorSettings, set_by_hand
from shared.errors import WorkloadError
from shared.plan import describe_errors
from shared.plan_sections import Section, TrainingPlan
from shared.workloads.loading import find_preset
from shared.workloads.port import Preset


def preset_of(settings: CoordinatorSettings) -> Preset | None:
    """The preset that the level of privacy selects, if there is one.

    Raises:
        WorkloadError: the workload cannot be imported.
    """
    if settings.privacy.level == "off":
        return None
    return find_preset(settings.workload, settings.privacy.level, settings.privacy.epsilon or EPSILON)


def with_preset(settings: CoordinatorSettings) -> CoordinatorSettings:
    """Fill in what the preset recommends and nobody has set.

    Raises:
        WorkloadError: the workload cannot be imported, or its preset does not fit the settings.
    """
    found = preset_of(settings)
    if found is None:
        return settings
    changed: dict[str, Any] = {"workload_options": {**found.workload_options, **settings.workload_options}}
    for name, recommended in found.sections.items():
        section = getattr(settings, name, None)
        if name == "codec" and settings.round.mode == "async" and recommended.get("selection") == "restricted":
            # The draw chooses coordinates after training; all of them cost less than noise on those not sent.
            recommended = {**recommended, "selection": "dense", "density": 1.0}
        changed[name] = _filled(TrainingPlan() if section is None else section, recommended, found.name)
    return settings.model_copy(update=changed)


def _filled(section: Section, recommended: Mapping[str, Any], preset: str) -> Section:
    try:
        return type(section).model_validate({**recommended, **set_by_hand(section)})
    except ValidationError as error:
        raise WorkloadError(f"workload: {describe_errors(error, f'preset {preset}')}") from error
