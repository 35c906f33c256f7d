"""A coordinator that makes up the group itself: other people's keys, offers used twice, another model or plan.

As elsewhere, every attack comes with the rules that stop it: in force, the victim joins nothing and says which rule
it is; switched off (all of them, where several stop the same), the victim's words are found to the last bit, or it does
what it must not do.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from shared.crypto import keys as crypto_keys
from shared.crypto import merkle
from shared.crypto.keys import OneTimeKeys
from shared.crypto.signing import SigningKey, VerificationCache
from shared.directory import Directory
from shared.errors import RemoteProtocolError
from shared.wire.framing import seal
from shared.wire.group_messages import Group, Member
from shared.wire.messages import Offer
from tests.builders import signing_key
from tests.protocol.adversary import Hub
from tests.protocol.circle import Circle, Party
from tests.protocol.scenes import LENIENT
from worker import member, roster
from worker.dealing import public_keys
from worker.session import Session
from worker.steps import TRANSITIONS, MemberState, Step

SWITCHES = list[tuple[object, str, object]]
MADE_UP = signing_key(999)


def one_time_keys(number: int) -> OneTimeKeys:
    """Keys of the coordinator's own."""
    seeds = (hashlib.sha256(f"{number} {half}".encode()).digest() for half in ("sealing", "masking"))
    return OneTimeKeys(*seeds)


class MadeUpGroup:
    """The victim among four members that are all the coordinator's; their offers are forged as tests ask for."""

    def __init__(self, clients: Sequence[str] | None = None, revoked: Sequence[str] = ()) -> None:
        self.circle = circle = Circle(5, max_colluders=0, policy=LENIENT)
        self.hub = Hub(circle)
        self.victim = circle.parties["client-0"]
        circle.book.void()
        self.clients = list(clients or circle.clients[1:])
        if revoked:
            self._revoke(revoked)

    def _revoke(self, clients: Sequence[str]) -> None:
        federation = self.circle.federation
        fields = federation.directory.model_dump() | {"number": 2, "revoked": frozenset(clients)}
        federation = dataclasses.replace(federation, directory=Directory.model_validate(fields))
        self.circle.federation = federation
        self.victim.machine._opener = federation.opener()

    def offer(self, client: str, own: OneTimeKeys, signed: SigningKey, **fields: object) -> bytes:
        """An offer in a client's name."""
        chain = self.circle.book.chain
        offer = Offer(
            attempt=chain.attempt,
            trained_version=chain.version,
            trained_head=chain.version_head,
            counter=1,
            nonce=bytes(16),
            worker=f"w-{client}",
            keys=public_keys(own),
        ).model_copy(update=fields)
        return seal(offer, sender=client, federation=self.circle.federation.directory.federation_id, key=signed)

    def offers(self, keys: Sequence[OneTimeKeys], signers: Mapping[str, SigningKey]) -> list[bytes]:
        """One offer of each client."""
        return [self.offer(client, own, signers[client]) for client, own in zip(self.clients, keys, strict=True)]

    def run(self, offers: Sequence[bytes], keys: Sequence[OneTimeKeys]) -> None:
        """Draw this group, and talk to the victim as if all others took part."""
        own = self.victim.offer()
        machine_keys = self.victim.machine._keys
        assert machine_keys is not None
        named = [(self.victim.client, own), *zip(self.clients, offers, strict=True)]
        (group,) = self.circle.draw_groups([named])
        for one in keys:
            self.hub.know(one)
        publics = [public_keys(machine_keys), *map(public_keys, keys)]
        transcript = self.hub.open_group(group, publics)
        self.hub.roster(group, [self.victim.client])
        self.hub.participants(transcript, self.victim.client, range(5))

    def is_isolated(self) -> bool:
        opening = self.hub.smallest_sum(self.victim.client)
        if opening is None or opening.members != {0}:
            return False
        assert self.victim.words is not None
        np.testing.assert_array_equal(opening.words, self.victim.words)
        return True


def forged() -> MadeUpGroup:
    """Offers in other clients' names, signed by a key that is not theirs."""
    world = MadeUpGroup()
    keys = [one_time_keys(number) for number in range(4)]
    world.run(world.offers(keys, dict.fromkeys(world.clients, MADE_UP)), keys)
    return world


def unknown() -> MadeUpGroup:
    """Offers of clients whom nobody has enrolled."""
    world = MadeUpGroup([f"ghost-{number}" for number in range(4)])
    keys = [one_time_keys(number) for number in range(4)]
    world.run(world.offers(keys, dict.fromkeys(world.clients, MADE_UP)), keys)
    return world


def revoked() -> MadeUpGroup:
    """Offers signed with the stolen keys of clients that were revoked for it."""
    world = MadeUpGroup(revoked=[f"client-{number}" for number in range(1, 5)])
    signers = world.circle.federation.clients
    keys = [one_time_keys(number) for number in range(4)]
    world.run(
        [world.offer(client, own, signers[client]) for client, own in zip(world.clients, keys, strict=True)], keys
    )
    return world


