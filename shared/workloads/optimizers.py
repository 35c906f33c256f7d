"""Which optimizer does a name mean, and are its options sound?

Both sides take any class of `torch.optim` by name: workers to train, the coordinator for the server step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from shared.errors import ComitiaError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]

# They choose an implementation, not an algorithm, and some of them need a device or a graph that is not there.
_IMPLEMENTATION_OPTIONS = frozenset({"foreach", "fused", "capturable", "differentiable"})


def optimizer_factory(
    name: str, options: Mapping[str, Any], *, field: str, error: type[ComitiaError]
) -> OptimizerFactory:
    """Return what makes the optimizer `torch.optim.<name>(parameters, **options)`.

    The optimizer is tried on a small parameter first, so unsound options are found when a plan is made.

    Args:
        name: a class of `torch.optim`, for example "SGD" or "Adam".
        options: its keyword arguments; lists become tuples.
        field: the setting that `name` came from, for messages.
        error: what to raise.

    Raises:
        ComitiaError: as `error`; no such optimizer, no such option, or a value that it refuses.
    """
    check_optimizer(name, options, field=field, error=error)
    optimizer_class = _optimizer_class(name, field, error)
    arguments: dict[str, Any] = {
        option: tuple(value) if isinstance(value, list) else value for option, value in options.items()
    }

    def build(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return optimizer_class(parameters, **arguments)

    try:
        parameter = nn.Parameter(torch.zeros(4))
        trial = build([parameter])
        parameter.grad = torch.ones(4)
        trial.step()
    except (ValueError, TypeError, RuntimeError, AssertionError) as refusal:
        raise error(f"{field}: {name} refuses its options {dict(options)}: {refusal}") from refusal
    return build


def check_optimizer(name: str, options: Mapping[str, Any], *, field: str, error: type[ComitiaError]) -> None:
    """Check names and numbers alone: trying an optimizer takes torch more than a second and 70 MB, the first time.

    Raises:
        ComitiaError: as `error`; no such optimizer or option, or a value that is not finite.
    """
    allowed = optimizer_options(_optimizer_class(name, field, error))
    for option, value in options.items():
        if option not in allowed:
            raise error(f"{field}: {name} has no option {option!r}; it has {', '.join(allowed)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise error(f"{field}: option {option!r} of {name} must be finite, not {value}")


def optimizer_options(optimizer_class: type[Optimizer]) -> tuple[str, ...]:
    """Return the names of the options that choose an algorithm, as the class itself spells them."""
    parameters = inspect.signature(optimizer_class).parameters
    return tuple(name for name in parameters if name != "params" and name not in _IMPLEMENTATION_OPTIONS)


def _optimizer_class(name: str, field: str, error: type[ComitiaError]) -> type[Optimizer]:
    known = {
        attribute: candidate
        for attribute, candidate in vars(torch.optim).items()
        if isinstance(candidate, type) and issubclass(candidate, Optimizer) and candidate is not Optimizer
    }
    if name not in known:
        raise error(f"{field}: torch.optim has no optimizer {name!r}; it has {', '.join(sorted(known))}")
    return known[name]
