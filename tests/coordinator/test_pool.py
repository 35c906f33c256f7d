"""The pool: one offer per client, the newest; whatever is not kept is given back to be settled, once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.pool import Pool, WaitingOffer
from shared.effects import Receipt, Settle
from shared.errors import RefusalReason
from tests.builders import make_offer
from tests.coordinator.builders import receipt


def waiting(client: str = "a", counter: int = 1, nonce: int = 0) -> WaitingOffer:
    offer = make_offer(counter=counter, nonce=bytes([nonce]) * 16)
    return WaitingOffer(client, offer, bytes([counter, nonce]) * 16, b"frame", receipt())


def test_a_first_offer_is_taken() -> None:
    pool = Pool()

    assert pool.add(waiting(), held=False) == (None, ())
    assert len(pool) == 1
    assert "a" in pool


def test_a_newer_offer_replaces_the_older_one() -> None:
    pool, old, new = Pool(), waiting(counter=1), waiting(counter=2)
    pool.add(old, held=False)

    assert pool.add(new, held=False) == (None, (Settle(old.receipt),))
    assert pool.draw() == [new]


def test_an_older_offer_is_stale() -> None:
    pool, new, old = Pool(), waiting(counter=2), waiting(counter=1)
    pool.add(new, held=False)

    assert pool.add(old, held=False) == (RefusalReason.STALE, (Settle(old.receipt),))
    assert pool.draw() == [new]


def test_another_offer_of_the_same_counter_is_stale() -> None:
    pool, first, second = Pool(), waiting(nonce=1), waiting(nonce=2)
    pool.add(first, held=False)

    assert pool.add(second, held=False) == (RefusalReason.STALE, (Settle(second.receipt),))
    assert pool.draw() == [first]


def test_a_repeat_keeps_the_newest_delivery_open() -> None:
    pool, first, again = Pool(), waiting(), waiting()
    pool.add(first, held=False)

    assert pool.add(again, held=False) == (RefusalReason.DUPLICATE, (Settle(first.receipt),))
    assert [offer.receipt for offer in pool.draw()] == [again.receipt]


def test_what_was_drawn_is_not_drawn_again() -> None:
    pool, drawn, again, next_one = Pool(), waiting(counter=3), waiting(counter=3), waiting(counter=4)
    pool.add(drawn, held=False)

    assert pool.draw() == [drawn]
    assert len(pool) == 0
    assert pool.add(again, held=False) == (RefusalReason.REPLAYED, (Settle(again.receipt),))
    assert pool.add(next_one, held=False) == (None, ())


def test_a_draw_is_sorted_by_digest() -> None:
    pool = Pool()
    offers = [waiting(client, counter) for client, counter in (("a", 9), ("b", 2), ("c", 5))]
    for offer in offers:
        pool.add(offer, held=False)

    assert [offer.client for offer in pool.draw()] == ["b", "c", "a"]


def test_a_held_offer_counts_for_nothing_until_the_round_is_over() -> None:
    pool, late, held = Pool(), waiting("a"), waiting("b")
    pool.add(late, held=False)
    pool.add(held, held=True)

    assert len(pool) == 1
    assert "b" not in pool
    assert pool.next_round(lambda _: True) == ([late], [held])
    assert pool.next_round(lambda _: True) == ([], [])


def test_who_leaves_takes_both_offers_along() -> None:
    pool, offer, held = Pool(), waiting("a", 1), waiting("a", 2)
    pool.add(offer, held=False)
    pool.add(held, held=True)

    assert pool.withdraw("a") == (Settle(offer.receipt), Settle(held.receipt))
    assert pool.withdraw("a") == ()
    assert len(pool) == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(0, 4), st.booleans()),
        st.tuples(st.sampled_from(["draw", "next", "withdraw"]), st.sampled_from("abc")),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_receipt_comes_out_exactly_once(steps: list[tuple]) -> None:
    pool = Pool()
    given_in: list[Receipt] = []
    out: list[Receipt] = []
    for step in steps:
        match step:
            case ("add", client, counter, held):
                offer = waiting(client, counter)
                given_in.append(offer.receipt)
                out += [settle.receipt for settle in pool.add(offer, held=held)[1]]
            case ("draw", _):
                out += [offer.receipt for offer in pool.draw()]
            case ("next", _):
                late, held_ones = pool.next_round(lambda _: True)
                out += [offer.receipt for offer in (*late, *held_ones)]
            case (_, client):
                out += [settle.receipt for settle in pool.withdraw(client)]
    late, held_ones = pool.next_round(lambda _: True)
    out += [offer.receipt for offer in (*late, *held_ones)]

    assert sorted(map(id, out)) == sorted(map(id, given_in))


@given(STEPS)
def test_no_counter_of_a_client_is_drawn_twice(steps: list[tuple]) -> None:
    pool = Pool()
    drawn: list[tuple[str, int]] = []
    for step in steps:
        if step[0] == "add":
            pool.add(waiting(step[1], step[2]), held=False)
        else:
            drawn += [(offer.client, offer.offer.counter) for offer in pool.draw()]

    assert len(set(drawn)) == len(drawn)
