"""Training without a model: an update is a random vector that no other run makes, known by its loss."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from shared.plan import Plan
from worker.events import Train, TrainingFailed, TrainingFinished
from worker.trainer import Trained

if TYPE_CHECKING:
    from tests.sim.world import World


class SimulatedTraining:
    """The training of one worker process; a run takes virtual time."""

    def __init__(self, world: World, plan: Plan, name: str) -> None:
        self._world = world
        self._plan = plan
        self._due: dict[str, tuple[float, Trained]] = {}

    def start(self, client: str, order: Train) -> None:
        world, chance = self._world, self._world.training
        seconds = chance.uniform(0.0, world.scenario.training_s) * world.slowness.get(client, 1.0)
        self._due[client] = (world.now + seconds, self._run(client, order, chance))

    def stop(self, client: str) -> None:
        self._due.pop(client, None)

    def forget(self, client: str) -> None:
        self.stop(client)

    def close(self) -> None:
        self._due.clear()

    def next_at(self) -> float:
        """When the next run ends."""
        return min((due for due, _ in self._due.values()), default=float("inf"))

    def finished(self, now: float) -> list[Trained]:
        """The runs that have ended."""
        ended = [client for client, (due, _) in self._due.items() if now >= due]
        return [self._due.pop(client)[1] for client in ended]

    def _run(self, client: str, order: Train, chance: random.Random) -> Trained:
        if chance.random() < self._world.scenario.failing and not self._world.calm:
            self._world.count("training_failed")
            return Trained(client, TrainingFailed(order.task, "the data are gone"))
        values = np.array([chance.gauss(0.0, 0.05) for _ in range(self._plan.dimension)], dtype=np.float32)
        if order.coordinates is not None:
            kept = np.zeros_like(values)
            kept[order.coordinates] = values[order.coordinates]
            values = kept
        tag = chance.uniform(0.0, 40.0)
        self._world.owner[tag] = client
        return Trained(client, TrainingFinished(order.task, values, chance.randint(1, 30), {"loss": tag}))
