"""What a member adds to a sum at client level: bounded integers, its share of the noise, and nothing else."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.aggregator.gates import mean_norm, norm_limit, pass_gates
from coordinator.aggregator.weighted_mean import MeanAccumulator
from coordinator.summing.secure_sum import add_words
from shared.codec.quantize import SumFormat, Words, open_mean, open_slots, signed_view
from shared.errors import LocalProtocolError, PlanError, RemoteProtocolError
from shared.plan import Plan
from shared.privacy.accountant import epsilon_of
from shared.privacy.charges import ClientCharge
from shared.privacy.entropy import SecureSource
from shared.privacy.rounding import norm_bounds, round_within
from shared.privacy.skellam import skellam
from tests.builders import tiny_plan
from worker.budget import Spending, terms_of
from worker.policy import PrivacyBudget
from worker.stored_update import StoredUpdate, TaskId, UpdateId, UpdateMeta
from worker.update import prepare_for_sum, prepare_words

COUNT = 20_000
FALSE_ALARM_DEVIATIONS = 3.72
"""A right sampler with a random key fails one of the comparisons once in 10,000; keys are fixed, none does by luck."""


def private_plan(count: int = COUNT, **fields: Any) -> Plan:
    """All of `count` values, in groups of 4 to 7 with one colluder."""
    return tiny_plan(
        count,
        **{
            "group_size": 4,
            "max_colluders": 1,
            "threshold_fraction": 0.8,
            "codec": {"selection": "dense", "density": 1.0, "adaptive_clipping": False, "clipping_norm": 2.0},
            "privacy": {"level": "client", "epsilon": 8.0, "delta": 1e-4, "noise_multiplier": 3.0},
            **fields,
        },
    )


def source_of(member: int) -> SecureSource:
    return SecureSource(member.to_bytes(32, "big"))


def words_of(update: npt.NDArray[np.float32], form: SumFormat, member: int) -> Words:
    return prepare_words(update, None, form, weight=1.0, metrics={}, source=source_of(member)).words


def updates_of(members: int, norm: float, count: int = COUNT) -> list[npt.NDArray[np.float32]]:
    drawn = np.random.default_rng(members).standard_normal((members, count))
    return [(norm * one / np.linalg.norm(one)).astype(np.float32) for one in drawn]


def sum_of(members: list[Words]) -> Words:
    total = np.zeros_like(members[0])
    for words in members:
        add_words(total, words)
    return total


@pytest.mark.parametrize("members", [4, 5, 6, 7])
def test_any_honest_members_of_an_opened_sum_reach_the_noise_that_is_charged(members: int) -> None:
    plan = private_plan()
    form, charge = plan.sum_format(members, 2.0), plan.charge_of_run()
    assert isinstance(charge, ClientCharge)
    nothing = np.zeros(COUNT, dtype=np.float32)
    noise = [signed_view(words_of(nothing, form, one))[:COUNT].astype(np.float64) for one in range(members)]
    honest = plan.threshold(members) - 1

    assert honest == {4: 3, 5: 3, 6: 4, 7: 5}[members]
    # The estimate of a variance from k values has a standard deviation of sqrt(2 / k) of it.
    slack = FALSE_ALARM_DEVIATIONS * math.sqrt(2.0 / COUNT)
    for first in range(members - honest + 1):
        together = np.mean(np.square(sum(noise[first : first + honest])))
        assert charge.variance * (1 - slack) <= together <= charge.variance * (1 + slack)
    assert min(np.mean(one**2) for one in noise) >= charge.variance_alone * (1 - slack)
    assert np.mean(np.square(noise[0])) == pytest.approx(charge.variance / honest, rel=slack)


def test_alone_a_client_adds_all_of_it() -> None:
    plan = private_plan(group_size=1, threshold_fraction=0.0)
    charge = plan.charge_of_run()
    assert isinstance(charge, ClientCharge)
    assert charge.variance == charge.variance_alone == pytest.approx((3.0 * 65_536) ** 2)
    noise = signed_view(words_of(np.zeros(COUNT, dtype=np.float32), plan.sum_format(1, 2.0), 0))[:COUNT]
    assert np.mean(noise.astype(np.float64) ** 2) >= charge.variance * (1 - 0.0372)


@pytest.mark.parametrize("norm", [0.5, 2.0, 70.0])
def test_the_sum_less_its_noise_is_the_sum_of_rounded_updates(norm: float) -> None:
    plan = private_plan()
    form, updates = plan.sum_format(5, 2.0), updates_of(5, norm)
    assert form.noise is not None
    total = sum_of([words_of(update, form, member) for member, update in enumerate(updates)])

    left = signed_view(total)[:COUNT].astype(np.int64)
    rounded = np.zeros(COUNT, dtype=np.int64)
    for member, update in enumerate(updates):
        source = source_of(member)
        integers = round_within(update, form.scale, 2.0, source)
        assert int(integers @ integers) <= norm_bounds(65_536, COUNT).l2 ** 2
        rounded += integers
        left -= skellam(COUNT, form.noise.variance, source)

    assert (left == rounded).all()
    exact = sum(update.astype(np.float64) * min(1.0, 2.0 / norm) for update in updates)
    assert np.abs(rounded / form.scale - exact).max() <= 5 / form.scale


def test_beside_the_noised_values_all_members_send_the_same() -> None:
    plan = private_plan()
    form = plan.sum_format(4, 2.0)
    slots = set()
    for records, update in zip((1, 10, 5_000), updates_of(3, 1.0), strict=True):
        meta = UpdateMeta(task=TaskId(0, 0), trained_head=bytes(32), num_examples=records, metrics={"loss": 9.0})
        stored = StoredUpdate(update_id=UpdateId(1), meta=meta, values=update * records)
        prepared, behind = prepare_for_sum(stored, plan, None, form, source_of(records), prepare_words)
        slots.add((prepared.words[COUNT:].tobytes(), behind))

    assert len(slots) == 1


def test_noise_that_could_be_found_out_is_not_sent() -> None:
    form, update = private_plan().sum_format(4, 2.0), updates_of(1, 1.0)[0]
    with pytest.raises(LocalProtocolError, match="Generator can be found out"):
        prepare_words(update, None, form, weight=1.0, metrics={}, source=np.random.default_rng(0))
    with pytest.raises(LocalProtocolError, match=r"weight 0\.5 cannot be noised"):
        prepare_words(update, None, form, weight=0.5, metrics={}, source=source_of(0))


def test_a_run_costs_what_the_theorem_says_by_hand() -> None:
    plan = private_plan(1_200)
    charge = plan.charge_of_run()
    assert isinstance(charge, ClientCharge)
    # Kairouz et al. (2021) for s C = 65,536 and k = 1,200; Agarwal et al. (2021), corollary 4.1, at integer orders.
    l2 = math.sqrt(65_536.0**2 + 300.0 + 65_536.0 + math.sqrt(300.0))
    l1, mu = math.sqrt(1_200.0) * l2, (3.0 * 65_536.0) ** 2
    assert (charge.variance, charge.l1, charge.l2) == (pytest.approx(mu), pytest.approx(l1), pytest.approx(l2))
    assert charge.variance_alone == pytest.approx(mu / 5)

    def epsilon(rounds: int, variance: float) -> float:
        orders = np.arange(2, 129)
        extra = np.minimum(((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
        curve = rounds * (orders * l2**2 / (2 * variance) + extra)
        return float((curve + np.log1p(-1 / orders) - np.log(1e-4 * orders) / (orders - 1)).min())

    assert epsilon_of(Counter({charge: 25}), 1e-4) == pytest.approx(epsilon(25, mu), rel=1e-6)
    assert epsilon_of(Counter({charge: 25}), 1e-4, alone=True) == pytest.approx(epsilon(25, mu / 5), rel=1e-6)


def test_a_client_stops_where_its_own_budget_ends() -> None:
    terms = terms_of(private_plan(1_200))
    assert terms.charge is not None
    three = epsilon_of([terms.charge] * 3, 1e-4)
    spending = Spending([], PrivacyBudget(epsilon=three * 1.01, delta=1e-4))
    for _ in range(3):
        assert not spending.objection_to(terms)
        spending.add(terms.charge)
    assert "client-level epsilon" in spending.objection_to(terms)


def test_sums_have_room_for_six_deviations_or_are_refused() -> None:
    # The worst group is the one of five, of which three are counted on: (2^31 - 6 - 5 * 65,536) / (6 sqrt(5/3) 65,536).
    edge = (2**31 - 6 - 5 * 65_536) / (6 * math.sqrt(5 / 3) * 65_536)
    given = private_plan().privacy.model_dump()
    private_plan(8, privacy={**given, "noise_multiplier": edge * 0.9999})
    with pytest.raises(PlanError, match="5 members and 6 standard deviations of their noise"):
        private_plan(8, privacy={**given, "noise_multiplier": edge * 1.0001})


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("norm", [0.0, 2.0, 100.0])
def test_noised_sums_of_honest_members_pass_the_gate(norm: float, lost: int) -> None:
    plan = private_plan()
    form, arrived = plan.sum_format(7, 2.0), 7 - lost
    same = updates_of(1, 1.0)[0] * np.float32(norm)
    total = sum_of([words_of(same, form, member) for member in range(arrived)])

    slots = pass_gates(total, form, arrived, plan.lightest_records_max)

    limit = norm_limit(form, arrived, slots.weight)
    assert 0.9 * limit < mean_norm(total, form, slots.weight) < limit, "and the limit is no looser than it must be"


def test_a_sum_much_longer_than_its_noise_does_not_pass() -> None:
    plan = private_plan()
    form = plan.sum_format(4, 2.0)
    total = sum_of([words_of(np.zeros(COUNT, dtype=np.float32), form, member) for member in range(4)])
    reach = norm_limit(form, 4, 4.0) * form.scale * 4.0
    signed_view(total)[:COUNT] += np.int32(0.6 * reach / math.sqrt(COUNT)) * np.where(np.arange(COUNT) % 2, 1, -1)

    with pytest.raises(RemoteProtocolError, match="above the limit"):
        pass_gates(total, form, 4, plan.lightest_records_max)


def test_the_mean_of_many_values_has_room_for_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a number of values all groups are added in 32 bits on one scale, which leaves room for more than C."""
    monkeypatch.setattr("coordinator.aggregator.weighted_mean._SMALL_COUNT", 100)
    plan = private_plan(1_000, privacy={**private_plan().privacy.model_dump(), "noise_multiplier": 500.0})
    form = plan.sum_format(4, 2.0)
    accumulator, means = MeanAccumulator(1_000, 40, form.value_max), []
    for group in range(10):
        total = sum_of([words_of(update, form, 10 * group + i) for i, update in enumerate(updates_of(4, 1.0, 1_000))])
        weight = open_slots(total, form, 4).weight
        accumulator.add(total, form, weight)
        means.append(open_mean(total, form, weight))

    assert accumulator.take() == pytest.approx(np.mean(means, axis=0), abs=0.05)
