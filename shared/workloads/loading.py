"""How does a name in the settings become a workload?"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import ComitiaError, WorkloadError
from shared.workloads.port import Preset, TrainingRecipe, Workload

BUILT_IN = {
    "digits": "shared.workloads.digits:Digits",
    "digits_linear": "shared.workloads.digits:DigitsLinear",
    "digits_cnn": "shared.workloads.digits:DigitsCnn",
    "breast_cancer": "shared.workloads.breast_cancer:BreastCancer",
    "still": "shared.workloads.still:Still",
}

_CONTRACT = ("name", "recipe", "model", "client_data", "evaluation_data", "loss", "metrics")


def load_workload(reference: str, options: Mapping[str, Any] | None = None) -> Workload:
    """Return the workload that `reference` names.

    Args:
        reference: the name of a built-in workload, or "package.module:object". Modules are also looked for in the
            current directory. The object is a workload, or a class or function that makes one.
        options: keyword arguments for that class or function.

    Raises:
        WorkloadError: it cannot be imported or made, or does not keep the contract; the message says what to do.
    """
    found = import_workload(reference)
    if inspect.isclass(found) or inspect.isroutine(found):
        found = _make(reference, found, dict(options or {}))
    elif options:
        raise WorkloadError(f"workload: {reference} is an object, not a class or function, so it takes no options")
    return _checked(reference, found)


def import_workload(reference: str) -> Any:
    """Return what `reference` names, before anything is made of it. Importing it may take seconds.

    Raises:
        WorkloadError: as `load_workload`.
    """
    module_name, colon, attribute = BUILT_IN.get(reference, reference).partition(":")
    if not (module_name and colon and attribute):
        raise WorkloadError(
            f"workload: {reference!r} is neither built in ({', '.join(BUILT_IN)}) nor a 'package.module:object'"
        )
    return _find(reference, module_name, attribute)


def find_preset(reference: str, level: str, epsilon: float) -> Preset | None:
    """Return what a workload recommends for a level of privacy; None if nothing.

    Raises:
        WorkloadError: as `load_workload`.
    """
    asked = getattr(import_workload(reference), "preset", None)
    if asked is None:
        return None
    found = asked(level, epsilon)
    if found is not None and not isinstance(found, Preset):
        raise WorkloadError(f"workload: preset of {reference} must return a Preset or None, not {_kind(found)}")
    return found


def _find(reference: str, module_name: str, attribute: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # it stays: a workload may import its neighbours later
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"workload: {reference} needs the module {error.name!r}, which is neither installed nor in {here}; "
            "install it or start from the directory that holds it"
        ) from error
    except Exception as error:
        raise WorkloadError(f"workload: importing {module_name} failed: {_told(error)}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise WorkloadError(f"workload: {module_name} has no {attribute!r}; it is looked up after the colon")
        found = getattr(found, part)
    return found


def _make(reference: str, maker: Any, options: dict[str, Any]) -> Any:
    try:
        inspect.signature(maker).bind(**options)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(maker).parameters) or "none"
        raise WorkloadError(f"workload_options: {reference} accepts {accepted}: {error}") from error
    try:
        return maker(**options)
    except ComitiaError:
        raise
    except Exception as error:
        raise WorkloadError(f"workload: making {reference} failed: {_told(error)}") from error


def _checked(reference: str, found: Any) -> Workload:
    missing = [part for part in _CONTRACT if not hasattr(found, part)]
    if missing:
        raise WorkloadError(
            f"workload: {reference} lacks {', '.join(missing)}; a workload has {', '.join(_CONTRACT)} "
            "(see shared.workloads.port.Workload)"
        )
    if not isinstance(found.recipe, TrainingRecipe):
        raise WorkloadError(f"workload: recipe of {reference} must be a TrainingRecipe, not {_kind(found.recipe)}")
    if not isinstance(found.name, str) or not found.name:
        raise WorkloadError(f"workload: name of {reference} must be a text, not {_kind(found.name)}")
    workload: Workload = found
    return workload


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _kind(value: object) -> str:
    return type(value).__name__
