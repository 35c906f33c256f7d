"""A process of dishonest clients: how the attacks of `deploy.demo.attacks` get into a worker. For demonstrations only.

The worker itself knows nothing of this: its training and its encoding are replaced. Attackers know everything: before
their own training they repeat that of every honest client, on the same weights, data and seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.demo.attacks import (
    ATTACKS,
    DATA_ATTACKS,
    FlippedLabels,
    Knowledge,
    encode_unclipped,
    forge,
    largest_norm,
)
from shared.codec.coordinates import Coordinates
from shared.codec.flatten import FloatVector
from shared.codec.quantize import SumFormat, UniformSource, l2_norm
from shared.errors import SettingsError
from shared.workloads.batches import batches
from shared.workloads.port import Examples, Workload
from worker.events import Train, TrainingFinished
from worker.stored_update import TaskId
from worker.trainer import Runs, Trained
from worker.update import PreparedUpdate, prepare_words

CLAIMED_WEIGHT = 1.0
"""What an attacker says it weighs: as much as it may."""

_ALONE = ("sign-flip", "noise")
"""Attacks that need to know no other client's update."""


class Attacker:
    """What training and encoding of one attacking process share."""

    def __init__(self, attack: str, attackers: Sequence[str], honest: Sequence[str], seed: int) -> None:
        """
        Args:
            attack: one of `deploy.demo.attacks.ATTACKS`.
            attackers: the clients that attack together.
            honest: all others.
            seed: of the noise.

        Raises:
            SettingsError: there is no such attack.
        """
        if attack not in ATTACKS:
            raise SettingsError(f"attack: {attack!r} is none of {', '.join(ATTACKS)}")
        self._attack = attack
        self._attackers = len(attackers)
        self._honest = tuple(honest)
        self._source = np.random.default_rng([seed, self._attackers])
        self._task: TaskId | None = None
        self._updates: list[FloatVector] = []

    def poison(self, workload: Workload) -> Workload:
        """The workload that the attackers train on."""
        return _Poisoned(workload) if self._attack in DATA_ATTACKS else workload

    def watch(self, trainer: Runs) -> Runs:
        """A trainer that finds out the honest clients' updates first, if the attack needs them."""
        return trainer if self._attack in (*_ALONE, *DATA_ATTACKS) else _Watching(self, trainer)

    def learn(self, trainer: Runs, order: Train, should_stop: Callable[[], bool]) -> None:
        """Repeat the honest clients' training, once per task."""
        if order.task == self._task:
            return
        runs = (trainer.run(client, order, should_stop) for client in self._honest)
        outcomes = [run.outcome for run in runs if run is not None]
        self._updates = [outcome.values for outcome in outcomes if isinstance(outcome, TrainingFinished)]
        self._task = order.task

    def encode(
        self,
        update: FloatVector,
        coordinates: Coordinates | None,
        form: SumFormat,
        *,
        weight: float,
        metrics: Mapping[str, float],
        source: UniformSource,
        damping: float = 1.0,
    ) -> PreparedUpdate:
        """Words of the attack; see `worker.update.Encode`. Forged values are as long however stale they are."""
        if self._attack in DATA_ATTACKS:
            return prepare_words(
                update, coordinates, form, weight=weight, metrics=metrics, source=source, damping=damping
            )
        known = Knowledge(
            honest=self._updates or [update],
            coordinates=coordinates,
            attackers=self._attackers,
            clipping_norm=form.clipping_norm,
            members=form.members,
            norm_max=largest_norm(form, CLAIMED_WEIGHT),
        )
        values = forge(self._attack, update, known, self._source)
        words = encode_unclipped(values, form, weight=CLAIMED_WEIGHT, metrics=metrics)
        return PreparedUpdate(words=words, norm=l2_norm(values), clipped=False, clamped=())


@dataclasses.dataclass
class _Watching:
    """See `Attacker.watch`."""

    attacker: Attacker
    inner: Runs

    def run(self, client: str, order: Train, should_stop: Callable[[], bool]) -> Trained | None:
        """See `worker.trainer.Runs`."""
        self.attacker.learn(self.inner, order, should_stop)
        return self.inner.run(client, order, should_stop)

    def forget(self, client: str) -> None:
        """See `worker.trainer.Runs`."""
        self.inner.forget(client)


class _Poisoned:
    """A workload whose clients see flipped labels."""

    def __init__(self, inner: Workload) -> None:
        self.name, self.recipe = inner.name, inner.recipe
        self.model, self.evaluation_data = inner.model, inner.evaluation_data
        self.loss, self.metrics = inner.loss, inner.metrics
        self._inner = inner

    def client_data(self, client: str, path: Path | None) -> Examples:
        """See `shared.workloads.port.Workload`."""
        own, held_out = self._inner.client_data(client, path), self.evaluation_data()
        known = own if held_out is None else held_out
        return FlippedLabels(own, 1 + max(int(targets.max()) for _, targets in batches(known, 1024)))
