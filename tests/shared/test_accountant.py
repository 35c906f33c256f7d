"""The reported epsilon, beside an independent accountant and beside what must hold of any."""

from __future__ import annotations

import math
from collections import Counter

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import LocalProtocolError
from shared.privacy.accountant import ROUNDS_MAX, Account, affordable_rounds, epsilon_of
from shared.privacy.charges import Charge, ClientCharge, RecordCharge
from shared.privacy.renyi import ORDERS, epsilon_at, gaussian_curve

DELTA = 1e-4
SAFE = settings(derandomize=True, max_examples=60, deadline=None)


def record(noise: float = 4.55, rate: float = 1.0, steps: int = 1) -> RecordCharge:
    return RecordCharge(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def client(variance: float = 1e6, alone: float = 3e5, l1: float = 3e3, l2: float = 1e2) -> ClientCharge:
    return ClientCharge(variance=variance, variance_alone=alone, l1=l1, l2=l2)


records = st.builds(record, st.floats(0.5, 20.0), st.sampled_from([0.01, 0.3, 1.0]), st.integers(1, 20))
clients = st.builds(client, st.floats(1e5, 1e8), st.floats(2e2, 9e4))
lives = st.lists(records, min_size=1, max_size=4) | st.lists(clients, min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(4.55, 1.0, 60), (8.04, 1.0, 60), (1.0, 0.01, 1000), (2.0, 0.1, 200), (5.0, 0.25, 300), (3.0, 0.5, 40)],
)
def test_epsilon_of_dp_sgd_is_that_of_dp_accounting(noise: float, rate: float, steps: int) -> None:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    theirs = dp_accounting.rdp.RdpAccountant().compose(event, steps).get_epsilon(DELTA)
    exact = dp_accounting.pld.PLDAccountant().compose(event, steps).get_epsilon(DELTA)

    ours = epsilon_of([record(noise, rate, 1)] * steps, DELTA)

    assert ours == pytest.approx(theirs, rel=0.01)
    assert ours >= exact


@pytest.mark.parametrize("noise", [0.6, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.7])
def test_the_sampled_curve_is_the_binomial_sum_at_integer_orders(noise: float, rate: float) -> None:
    curve = gaussian_curve(noise, rate)
    for order in (2, 3, 7, 40):
        # Mironov, Talwar, Zhang 2019, section 3.3: the expectation as a finite sum.
        logs = [
            math.log(math.comb(order, k))
            + k * math.log(rate)
            + (order - k) * math.log1p(-rate)
            + k * (k - 1) / (2 * noise**2)
            for k in range(order + 1)
        ]
        top = max(logs)
        expected = (top + math.log(math.fsum(math.exp(x - top) for x in logs))) / (order - 1)
        found = curve[np.flatnonzero(np.isclose(ORDERS, order))[0]]
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-13)


@SAFE
@given(st.lists(st.floats(0.0, 3.0), min_size=3, max_size=3), st.floats(1e-8, 0.5))
def test_conversion_is_that_of_dp_accounting(coefficients: list[float], delta: float) -> None:
    curve = coefficients[0] ** 4 * ORDERS / 9.0 + coefficients[1] + coefficients[2] / ORDERS
    theirs, _ = dp_accounting.rdp.compute_epsilon(ORDERS, curve, delta)

    assert epsilon_at(curve, delta) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_conversion_of_a_client_level_life_is_that_of_dp_accounting() -> None:
    charge, rounds = client(), 50
    orders = np.arange(2, 65)
    first = orders * charge.l2**2 / (2 * charge.variance)
    second = ((2 * orders - 1) * charge.l2**2 + 6 * charge.l1) / (4 * charge.variance**2)
    curve = first + np.minimum(second, 3 * charge.l1 / (2 * charge.variance))
    theirs, _ = dp_accounting.rdp.compute_epsilon(orders, rounds * curve, DELTA)

    assert epsilon_of([charge] * rounds, DELTA) == pytest.approx(theirs, rel=1e-9)


def test_golden_epsilons() -> None:
    # 60 full batches at sigma 4.55: min over the orders of 60 a / (2 * 4.55²) + log(1 - 1/a) - log(a * 1e-4) / (a - 1),
    # reached at a = 3.3, worked out by hand.
    assert epsilon_of([record(4.55, 1.0, 60)], DELTA) == pytest.approx(7.90637, abs=1e-5)
    assert epsilon_of([], DELTA) == 0.0
    assert epsilon_of([record(steps=0)], DELTA) == 0.0
    assert epsilon_of([record(noise=0.0)], DELTA) == math.inf
    assert epsilon_of([record(noise=0.0, rate=0.0)], DELTA) == 0.0
    assert epsilon_of([client(variance=0.0)], DELTA) == math.inf
    assert epsilon_of([client(variance=99.0)], DELTA) == math.inf, "a coordinate may exceed mu: no theorem"


