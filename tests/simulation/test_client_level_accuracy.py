"""What hundreds of clients learn in one sum whose noise hides each of them.

The run is the real one from a client's data to the server's step, without masks, which cancel, and without messages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from coordinator.aggregator.gates import pass_gates
from coordinator.output import Evaluator
from coordinator.presets import with_preset
from coordinator.settings import CoordinatorSettings, plan_of
from coordinator.summing.secure_sum import add_words
from shared.codec.coordinates import select_coordinates
from shared.codec.flatten import read_weights
from shared.codec.quantize import NoiseShare, open_mean
from shared.plan import Plan
from shared.privacy.accountant import epsilon_of
from shared.privacy.entropy import SecureSource
from shared.workloads.loading import load_workload
from shared.workloads.port import Workload
from tests.builders import make_federation
from worker.events import Train, TrainingFinished
from worker.stored_update import TaskId
from worker.trainer import Trainer
from worker.update import prepare_words

CLIENTS = 300

"""In one group of 200 to 399, of which four fifths must answer."""


def plan_for(workload: str, epsilon: float) -> Plan:
    """The preset for 300 clients in one group."""
    settings = CoordinatorSettings.model_validate(
        {
            "workload": workload,
            "workload_options": {"partition": "iid", "clients": CLIENTS, "seed": 0},
            "group_size": 200,
            "aggregation": {"rule": "mean", "trim": 0},
            "privacy": {"level": "client", "epsilon": epsilon},
        }
    )
    settings = with_preset(settings)
    workload_found = load_workload(settings.workload, settings.workload_options)
    return plan_of(settings, make_federation(2).directory, workload_found)


def accuracy_of(plan: Plan, *, noised: bool) -> float:
    """Accuracy after the planned rounds; without noise the roundings are the same."""
    workload: Workload = load_workload(plan.workload, plan.workload_options)
    trainer, evaluator = Trainer(workload, plan, lambda _: None, 0), Evaluator(workload)
    source, weights = SecureSource(b"s" * 32), read_weights(workload.model())
    form = plan.sum_format(CLIENTS, plan.codec.clipping_norm)
    assert form.noise is not None
    if not noised:
        form = replace(form, noise=NoiseShare(steps=form.noise.steps, variance=0.0))
    for version in range(plan.round.rounds):
        coordinates = None
        if plan.codec.selection != "dense":
            coordinates = select_coordinates(bytes([version]) * 32, plan.dimension, plan.coordinate_count)
        total = np.zeros(form.length, dtype=form.word_type)
        moved = coordinates if plan.codec.selection == "restricted" else None
        for number in range(CLIENTS):
            done = trainer.run(f"client-{number + 1:03d}", Train(TaskId(version, 0), weights, moved), lambda: False)
            assert done is not None
            assert isinstance(done.outcome, TrainingFinished), done.outcome
            words = prepare_words(done.outcome.values, coordinates, form, weight=1.0, metrics={}, source=source).words
            add_words(total, words)
        slots = pass_gates(total, form, CLIENTS, plan.lightest_records_max)
        where = slice(None) if coordinates is None else coordinates
        weights = weights.copy()
        weights[where] += np.float32(plan.rescale) * open_mean(total, form, slots.weight)
    measured = evaluator.evaluate(plan.round.rounds, weights)
    assert measured is not None
    assert measured.accuracy is not None
    return measured.accuracy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "epsilon", "least"),
    [("digits_linear", 8.0, 0.88), ("digits", 8.0, 0.88)],
)
def test_hundreds_of_clients_learn_in_one_sum(workload: str, epsilon: float, least: float) -> None:
    plan = plan_for(workload, epsilon)
    charge = plan.charge_of_run()
    assert charge is not None
    assert 0.99 * epsilon < epsilon_of(Counter({charge: plan.round.rounds}), 1e-4) <= epsilon

    private, open_ = accuracy_of(plan, noised=True), accuracy_of(plan, noised=False)

    assert private >= least, f"{private:.1%}; {open_:.1%} without noise"
    assert open_ - private < 0.05, f"{private:.1%}, but {open_:.1%} without noise"
