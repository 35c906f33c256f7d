"""Each thing that a member checks of a roster, by the reason of its refusal; what holds is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shared.crypto import merkle
from shared.crypto.draw import group_leaf
from shared.errors import RefusalReason, RemoteProtocolError
from shared.wire.group_messages import Group, Member, Roster
from shared.wire.messages import Offer, PublicKeys
from tests.builders import make_status
from tests.worker.builders import CLIENT, Client, client_plan
from worker.policy import Policy
from worker.roster import Ground, check_roster

CLIENTS = (CLIENT, "client-1", "client-2")
KEYS = PublicKeys(sealing=b"1" * 32, masking=b"2" * 32)


class Table:
    """A draw of one group of three, as a member's own log has it."""

    def __init__(self, offers: Callable[[Client], tuple[bytes, ...]] | None = None, **plan: Any) -> None:
        self.client = Client(client_plan(**{"group_size": 3, **plan}))
        given = tuple(self.client.offer_of(client) for client in CLIENTS) if offers is None else offers(self.client)
        self.offer: bytes | None = given[0]
        entry, (self.roster,) = self.client.draft_draw(given)
        self.client.book.write(*entry.frames())
        self.policy = Policy()

    @property
    def ground(self) -> Ground:
        federation, book = self.client.federation, self.client.book
        return Ground(book.chain, book.plan, federation.directory, federation.opener(), self.policy)

    def check(self, roster: Roster | None = None, client: str = CLIENT) -> tuple[int, tuple[Offer, ...]]:
        return check_roster(roster or self.roster, self.ground, client, self.offer)

    def refusal(self, roster: Roster | None = None, client: str = CLIENT) -> tuple[RefusalReason, str]:
        with pytest.raises(RemoteProtocolError) as error:
            self.check(roster, client)
        return error.value.reason, error.value.detail


def grouped(roster: Roster, **fields: Any) -> Roster:
    return roster.model_copy(update={"group": roster.group.model_copy(update=fields)})


def offers_with(index: int, **fields: Any) -> Callable[[Client], tuple[bytes, ...]]:
    """The three offers, one of them with other fields: the draw is genuine, the offer is not what it must be."""
    return lambda client: tuple(
        client.offer_of(name, **(fields if place == index else {})) for place, name in enumerate(CLIENTS)
    )


def test_a_roster_that_holds_gives_our_place_and_all_offers_in_its_order() -> None:
    table = Table(lambda client: tuple(client.offer_of(name) for name in (CLIENTS[2], CLIENT, CLIENTS[1])))
    table.offer = table.roster.group.members[1].offer

    place, offers = table.check()
    assert place == 1
    opener = table.client.federation.opener()
    assert list(offers) == [opener.open(member.offer).message for member in table.roster.group.members]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"version": 1}, RefusalReason.WRONG_PARENT), ({"groups": 2}, RefusalReason.WRONG_PARENT)],
)
def test_a_roster_that_contradicts_its_draw(fields: dict[str, Any], reason: RefusalReason) -> None:
    table = Table()

    assert table.refusal(table.roster.model_copy(update=fields))[0] is reason


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_group_of_another_size_than_the_plan_makes(size: int) -> None:
    table = Table()
    members = (table.roster.group.members * 2)[:size]

    reason, detail = table.refusal(grouped(table.roster, members=members))
    assert (reason, detail) == (RefusalReason.OUT_OF_RANGE, f"{size} members, the plan has 3 to 5")


def test_members_that_the_draw_does_not_hold() -> None:
    table = Table()
    stranger = table.client.make_member(table.client.offer_of("client-3"))

    for members in ((*table.roster.group.members[:2], stranger), table.roster.group.members[::-1]):
        assert table.refusal(grouped(table.roster, members=members))[0] is RefusalReason.NOT_ALLOWED


def test_a_group_without_us_or_with_us_twice() -> None:
    assert Table().refusal(client="client-3")[0] is RefusalReason.NOT_ALLOWED

    ours = ({}, {"counter": 2, "keys": KEYS})
    twice = Table(lambda client: (*(client.offer_of(CLIENT, **one) for one in ours), client.offer_of("client-1")))
    assert twice.refusal()[0] is RefusalReason.NOT_ALLOWED


def test_no_open_offer_or_another_one() -> None:
    table = Table()
    table.offer = None
    assert table.refusal() == (RefusalReason.STALE, "no offer of this client is open")

    table.offer = table.client.offer_of(CLIENT, counter=2)
    assert table.refusal() == (RefusalReason.STALE, "the roster names another offer of this client")


