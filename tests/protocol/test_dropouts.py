"""Clients that are lost, at each phase of their group, before and after each message: the sum of who arrived, or none.

A client's part in a group is eight letters, to it and from it in turn. A *loss point* k (0 to 7) means that its first k
letters pass, and nothing from it or to it ever again. What the group comes to follows from the loss points alone
(`expected`), so every case is checked in full, not only for being safe.

Every choice of clients and loss points is run where there are up to some thousand of them. Where three may be lost,
there are tens of thousands, some 20 minutes of computing: of those, each multiset of loss points is run, and all of
them with COMITIA_TEST_DROPOUTS=all in the environment.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, combinations_with_replacement, product

import numpy as np
import pytest

from coordinator.events import GroupGivenUp, GroupSummed
from shared.wire.group_messages import Agreement, Arrived, Participants, Reveal, Roster, Shares, Unmask, Words
from tests.protocol.circle import Circle, Letter, remembered_agreements

_log = logging.getLogger(__name__)
"""Says how many cases there were: `pytest --log-cli-level=INFO`."""

LETTERS = (Roster, Shares, Participants, Words, Arrived, Agreement, Unmask, Reveal)
STAYS = len(LETTERS)
POINTS = range(STAYS)
"""Loss points: before the roster, after it and before the shares, …, after the unmasking and before the reveal."""

SEEN = ((0, 1), (2, 3), (4, 5), (6, 7))
"""Loss points that all the others see as the same: what did not reach the lost client, or was not answered by it."""

Case = tuple[int, ...]
"""For each client, in the order of the roster, how many of its letters pass."""


class Lossy:
    """Lets the first `case[place]` letters of each client pass, and nothing after the first one that is lost."""

    def __init__(self, circle: Circle, case: Case) -> None:
        self.points = dict(zip(circle.clients, case, strict=True))
        self.lost: set[str] = set()

    def __call__(self, letter: Letter) -> bool:
        client = letter.to or letter.sender
        if LETTERS.index(type(letter.message)) >= self.points[client]:
            self.lost.add(client)
        return client not in self.lost


def expected(circle: Circle, case: Case) -> frozenset[str] | None:
    """Whose updates are summed; None: the group is given up."""
    members = len(case)
    threshold, floor = circle.plan.threshold(members), circle.plan.summed_floor(members)

    def passed(letter: type) -> int:
        return sum(point > LETTERS.index(letter) for point in case)

    # Shares are fewer than words only if words are too few as well; t reveals come from t who have agreed.
    if passed(Words) < floor or passed(Reveal) < threshold:
        return None
    return frozenset(c for c, point in zip(circle.clients, case, strict=True) if point > LETTERS.index(Words))


def check(circle: Circle, case: Case) -> bool:
    """Run one case; returns whether it came to a sum."""
    circle.again()
    circle.start()
    result = circle.finish(Lossy(circle, case))

    lost = {client for client, point in zip(circle.clients, case, strict=True) if point < STAYS}
    arrived = expected(circle, case)
    assert result.blamed == (), case
    if isinstance(result, GroupGivenUp):
        assert arrived is None, (case, result.reason)
        assert result.reason, case
        assert result.silent, case
        assert set(result.silent) <= lost, case
        return False
    assert isinstance(result, GroupSummed)
    assert arrived is not None, case
    assert set(result.arrived) == arrived, case
    assert set(result.dropped) == set(circle.clients) - arrived, case
    assert set(result.unheard) >= set(result.dropped), case
    np.testing.assert_array_equal(result.words, circle.plain_sum(arrived), err_msg=str(case))
    return True


@functools.cache
def circle_of(members: int, colluders: int) -> Circle:
    return Circle(members, max_colluders=colluders)


def tolerated(circle: Circle) -> int:
    """n - t: how many may be lost."""
    members = len(circle.clients)
    return members - circle.plan.threshold(members)


def placed(members: int, places: tuple[int, ...], points: tuple[int, ...]) -> Case:
    where = dict(zip(places, points, strict=True))
    return tuple(where.get(place, STAYS) for place in range(members))


def all_cases(members: int, lost_max: int) -> Iterator[Case]:
    """Every choice of up to `lost_max` clients, and of a loss point for each."""
    for lost in range(lost_max + 1):
        for places, points in product(combinations(range(members), lost), product(POINTS, repeat=lost)):
            yield placed(members, places, points)


def classes(members: int, lost_max: int) -> Iterator[Case]:
    """Every multiset of loss points once, for up to `lost_max` clients.

    A client's place decides the signs of its pair masks, its x in Shamir's scheme, and the order in lists; everything
    else goes by how many said what. All of these are exercised at all places of the groups that `all_cases` covers;
    here the places rotate from case to case, and the test checks that every client is lost at every point.
    """
    number = 0
    for lost in range(lost_max + 1):
        for points in combinations_with_replacement(POINTS, lost):
            number += 1
            places = tuple((number * 3 + step * (1 + number % 2)) % members for step in range(lost))
            yield placed(members, places, points)


def beyond(members: int, lost_min: int, lost_max: int) -> Iterator[Case]:
    """More are lost than may be: each multiset of what the others see, before and after the letter taken in turn."""
    for lost in range(lost_min, lost_max + 1):
        for number, seen in enumerate(combinations_with_replacement(range(len(SEEN)), lost)):
            points = tuple(SEEN[phase][(number + step) % 2] for step, phase in enumerate(seen))
            places = tuple(sorted((number + step) % members for step in range(lost)))
            yield placed(members, places, points)


# n, c, n - t, cases: with d lost there are C(n, d) * 8**d of them, or C(7 + d, d) multisets.
FEW = [(3, 0, 1, 25), (3, 1, 0, 1), (4, 0, 1, 33), (4, 1, 1, 33), (5, 0, 2, 681), (5, 1, 1, 41)]
FEW += [(6, 0, 2, 1_009), (6, 1, 2, 1_009), (7, 1, 2, 1_401)]
MANY = [(7, 0, 3, 19_321), (8, 0, 3, 30_529), (8, 1, 3, 30_529)]
CLASSES = [(7, 0, 3, 165), (8, 0, 3, 165), (8, 1, 3, 165)]
RUN = FEW + (MANY if os.environ.get("COMITIA_TEST_DROPOUTS") == "all" else CLASSES)


@pytest.mark.parametrize(("members", "colluders", "lost_max", "count"), RUN)
def test_up_to_n_minus_t_lost_clients_cost_only_their_own_updates(
    members: int, colluders: int, lost_max: int, count: int
) -> None:
    circle = circle_of(members, colluders)
    assert tolerated(circle) == lost_max
    enumerated = classes if (members, colluders, lost_max, count) in CLASSES else all_cases
    cases = list(dict.fromkeys(enumerated(members, lost_max)))
    assert len(cases) == count
    if enumerated is classes:
        assert {(place, case[place]) for case in cases for place in range(members)} == set(
            product(range(members), (*POINTS, STAYS))
        )

    with remembered_agreements():
        summed = Counter(check(circle, case) for case in cases)

    # Up to n - t lost leave t, which is a sum, but where the plan wants more updates in a sum than t.
    threshold, floor = members - lost_max, circle.plan.summed_floor(members)
    few = sum(sum(point > LETTERS.index(Words) for point in case) < floor for case in cases)
    counted = f"{count} cases, {summed[True]} sums, {summed[False]} given up"
    _log.info("n=%d c=%d t=%d: %s", members, colluders, threshold, counted)
    assert summed[False] == few
    assert (few > 0) == (floor > threshold)


# Of an even n, t is the same for c = 0 and c = 1: one of the two is enough here.
@pytest.mark.parametrize(
    ("members", "colluders", "lost_max"),
    [(3, 0, 3), (3, 1, 3), (4, 1, 4), (5, 0, 5), (5, 1, 5), (6, 1, 4), (7, 0, 5), (7, 1, 5), (8, 1, 5)],
)
def test_with_more_lost_clients_it_is_still_the_right_sum_or_given_up(
    members: int, colluders: int, lost_max: int
) -> None:
    circle = circle_of(members, colluders)
    cases = list(beyond(members, tolerated(circle) + 1, lost_max))

    with remembered_agreements():
        summed = Counter(check(circle, case) for case in cases)

    _log.info("n=%d c=%d: %d cases with more than n - t lost", members, colluders, len(cases))
    assert summed == {False: len(cases)}


def test_a_plan_may_let_two_of_three_be_summed() -> None:
    circle = Circle(3, max_colluders=0, min_summed=2)

    with remembered_agreements():
        assert all(check(circle, case) for case in all_cases(3, 1))