def one_client_four_times() -> MadeUpGroup:
    """One colluding client in all other places of the roster."""
    world = MadeUpGroup(["client-1"] * 4)
    keys = [one_time_keys(number) for number in range(4)]
    signer = world.circle.federation.clients["client-1"]
    world.run([world.offer("client-1", own, signer, counter=number) for number, own in enumerate(keys)], keys)
    return world


def key_of(directory: Directory, client: str) -> object:
    """Believes everybody."""
    return directory.clients[client].verifying_key if client in directory.clients else MADE_UP.public


FORGERIES: dict[Callable[[], MadeUpGroup], tuple[str, SWITCHES]] = {
    forged: ("does not verify with key", [(VerificationCache, "verify", lambda *_: None)]),
    unknown: ("not enrolled", [(Directory, "client_key", key_of)]),
    revoked: ("is revoked", [(Directory, "client_key", key_of)]),
    one_client_four_times: ("stands in the roster twice", [(roster, "check_distinct", lambda *_: None)]),
}


@pytest.mark.parametrize("attack", FORGERIES, ids=lambda attack: attack.__name__)
def test_a_group_of_made_up_members_gets_nothing(attack: Callable[[], MadeUpGroup]) -> None:
    world = attack()

    assert world.victim.words is None
    assert not world.is_isolated()
    assert FORGERIES[attack][0] in world.victim.refusals[0]


