"""Two worlds with the same sum: can the coordinator and its colluders tell who of two honest members sent which update?

In one world `client-0` sends zeros and `client-1` the largest update that is not clipped, in the other one they are
exchanged; all else is drawn afresh in every run. A classifier sees everything that the coordinator and one colluding
member see, after it has taken off all masks that they can take off, in runs in which another honest member is lost
before its words, so that its masking key is rebuilt.

Its scores on runs that it was not trained on are exchangeable if the worlds look the same. Then the area under its ROC
curve, over m runs of each world, has mean 1/2 and variance (2m + 1) / (12 m^2) (Mann and Whitney 1947), and is close to
normal. The bound below (0.5 +- 0.22 for m = 60) leaves a false alarm of 1e-4 to both classifiers together; seeds are
fixed, so what has passed once passes again. Rounding is stochastic, but the sum of both updates has the same
distribution in both worlds.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from coordinator.events import GroupSummed
from shared.crypto.commitments import Secret
from shared.crypto.masks import MaskKeys
from shared.wire.group_messages import Words
from tests.protocol.adversary import Hub
from tests.protocol.circle import Circle, D, Letter
from tests.protocol.scenes import LENIENT
from worker import member
from worker.dealing import Ring, mask_keys

FALSE_ALARM = 1e-4
CLASSIFIERS = 2
TRAINED, TESTED = 60, 60
"""Runs of each world."""

LOST, COLLUDER = "client-3", "client-4"


def view(world: int, run: int) -> np.ndarray:
    """One round of five clients (t = 4, c = 1) as the coordinator and its colluder see it, as one vector of numbers."""
    extreme = np.full(D, 1.0 / np.sqrt(D), dtype=np.float32) * 0.999
    updates = np.random.default_rng([run, world]).normal(0, 0.1, (5, D)).astype(np.float32)
    updates[world], updates[1 - world] = 0.0, extreme
    circle = Circle(5, max_colluders=1, updates=updates, policy=LENIENT, seed=2 * run + world)
    hub = Hub(circle, [COLLUDER])
    transcript = hub.open_group(circle.group)
    letters: list[Letter] = []

    def watch(letter: Letter) -> bool:
        letters.append(letter)
        if not letter.to:
            hub.hear(letter)
        return not (letter.sender == LOST and isinstance(letter.message, Words))

    circle.start()
    circle.run(watch)
    circle.tick(11.0)
    circle.run(watch, now=11.0)
    (result,) = circle.results
    assert isinstance(result, GroupSummed)
    assert result.dropped == (LOST,)
    return np.concatenate([_numbers(hub, transcript), _sizes(letters), _signed(result.words)])


def _numbers(hub: Hub, transcript: bytes) -> np.ndarray:
    """The words of both members, stripped; what is left of them added up; every share and box of theirs."""
    hub.collect(transcript)
    stripped = [words for place in (0, 1) if (words := hub.strip(transcript, place)) is not None]
    assert len(stripped) == 2
    heard = hub.groups[transcript]
    secrets = b"".join(
        heard.shares[kind, dealer].get(x, bytes(33))
        for kind in Secret
        for dealer in (0, 1)
        for x in (1, 2, 3, 5)
        if kind is Secret.SELF_MASK or x == 5
    )
    raw = [np.frombuffer(heard.words[place].body, dtype=np.uint32) for place in (0, 1)]
    assert len(hub.masking_seeds) == 2  # the colluder's own and that of the lost member
    return np.concatenate(
        [
            *(_signed(words) for words in (*stripped, *raw, stripped[0] + stripped[1])),
            *(np.abs(_signed(words)) for words in stripped),
            np.frombuffer(secrets, dtype=np.uint8) / 255.0,
        ]
    )


def _sizes(letters: list[Letter]) -> np.ndarray:
    """How large each letter was, and who sent it, in the order in which they came."""
    who = {"stage": 0, **{f"client-{number}": number + 1 for number in range(5)}}
    rows = [(len(letter.frame), who[letter.sender], who[letter.to or "stage"]) for letter in letters]
    return np.array(rows, dtype=np.float64).ravel()


def _signed(words: np.ndarray) -> np.ndarray:
    return words.view(np.int32) / 2.0**31


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a run of world 1 scores above one of world 0; ties count half."""
    ones, zeros = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return float(((ones > zeros) + 0.5 * (ones == zeros)).mean())


def areas(trained: int, tested: int) -> tuple[float, float]:
    """Of a ridge regression on all features, and of the single feature that parts the training runs best."""
    runs = trained + tested
    labels = np.array([world for _ in range(runs) for world in (0, 1)])
    seen = np.array([view(world, run) for run in range(runs) for world in (0, 1)])
    train, test = slice(0, 2 * trained), slice(2 * trained, None)
    mean, spread = seen[train].mean(axis=0), seen[train].std(axis=0)
    features = (seen - mean) / np.where(spread > 0, spread, 1.0)
    target = 2.0 * labels[train] - 1.0
    # Ridge in its dual form: there are more features than runs.
    known = features[train]
    weights = known.T @ np.linalg.solve(known @ known.T + known.shape[1] * np.eye(len(known)), target)
    best = max(range(known.shape[1]), key=lambda one: abs(known[:, one] @ target))
    sign = np.sign(known[:, best] @ target) or 1.0
    return area(features[test] @ weights, labels[test]), area(sign * features[test][:, best], labels[test])


def bound(tested: int) -> float:
    """How far an area may be from 1/2."""
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / CLASSIFIERS / 2)
    return z * float(np.sqrt((2 * tested + 1) / (12 * tested**2)))


def test_the_worlds_look_the_same() -> None:
    for found in areas(TRAINED, TESTED):
        assert abs(found - 0.5) <= bound(TESTED)


def test_they_do_not_without_pair_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def self_mask_only(ring: Ring, *args: object) -> MaskKeys:
        keys = mask_keys(ring, *args)  # type: ignore[arg-type]
        return MaskKeys(keys.plus[:1], ())

    def no_pairs(self: Hub, *args: object) -> None:
        return None

    monkeypatch.setattr(member, "mask_keys", self_mask_only)
    monkeypatch.setattr(Hub, "_secret_of", no_pairs)
    # The stage takes masks off that are not there: its sum is wrong, and does not matter here.
    for found in areas(30, 30):
        assert found - 0.5 > bound(30)
        assert found > 0.99


def test_the_bound_is_that_of_the_rank_sum() -> None:
    """Areas of scores that know nothing, 2000 times: as wide as the formula says."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], TESTED)
    found = [area(rng.normal(size=2 * TESTED), labels) for _ in range(2000)]
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / CLASSIFIERS / 2)
    assert np.std(found) * z == pytest.approx(bound(TESTED), rel=0.05)
