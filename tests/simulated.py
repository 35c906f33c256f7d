"""How does a test simulate a federation so that it is the same federation in every run?"""

from __future__ import annotations

import random
from collections.abc import Iterator

from deploy.demo.options import DemoOptions
from deploy.demo.simulation import Simulation
from shared.effects import Note

ENTROPY = "the same in every run"


def notes_of(options: DemoOptions) -> Iterator[Note]:
    """What the simulation notes. Its keys and nonces repeat themselves, and with them who meets whom, which
    coordinates are drawn, how a client splits its records: drawn anew each time, a bound would fail by chance."""
    return Simulation(options, entropy=random.Random(ENTROPY).randbytes).run()
