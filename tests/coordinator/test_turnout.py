"""Who is waited for, kept client by client, is what a look at everybody would find."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler.clients import Roll
from coordinator.scheduler.pool import Pool, WaitingOffer
from coordinator.scheduler.turnout import Turnout
from shared.effects import Receipt
from shared.transport.port import Delivery
from shared.wire.messages import ClientState
from tests.builders import make_offer, make_status

CLIENTS = ("a", "b", "c", "d")
COHORT = frozenset(CLIENTS[:3])
VERSION = 1
THINGS = ("joins", "is lost", "leaves", "offers", "withdraws", "is struck")


def happen(thing: str, client: str, number: int, roll: Roll, pool: Pool) -> None:
    match thing:
        case "joins":
            roll.join(client)
        case "is lost":
            roll.lose(client)
        case "leaves":
            roll.status(client, make_status(ClientState.DRAINING, number), 0.0)
        case "offers":
            receipt = Receipt(Delivery(queue="offers", body=b"", routing_key="", redelivered=False, handle=None), 1)
            offer = make_offer(counter=number)
            pool.add(WaitingOffer(client, offer, bytes([number]), b"", receipt), held=False)
        case "withdraws":
            pool.withdraw(client)
        case _:
            roll.back_off(client, VERSION)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(THINGS), st.sampled_from(CLIENTS)), max_size=25))
def test_a_recount_of_one_client_comes_to_the_same_as_one_of_all(events: list[tuple[str, str]]) -> None:
    roll, pool = Roll(1.0), Pool()
    for client in CLIENTS:
        roll.join(client)
    turnout = Turnout(COHORT, roll, pool, VERSION)
    for number, (thing, client) in enumerate(events, 1):
        happen(thing, client, number, roll, pool)
        turnout.recount(client)

        anew = Turnout(COHORT, roll, pool, VERSION)
        assert (turnout.expected, turnout.missing) == (anew.expected, anew.missing)
        assert turnout.expected == {one for one in COHORT if one in roll.live and not roll.is_backed_off(one, VERSION)}
        assert turnout.missing == {one for one in turnout.expected if one not in pool}
