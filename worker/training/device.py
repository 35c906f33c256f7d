"""On which device of torch does a worker train, and what does the device draw at random?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.errors import SettingsError

CPU = torch.device("cpu")


def training_device(name: str) -> torch.device:
    """Return the device that the setting `device` names.

    Args:
        name: cpu, cuda, cuda:N or mps.

    Raises:
        SettingsError: this machine's torch does not have it; one line with the remedy.
    """
    kind, colon, number = name.partition(":")
    remedy = "set COMITIA_DEVICE=cpu, or install a torch and a driver that have it"
    match kind:
        case "cpu" if not colon:
            return CPU
        case "mps" if not colon:
            if not torch.backends.mps.is_available():
                raise SettingsError(f"device: torch {torch.__version__} finds no 'mps' on this machine; {remedy}")
            return torch.device("mps")
        case "cuda" if not colon or number.isdecimal():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if count <= int(number or 0):
                raise SettingsError(
                    f"device: {name!r} is not there, torch {torch.__version__} finds {count} CUDA devices; {remedy}"
                )
            return torch.device("cuda", int(number or 0))
    raise SettingsError(f"device: {name!r} is none of cpu, cuda, cuda:N, mps; set COMITIA_DEVICE=cpu")


@contextmanager
def seeded_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Let what a model draws (dropout) follow from `seed`; the processor's random numbers go on afterwards as before.

    Those of another device begin anew: nothing else in a worker draws there.
    """
    with torch.random.fork_rng(devices=[]):
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        yield
