"""What does a seed decide before anything happens? The plan, who takes part, and how much goes wrong for how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from shared.plan import Plan
from shared.transport.faults import Faults
from tests.builders import tiny_plan
from tests.tiny_workload import TinyWorkload
from worker.policy import Policy, PrivacyBudget

ROUNDS = 8
FEATURES = 9
CLIENTS_MIN = 6
BUDGET_ENDLESS = 1e6
"""An epsilon that no seed reaches."""

_ROUND: dict[str, Any] = {
    "rounds": ROUNDS,
    "round_deadline_s": 8.0,
    "group_step_s": 3.0,
    "sums_deadline_s": 12.0,
    "straggler_grace_s": 1.0,
    "status_interval_s": 3.0,
}
_PRIVACY: dict[str, dict[str, Any]] = {
    "off": {},
    "record": {
        "level": "record",
        "epsilon": 8.0,
        "delta": 1e-3,
        "noise_multiplier": 2.0,
        "sampling_rate": 0.5,
        "nominal_records": 8.0,
    },
    "client": {"level": "client", "epsilon": 50.0, "delta": 1e-3, "noise_multiplier": 1.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One federation and its trouble. `stages` 0: the coordinator sums. Durations in seconds of virtual time."""

    seed: int
    plan: Plan
    policy: Policy
    workload: TinyWorkload
    clients: int
    processes: int
    stages: int
    stand_by: bool
    faults: Faults
    trouble_s: float
    mishap_every_s: float
    training_s: float
    failing: float

    def summary(self) -> str:
        """The seed's choices in one line."""
        plan = self.plan
        return (
            f"{plan.round.mode} g={plan.group_size} c={plan.max_colluders} trim={plan.aggregation.trim} "
            f"{plan.aggregation.rule} {plan.codec.selection} privacy={plan.privacy.level} clients={self.clients} "
            f"workers={self.processes} stages={self.stages}"
        )


def scenario(seed: int) -> Scenario:
    """The scenario of one seed."""
    chance = random.Random(f"scenario {seed}")
    workload = TinyWorkload(features=FEATURES)
    group_size = chance.choice((1, 3, 3, 4))
    colluders = chance.choice((0, 1)) if group_size > 1 else 0
    trim = chance.choice((0, 0, 1))
    mode = chance.choice(("sync", "sync", "async"))
    level = chance.choice(("off", "off", "record", "client"))
    selection = _selection(chance, group_size, mode, level)
    budget = chance.random() < 0.05
    plan = tiny_plan(
        workload.dimension,
        layout_digest=workload.layout_digest,
        weight_records_max=24,
        group_size=group_size,
        max_colluders=colluders,
        threshold_fraction=0.8 if level == "client" and group_size > 1 else 0.0,
        metric_bounds={"loss": 50.0} if level == "off" else {},
        training={"optimizer": {"name": "SGD", "options": {"lr": 0.1}}},
        privacy=_PRIVACY[level],
        codec={
            "selection": selection,
            "density": 1.0 if selection == "dense" else 0.4,
            "bits": 32,
            "clipping_norm": 2.0,
            "adaptive_clipping": level == "off" and chance.random() < 0.5,
        },
        aggregation={"rule": _rule(chance, trim, selection), "trim": trim},
        round={**_ROUND, "mode": mode, "snapshot_every": chance.choice((1, 1, 3)), **_pace(chance, mode)},
    )
    return Scenario(
        seed=seed,
        plan=plan,
        policy=Policy(
            allow_groups_of_one=group_size == 1,
            max_colluders=colluders,
            privacy_budget=PrivacyBudget(epsilon=None if budget else BUDGET_ENDLESS),
        ),
        workload=workload,
        clients=max(CLIENTS_MIN, plan.min_offers + chance.randint(0, 3)),
        processes=chance.choice((2, 3)),
        stages=chance.choice((0, 2, 2)),
        stand_by=chance.random() < 0.5,
        faults=Faults(
            seed=chance.getrandbits(32),
            delay=chance.choice((0.1, 0.3)),
            delay_max_s=chance.choice((0.05, 0.3, 1.0)),
            lost_confirm=chance.choice((0.0, 0.003, 0.01)),
            duplicate=chance.choice((0.03, 0.1, 0.2)),
            drop_transient=chance.choice((0.0, 0.02, 0.05)),
            connection_loss=chance.choice((0.0, 0.002, 0.005)),
            outage_max_s=chance.choice((0.2, 1.0)),
        ),
        trouble_s=chance.uniform(30.0, 70.0),
        mishap_every_s=chance.choice((1.5, 3.0, 6.0)),
        training_s=chance.choice((0.2, 1.0, 3.0)),
        failing=chance.choice((0.0, 0.0, 0.03)),
    )


def _selection(chance: random.Random, group_size: int, mode: str, level: str) -> str:
    choices = ["dense", "random"]
    if mode == "sync":
        choices.append("restricted")
    if group_size == 1 and level == "off":
        choices += ["top_k", "top_k"]
    return chance.choice(choices)


def _rule(chance: random.Random, trim: int, selection: str) -> str:
    if trim:
        return chance.choice(("nnm-trimmed-mean", "trimmed-mean"))
    rules = ["mean", "trimmed-mean", "nnm-trimmed-mean"]
    return chance.choice(rules if selection == "top_k" else [*rules, "median"])


def _pace(chance: random.Random, mode: str) -> dict[str, Any]:
    if mode == "sync":
        return {"offer_quorum": chance.choice((1.0, 0.8))}
    return {"max_staleness": chance.choice((None, 2, 5))}