def test_a_group_that_the_policy_does_not_allow() -> None:
    table = Table()
    table.policy = Policy(min_members=4)
    assert table.refusal()[0] is RefusalReason.POLICY

    table.policy = Policy(known_clients={CLIENT: "0" * 64})
    assert table.refusal()[0] is RefusalReason.POLICY


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"attempt": 1}, RefusalReason.STALE, "client-1 offers for another round"),
        ({"trained_version": 1}, RefusalReason.STALE, "client-1 offers for another round"),
        ({"trained_head": b"x" * 32}, RefusalReason.WRONG_PARENT, "client-1 was shown another model"),
        ({"keys": None}, RefusalReason.MALFORMED, "client-1 offers without one-time keys"),
    ],
)
def test_an_offer_of_another_member_that_is_not_for_this_model(
    fields: dict[str, Any], reason: RefusalReason, detail: str
) -> None:
    assert Table(offers_with(1, **fields)).refusal() == (reason, detail)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (lambda client: b"no frame", RefusalReason.MALFORMED),
        (lambda client: client.offer_of("client-1")[:-1] + b"x", RefusalReason.BAD_SIGNATURE),
        (lambda client: client.federation.seal_as("client-1", make_status()), RefusalReason.NOT_ALLOWED),
        (lambda client: client.offer_of("client-2"), RefusalReason.NOT_ALLOWED),
    ],
)
def test_a_frame_that_is_no_offer_of_its_member(frame: Callable[[Client], bytes], reason: RefusalReason) -> None:
    """A coordinator that lies can commit to anything in its draw: here the tree is right and the frame is not."""
    table = Table()
    ours, _, theirs = table.roster.group.members
    lie = Member(client="client-1", site="site-0", worker="w-1", offer=frame(table.client))
    group = Group(index=0, members=(ours, lie, theirs), path=())
    table.client.book.void()
    entry = table.client.book.draw(1, root=merkle.root([group_leaf(0, group.leaf)]))
    roster = table.roster.model_copy(update={"draw": entry.digest, "group": group})
    # The offers are for the attempt before the void draw; the member's own log says so here too.
    ground = replace(table.ground, chain=replace(table.ground.chain, attempt=0))

    with pytest.raises(RemoteProtocolError) as error:
        check_roster(roster, ground, CLIENT, table.offer)
    assert error.value.reason is reason


@pytest.mark.parametrize(
    "keys",
    [
        (KEYS, KEYS),
        (KEYS, PublicKeys(sealing=b"1" * 32, masking=b"3" * 32)),
        (KEYS, PublicKeys(sealing=b"3" * 32, masking=b"2" * 32)),
        (KEYS, PublicKeys(sealing=b"2" * 32, masking=b"3" * 32)),
        (PublicKeys(sealing=b"1" * 32, masking=b"1" * 32), PublicKeys(sealing=b"3" * 32, masking=b"4" * 32)),
    ],
)
def test_a_one_time_key_that_stands_there_twice(keys: tuple[PublicKeys, PublicKeys]) -> None:
    one, other = keys
    table = Table(
        lambda client: (
            client.offer_of(CLIENT),
            client.offer_of("client-1", keys=one),
            client.offer_of("client-2", keys=other),
        )
    )

    assert table.refusal()[0] is RefusalReason.DUPLICATE


def test_another_client_that_stands_there_twice() -> None:
    table = Table(
        lambda client: (
            client.offer_of(CLIENT),
            client.offer_of("client-1"),
            client.offer_of("client-1", keys=KEYS),
        )
    )

    assert table.refusal()[0] is RefusalReason.DUPLICATE


def test_in_groups_of_one_an_offer_brings_no_keys() -> None:
    def one(client: Client, **fields: Any) -> tuple[bytes, ...]:
        return (client.offer_of(CLIENT, **fields),)

    table = Table(one, group_size=1)
    table.policy = Policy(allow_groups_of_one=True)
    assert table.check()[0] == 0

    table = Table(lambda client: one(client, keys=KEYS), group_size=1)
    table.policy = Policy(allow_groups_of_one=True)
    assert table.refusal()[0] is RefusalReason.MALFORMED


BUFFERED: dict[str, Any] = {"round": {"mode": "async", "max_staleness": 2}}


def later_table(versions: int, **fields: Any) -> Table:
    """One member has trained on version 0, and so many versions have come since."""

    def offers(client: Client) -> tuple[bytes, ...]:
        old = {"version": 0, "head": client.book.chain.version_head, **fields}
        for _ in range(versions):
            client.book.step(client.book.reader.weights + 1)
        return client.offer_of(CLIENT), client.offer_of("client-1"), client.offer_of("client-2", **old)

    return Table(offers, **BUFFERED)


@pytest.mark.parametrize("versions", [1, 2])
def test_asynchronous_groups_take_updates_of_earlier_versions_and_attempts(versions: int) -> None:
    assert [offer.trained_version for offer in later_table(versions, attempt=5).check()[1]] == [versions, versions, 0]


def test_but_none_that_is_too_stale() -> None:
    assert later_table(3).refusal() == (RefusalReason.STALE, "client-2 offers what is too stale")


def test_nor_one_of_a_version_to_come() -> None:
    table = Table(offers_with(2, version=1), **BUFFERED)
    assert table.refusal() == (RefusalReason.STALE, "client-2 offers what is too stale")


def test_nor_one_of_another_model_at_any_version() -> None:
    for versions in (0, 1, 2):
        table = later_table(versions, head=b"x" * 32)
        assert table.refusal() == (RefusalReason.WRONG_PARENT, "client-2 was shown another model")


def test_synchronous_groups_take_no_update_of_an_earlier_version() -> None:
    table = Table(offers_with(2, version=1))
    assert table.refusal()[0] is RefusalReason.STALE