@SAFE
@given(lives, st.integers(0, 3))
def test_a_further_charge_never_lowers_epsilon(life: list[Charge], which: int) -> None:
    more = life[which % len(life)]

    assert epsilon_of([*life, more], DELTA) >= epsilon_of(life, DELTA)


@SAFE
@given(lives)
def test_epsilon_falls_with_delta_and_counts_are_repetitions(life: list[Charge]) -> None:
    assert epsilon_of(life, 1e-6) >= epsilon_of(life, 1e-3)
    assert epsilon_of(Counter(life * 3), DELTA) == epsilon_of(life * 3, DELTA)
    assert Account(life * 3).releases == 3 * len(life)


@SAFE
@given(st.lists(clients, min_size=1, max_size=4))
def test_alone_a_client_is_protected_less(life: list[Charge]) -> None:
    assert epsilon_of(life, DELTA, alone=True) > epsilon_of(life, DELTA)


@pytest.mark.parametrize("less", [record(noise=4.0), record(rate=1.0, steps=2)])
def test_less_noise_or_more_steps_cost_more(less: RecordCharge) -> None:
    assert epsilon_of([less], DELTA) > epsilon_of([record()], DELTA)


def test_a_smaller_sample_costs_less_down_to_the_full_batch() -> None:
    costs = [epsilon_of([record(2.0, rate, 10)], DELTA) for rate in (0.01, 0.1, 0.5, 0.999999, 1.0)]

    assert costs == sorted(costs)
    assert costs[-2] == pytest.approx(costs[-1], rel=1e-4)


@SAFE
@given(lives, st.floats(0.1, 30.0))
def test_affordable_rounds_is_the_last_that_fits(life: list[Charge], budget: float) -> None:
    charge = life[0]
    rounds = affordable_rounds(life, charge, budget, DELTA)

    spent = epsilon_of(life, DELTA)
    if spent > budget:
        assert rounds == 0
    elif rounds < ROUNDS_MAX:
        counts = Counter(life)
        assert epsilon_of(counts + Counter({charge: rounds}), DELTA) <= budget * (1 + 1e-12)
        assert epsilon_of(counts + Counter({charge: rounds + 1}), DELTA) > budget * (1 - 1e-12)


def test_rounds_of_a_preset_worked_out_by_hand() -> None:
    # sigma 4.55, epsilon 8, delta 1e-4: at a = 3.3 (8 + 0.36101 - 3.48479) / (3.3 / 41.405) = 61.18 rounds.
    assert affordable_rounds([], record(), 8.0, DELTA) == 61
    assert affordable_rounds([record()] * 60, record(), 8.0, DELTA) == 1
    assert affordable_rounds([record()] * 61, record(), 8.0, DELTA) == 0
    assert affordable_rounds([], record(noise=0.0), 8.0, DELTA) == 0
    assert affordable_rounds([], record(noise=1e9), 8.0, DELTA) == ROUNDS_MAX
    assert affordable_rounds([], record(noise=math.inf), 8.0, DELTA) == ROUNDS_MAX


def test_units_are_never_added_and_nothing_is_refunded() -> None:
    with pytest.raises(LocalProtocolError):
        epsilon_of([record(), client()], DELTA)
    with pytest.raises(LocalProtocolError):
        affordable_rounds([record()], client(), 8.0, DELTA)
    with pytest.raises(LocalProtocolError):
        Account([record()]).add(record(), -1)


@pytest.mark.parametrize(
    "charge",
    [
        record(noise=-1.0),
        record(noise=math.nan),
        record(rate=1.1),
        record(rate=math.nan),
        record(steps=-1),
        client(variance=-1.0),
        client(l1=-1.0),
        client(l2=math.nan),
    ],
)
def test_a_charge_that_means_nothing_is_refused(charge: Charge) -> None:
    with pytest.raises(LocalProtocolError):
        epsilon_of([charge], DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_that_means_nothing_is_refused(delta: float) -> None:
    with pytest.raises(LocalProtocolError):
        epsilon_of([record()], delta)