@pytest.mark.parametrize("attack", FORGERIES, ids=lambda attack: attack.__name__)
def test_a_group_of_made_up_members_isolates_when_the_rule_is_switched_off(
    attack: Callable[[], MadeUpGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name, instead in FORGERIES[attack][1]:
        monkeypatch.setattr(owner, name, instead)

    assert attack().is_isolated()


@pytest.mark.parametrize("knows", ["other keys", "other clients", "nobody in particular"])
def test_members_enrolled_at_will_do_not_pass_the_list_of_known_clients(knows: str) -> None:
    world = MadeUpGroup()
    signers = world.circle.federation.clients
    known = {client: signing_key(700 + number).public.raw.hex() for number, client in enumerate(signers)}
    if knows == "other clients":
        known = {client: signers[client].public.raw.hex() for client in ("client-0", "client-1", "client-2")}
    if knows == "nobody in particular":
        known = {}
    world.victim.machine._policy = LENIENT.model_copy(update={"known_clients": known})
    keys = [one_time_keys(number) for number in range(4)]
    world.run(world.offers(keys, signers), keys)

    assert world.is_isolated() == (not known)
    refused = any("not in policy.known_clients, or under another key" in detail for detail in world.victim.refusals)
    assert refused == bool(known)


def weak_exchange(own: OneTimeKeys, public: bytes) -> bytes:
    """X25519 that does not look at its result."""
    try:
        return crypto_keys.agree(own.sealing_seed, public)
    except RemoteProtocolError:
        return bytes(32)


def copied_key() -> MadeUpGroup:
    """A colluder offers another member's masking key as its own."""
    world = MadeUpGroup()
    keys = [one_time_keys(number) for number in range(3)]
    keys.append(OneTimeKeys(one_time_keys(3).sealing_seed, keys[0].masking_seed))
    signers = world.circle.federation.clients
    world.run(
        [world.offer(client, own, signers[client]) for client, own in zip(world.clients, keys, strict=True)], keys
    )
    return world


def low_order() -> MadeUpGroup:
    """A colluder's keys are points with which everybody has the secret zero."""
    world = MadeUpGroup()
    keys = [one_time_keys(number) for number in range(4)]
    signers = world.circle.federation.clients
    offers = world.offers(keys, signers)
    weak = public_keys(keys[3]).model_copy(update={"masking": bytes(32), "sealing": b"\x01" + bytes(31)})
    offers[3] = world.offer(world.clients[3], keys[3], signers[world.clients[3]], keys=weak)
    world.run(offers, keys)
    return world


def another_group_size() -> MadeUpGroup:
    """A draw whose group is smaller than the plan's."""
    world = MadeUpGroup(["client-1", "client-2"])
    world.hub.participants = lambda *_: []  # type: ignore[method-assign]
    keys = [one_time_keys(number) for number in range(2)]
    signers = world.circle.federation.clients
    world.run(
        [world.offer(client, own, signers[client]) for client, own in zip(world.clients, keys, strict=True)], keys
    )
    return world


def not_in_the_draw() -> MadeUpGroup:
    """A group that was put together after its draw had been written."""
    world = MadeUpGroup()
    keys = [one_time_keys(number) for number in range(4)]
    signers = world.circle.federation.clients
    draw_groups = world.circle.draw_groups

    def afterwards(named: Sequence[Sequence[tuple[str, bytes]]]) -> list[Group]:
        draw_groups([named[0][::-1]])
        members = tuple(Member(client=c, site="site-0", worker=f"w-{c}", offer=offer) for c, offer in named[0])
        return [Group(index=0, members=members, path=())]

    world.circle.draw_groups = afterwards  # type: ignore[method-assign]
    world.run(
        [world.offer(client, own, signers[client]) for client, own in zip(world.clients, keys, strict=True)], keys
    )
    return world


FORBIDDEN: dict[Callable[[], MadeUpGroup], tuple[str, SWITCHES]] = {
    copied_key: ("a one-time key stands in the roster twice", [(roster, "check_distinct", lambda *_: None)]),
    low_order: (
        "low order",
        [(crypto_keys, "_LOW_ORDER", frozenset()), (OneTimeKeys, "sealing_secret", weak_exchange)],
    ),
    another_group_size: ("3 members, the plan has 5 to 9", [(roster, "check_size", lambda *_: None)]),
    not_in_the_draw: ("root", [(merkle, "verify_path", lambda *_: None)]),
}


@pytest.mark.parametrize("attack", FORBIDDEN, ids=lambda attack: attack.__name__)
def test_nothing_is_dealt_to_a_group_that_must_not_be(
    attack: Callable[[], MadeUpGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    says, switches = FORBIDDEN[attack]
    world = attack()
    (heard,) = world.hub.groups.values()
    assert not heard.dealt
    assert says in world.victim.refusals[0]

    for last, (owner, name, instead) in enumerate(switches, 1):
        monkeypatch.setattr(owner, name, instead)
        (heard,) = attack().hub.groups.values()
        # Where two rules stop it, one alone still does.
        assert bool(heard.dealt) == (last == len(switches))


# ── one offer in two rosters ─────────────────────────────────────────────────────────────────────────────────────────


def two_rosters(*, void_between: bool) -> tuple[Hub, Party]:
    """In one group the victim arrives; in the other it is lost, and its masking key is rebuilt."""
    circle = Circle(9, max_colluders=0, policy=LENIENT, group_size=5)
    hub = Hub(circle)
    victim = circle.parties["client-0"]
    circle.book.void()
    offers = {client: party.offer() for client, party in circle.parties.items()}
    rosters = [[(c, offers[c]) for c in ("client-0", *circle.clients[start : start + 4])] for start in (1, 5)]
    if void_between:
        (first,) = circle.draw_groups(rosters[:1])
    else:
        first, second = circle.draw_groups(rosters)
    sum_up(hub, first, range(5))
    if void_between:
        circle.book.void()
        for party in circle.parties.values():
            list(party.machine.follow(circle.book.chain, None))
        fresh = {client: circle.parties[client].offer() for client in circle.clients[5:]}
        (second,) = circle.draw_groups([[(c, fresh.get(c, offers[c])) for c, _ in rosters[1]]])
    sum_up(hub, second, range(1, 5))
    return hub, victim


def sum_up(hub: Hub, group: Group, arrived: Sequence[int]) -> None:
    """A whole run with one group; all deal, those who `arrived` go on."""
    clients = [one.client for one in group.members]
    transcript = hub.open_group(group)
    hub.roster(group, clients)
    dealt = sorted(hub.groups[transcript].dealt)
    for place in arrived:
        hub.participants(transcript, clients[place], dealt)
    for place in arrived:
        hub.arrived(transcript, clients[place], dealt, arrived)
    for place in arrived:
        hub.unmask(transcript, clients[place], dealt, arrived)


USED_UP = (member.GroupMember, "_use_up_offer", lambda *_: None)
ROUND = (roster, "check_round", lambda *_: None)
ONCE = (Session, "was_answered", lambda session, step: step != "roster" and step in session.bound)


@pytest.mark.parametrize(
    ("void_between", "switches", "says"),
    [
        (False, [ONCE, USED_UP], "another roster after the one that was answered"),
        (False, [USED_UP, ONCE], "another roster after the one that was answered"),
        (True, [ROUND, USED_UP], "no offer of this client is open"),
        (True, [USED_UP, ROUND], "no offer of this client is open"),
    ],
)
def test_an_offer_serves_one_roster(
    void_between: bool, switches: SWITCHES, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRANSITIONS, (MemberState.REVEALED, Step.ROSTER), (MemberState.SHARED,))
    hub, victim = two_rosters(void_between=void_between)
    opening = hub.smallest_sum(victim.client)
    assert opening is not None
    assert len(opening.members) == 5
    assert says in victim.refusals

    for number, (owner, name, instead) in enumerate(switches, 1):
        monkeypatch.setattr(owner, name, instead)
        hub, victim = two_rosters(void_between=void_between)
        opening = hub.smallest_sum(victim.client)
        assert opening is not None
        assert (opening.members == {0}) == (number == 2)
        if number == 2:
            assert victim.words is not None
            assert opening.words.tobytes() == victim.words.tobytes()
