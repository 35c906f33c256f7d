"""Who takes whom, and gives whom back: every case, and that replicas which each decide alone come to rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.sharing_out import Decision, Replica, View, decide, room_elsewhere, shares
from worker.signs_of_life import Phase

NAMES = tuple(f"c{number:02d}" for number in range(12))


def replica(worker: str, *clients: str, seats: int | None = None, since_us: int = 0) -> Replica:
    return Replica(pool="p", worker=worker, pid=1, since_us=since_us, seats=seats, clients=frozenset(clients))


def view(served: dict[str, Phase] | None = None, *others: Replica, clients: int = 12, **fields: Any) -> View:
    """What the replica `me` knows, whose seats are unlimited unless `seats` says so."""
    served = served or {}
    me = replica("me", *served, seats=fields.pop("seats", None))
    known = {"leaving": (), "shunned": (), "candidates": NAMES[:clients], **fields}
    return View(me="me", replicas=[*others, me], served=served, **known)


def idle(*clients: str) -> dict[str, Phase]:
    return dict.fromkeys(clients, Phase.IDLE)


# ── shares ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("clients", "seats", "expected"),
    [
        (12, [None], [12]),
        (12, [None, None, None], [4, 4, 4]),
        (20, [None, None, None], [7, 7, 6]),
        (20, [None] * 12, [2] * 8 + [1] * 4),
        (20, [4, None], [4, 16]),
        (20, [4, 4], [4, 4]),
        (3, [None, 1, 1], [1, 1, 1]),
        (2, [1, 1, None], [1, 0, 1]),
        (0, [None, 2], [0, 0]),
    ],
)
def test_shares_are_even_within_the_seats_and_the_oldest_take_what_is_left(
    clients: int, seats: list[int | None], expected: list[int]
) -> None:
    replicas = [replica(f"w{at}", seats=one, since_us=at) for at, one in enumerate(seats)]

    assert shares(clients, replicas) == {f"w{at}": share for at, share in enumerate(expected)}


@given(st.integers(0, 300), st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=20))
def test_nobody_is_left_out_while_there_are_seats_and_equals_differ_by_one(
    clients: int, seats: list[int | None]
) -> None:
    replicas = [replica(f"w{at}", seats=one) for at, one in enumerate(seats)]
    dealt = shares(clients, replicas)
    room = sum(clients if one is None else one for one in seats)

    assert sum(dealt.values()) == min(clients, room)
    bounded = [(dealt[one.worker], one.seats) for one in replicas]
    assert all(seats is None or share <= seats for share, seats in bounded)
    unfilled = [share for share, seats in bounded if seats is None or share < seats]
    assert not unfilled or max(unfilled) - min(unfilled) <= 1
    assert not unfilled or max(dealt.values()) <= max(unfilled) + 1


# ── taking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_alone_it_takes_everybody() -> None:
    assert decide(view()) == Decision(12, NAMES, ())


def test_each_begins_at_a_place_of_its_own() -> None:
    first = decide(view(None, replica("a"), replica("b")))

    assert (first.wanted, first.take[0], len(first.take)) == (4, "c08", 12)
    assert decide(replace(view(None, replica("a"), replica("b")), me="a")).take[0] == "c00"


def test_those_whom_others_claim_or_who_leave_or_could_not_be_opened_are_not_tried() -> None:
    other = replica("other", "c00", "c01")
    seen = view(idle("c02"), other, leaving={"c03"}, shunned={"c04"})

    decision = decide(seen)

    assert set(decision.take) == set(NAMES) - {"c00", "c01", "c02", "c03", "c04"}
    assert decision.wanted == 5


def test_with_its_share_it_takes_nobody_although_some_are_free() -> None:
    assert decide(view(idle(*NAMES[:6]), replica("other"))) == Decision(0, (), ())


def test_it_takes_no_more_than_it_has_seats() -> None:
    assert decide(view(seats=5)).wanted == 5
    assert decide(view(idle(*NAMES[:5]), seats=5)) == Decision(0, (), ())


def test_those_who_leave_have_their_seats_until_they_have_left() -> None:
    served, leaving = idle("c00"), {"c01", "c02"}

    assert decide(view(served, clients=12, seats=4, leaving=leaving)).wanted == 1
    assert decide(view(served, clients=12, seats=3, leaving=leaving)).wanted == 0
    assert decide(view(served, clients=12, seats=2, leaving=leaving)).wanted == 0
    assert decide(view(served, clients=12, leaving=leaving)).wanted == 11


def test_those_who_leave_do_not_count() -> None:
    decision = decide(view(idle("c00"), replica("other"), clients=4, leaving={"c01"}))

    assert (decision.wanted, decision.take) == (1, ("c02", "c03"))


# ── giving back ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_newcomer_is_given_its_share_and_of_equals_those_who_came_last() -> None:
    assert decide(view(idle(*NAMES), replica("new"))) == Decision(0, (), tuple(reversed(NAMES[6:])))


GROUPED = (Phase.SAVING, Phase.OFFERING, Phase.OFFERED, Phase.SHARING, Phase.SPENDING, Phase.IN_GROUP)


@pytest.mark.parametrize("at_ease", [Phase.WAITING, Phase.IDLE, Phase.EXHAUSTED, Phase.MISMATCH, Phase.OBJECTING])
@pytest.mark.parametrize("grouped", GROUPED)
def test_who_has_nothing_under_way_goes_first_and_who_is_awaited_last(at_ease: Phase, grouped: Phase) -> None:
    served = {"c00": grouped, "c01": Phase.TRAINING, "c02": at_ease, "c03": Phase.TRAINING}

    def given_back(others: int) -> tuple[str, ...]:
        return decide(view(served, *(replica(f"o{n}", since_us=-1) for n in range(others)), clients=4)).give_back

    assert given_back(1) == ("c02", "c03")
    assert given_back(3) == ("c02", "c03", "c01")
    assert given_back(4) == ("c02", "c03", "c01", "c00")


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.CHARGING])
def test_who_failed_is_not_given_to_somebody_who_would_charge_for_it_again(phase: Phase) -> None:
    assert decide(view(dict.fromkeys(NAMES, phase), replica("new"))) == Decision(0, (), ())


def test_every_phase_of_a_client_that_is_served_has_its_place() -> None:
    for phase in Phase:
        decision = decide(view({"c00": phase}, replica("old", since_us=-1), clients=1))
        assert decision.give_back == (() if phase in (Phase.FAILED, Phase.CHARGING) else ("c00",))


def test_who_is_no_candidate_any_more_goes_whatever_the_shares() -> None:
    assert decide(view(idle("revoked", *NAMES))) == Decision(0, (), ("revoked",))
    decision = decide(view(idle("revoked", *NAMES[:3])))
    assert (decision.give_back, decision.wanted) == (("revoked",), 9)


# ── ending ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("others", "room"),
    [
        ([], 0),
        ([replica("a", "x")], 5),
        ([replica("a", "x", seats=1)], 0),
        ([replica("a", "x", seats=3), replica("b", seats=1)], 3),
        ([replica("a", "x", "y", seats=1)], 0),
    ],
)
def test_who_ends_knows_how_many_of_its_clients_the_others_have_seats_for(others: list[Replica], room: int) -> None:
    assert room_elsewhere("me", [replica("me", *NAMES), *others], 5) == room


# ── many, each deciding for itself ──────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(
    st.lists(st.none() | st.integers(1, 6), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from(["come", "die"]), st.integers(0, 5)), max_size=6),
    st.randoms(use_true_random=False),
)
def test_after_any_coming_and_dying_all_clients_are_served_evenly(
    seats: list[int | None], happenings: list[tuple[str, int]], order: Any
) -> None:
    held: dict[str, set[str]] = {f"w{at}": set() for at in range(len(seats))}
    room = dict(zip(held, seats, strict=True))

    def look(worker: str) -> None:
        """One look, on what the others say at this moment; the lock is that nobody else holds the client."""
        replicas = [replica(one, *clients, seats=room[one]) for one, clients in held.items()]
        served = dict.fromkeys(sorted(held[worker]), Phase.IDLE)
        decision = decide(View(me=worker, replicas=replicas, candidates=NAMES, served=served, leaving=(), shunned=()))
        held[worker] -= set(decision.give_back)
        free = [client for client in decision.take if not any(client in clients for clients in held.values())]
        held[worker] |= set(free[: decision.wanted])

    def settle() -> None:
        for _ in range(3):
            for worker in order.sample(sorted(held), len(held)):
                look(worker)

    settle()
    for number, (what, which) in enumerate(happenings):
        if what == "come":
            held[f"n{number}"], room[f"n{number}"] = set(), None
        elif len(held) > 1:
            del held[sorted(held)[which % len(held)]]
        settle()
    expected = shares(len(NAMES), [replica(one, seats=room[one]) for one in held])
    assert {one: len(clients) for one, clients in held.items()} == expected
