"""An attack on the Gaussian mechanism of DP-SGD, strong enough to see when the noise is missing or too small.

The attacker knows every record but one, the canary, and sees the sum of clipped gradients of one step of a linear
model, with noise. From 2,000 runs with the canary and 2,000 without it, the first half of each picks the best
threshold and the second half gives, by Clopper and Pearson, an epsilon that the mechanism does not keep at 99 %
confidence: epsilon >= log((true positives - delta) / false positives).

Reference: M. Jagielski, J. Ullman, A. Oprea, "Auditing Differentially Private Machine Learning", NeurIPS 2020.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from shared.privacy.accountant import epsilon_of
from shared.privacy.calibration import noise_multiplier_for
from shared.privacy.charges import RecordCharge
from shared.privacy.entropy import SecureSource

EPSILON, DELTA = 1.0, 1e-4
RUNS = 2_000
CLIP = 0.5
CONFIDENCE = 0.99

Vector = npt.NDArray[np.float64]


def clipped_sum(features: Vector, targets: Vector) -> Vector:
    """Sum over the records of the squared loss' gradient at weights 0, each clipped to norm CLIP."""
    gradients = -targets[:, None] * features
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return np.asarray((gradients * np.minimum(1.0, CLIP / norms)).sum(axis=0))


def audited_epsilon(sigma: float) -> float:
    """Return the largest epsilon that the runs refute, 0 if none."""
    source = SecureSource(b"a privacy audit of 2000 runs ...")
    features, canary = np.empty((30, 6)), np.zeros((1, 6))
    source.normals(features)
    targets = np.ones(30)
    canary[0, 0] = 100.0
    without = clipped_sum(features, targets)
    both = clipped_sum(np.vstack([features, canary]), np.append(targets, -1.0))
    scores = []
    for center in (both, without):
        noise = np.empty((RUNS, 6))
        source.normals(noise)
        scores.append((center + sigma * CLIP * noise - without)[:, 0])
    return refuted(*(part[: RUNS // 2] for part in scores), *(part[RUNS // 2 :] for part in scores))


def refuted(seen: Vector, unseen: Vector, judged: Vector, judged_without: Vector) -> float:
    """Choose the threshold on the first pair, and bound both rates on the second with half of the error for each."""
    thresholds = np.quantile(np.concatenate([seen, unseen]), np.linspace(0.02, 0.98, 49))
    threshold = max(thresholds, key=lambda t: bound(int((seen > t).sum()), int((unseen > t).sum()), len(seen)))
    return bound(int((judged > threshold).sum()), int((judged_without > threshold).sum()), len(judged))


def bound(hits: int, alarms: int, runs: int) -> float:
    error = (1.0 - CONFIDENCE) / 2.0
    rate_min = float(stats.beta.ppf(error, hits, runs - hits + 1)) if hits else 0.0
    alarm_max = float(stats.beta.ppf(1.0 - error, alarms + 1, runs - alarms)) if alarms < runs else 1.0
    return max(0.0, math.log((rate_min - DELTA) / alarm_max)) if rate_min > DELTA else 0.0


def test_no_audit_refutes_the_epsilon_that_is_reported() -> None:
    sigma = noise_multiplier_for(EPSILON, DELTA, sampling_rate=1.0, steps=1)
    charge = RecordCharge(noise_multiplier=sigma, sampling_rate=1.0, steps=1)

    assert epsilon_of([charge], DELTA) <= EPSILON
    assert audited_epsilon(sigma) <= EPSILON


def test_the_audit_sees_missing_noise() -> None:
    assert audited_epsilon(0.0) > EPSILON


def test_the_audit_sees_a_fifth_of_the_noise() -> None:
    sigma = noise_multiplier_for(EPSILON, DELTA, sampling_rate=1.0, steps=1)

    assert audited_epsilon(sigma / 5.0) > EPSILON
