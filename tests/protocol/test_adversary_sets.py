"""A coordinator that names other participants, or other survivors, to different members, to open one client's words.

Every attack comes with the rules that stop it. With the rules in force the victim is not isolated and a refusal names
the rule; with all of them switched off the attack finds the victim's words to the last bit; and where several rules
stop the same attack, it fails as long as one of them is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from shared.wire.member_sets import encode_members
from tests.protocol.adversary import Place
from tests.protocol.scenes import (
    ENOUGH,
    LENIENT,
    QUORUM,
    SAME_AGREEMENT,
    SAME_PARTICIPANTS,
    SIGNER_ARRIVED,
    SIZES,
    TAKES_PART,
    THRESHOLD,
    TOOK_PART,
    WE_ARRIVED,
    Rule,
    Scene,
    scene,
)

Places = frozenset[Place]


def masked(scene: Scene, victims_set: Places) -> None:
    """The victim masks over `victims_set`, everybody else over everybody."""
    for place in scene.everybody:
        client = scene.circle.clients[place]
        scene.hub.participants(scene.transcript, client, scene.everybody if place else victims_set)


def agree_and_reveal(
    scene: Scene, asked: Iterable[Place], told: Callable[[Place], tuple[Places, Places]], *, any_signature: bool = True
) -> None:
    """Ask for agreements to what each is told, then for shares, with all signatures that there are."""
    clients, hub = scene.circle.clients, scene.hub
    asked = list(asked)
    for place in asked:
        hub.arrived(scene.transcript, clients[place], *told(place))
    for place in asked:
        frames = _signatures(scene, *told(place)) if any_signature else None
        hub.unmask(scene.transcript, clients[place], *told(place), frames=frames)


def _signatures(scene: Scene, participants: Places, arrived: Places) -> list[bytes]:
    """One agreement of each member: to these sets if there is one, else to others."""
    agreements = scene.hub.groups[scene.transcript].agreements
    n = len(scene.circle.clients)
    sets = encode_members(participants, n) + encode_members(arrived, n)
    best = {place: frame for (place, _), frame in agreements.items()}
    best |= {place: frame for (place, about), frame in agreements.items() if about == sets}
    return list(best.values())


def dropped(scene: Scene) -> Places:
    """Just so many honest members beside the victim that it masks over a set that is large enough."""
    return frozenset(scene.honest[1 : scene.threshold - scene.colluding])


def split_survivors(scene: Scene) -> None:
    """To some members the victim has arrived, to the others it has not: both kinds of its shares."""
    everybody, half = scene.everybody, scene.threshold - scene.colluding
    masked(scene, everybody)
    with_victim = set(scene.honest[:half])
    agree_and_reveal(
        scene,
        scene.honest[: 2 * half],
        lambda place: (everybody, everybody if place in with_victim else everybody - {0}),
        any_signature=False,
    )


def views_of_their_own(scene: Scene) -> None:
    """Each member sees survivors of its own choice, the victim participants of its own: every member answers once."""
    everybody, lost = scene.everybody, dropped(scene)
    victims_set = lost | scene.colluders | {0}
    masked(scene, victims_set)

    def told(place: Place) -> tuple[Places, Places]:
        return (everybody, everybody - (lost - {place})) if place else (victims_set, victims_set)

    agree_and_reveal(scene, scene.honest, told)


def masks_of_colluders_only(scene: Scene) -> None:
    """The victim masks with nobody but colluders; the others believe that all is well."""
    everybody = scene.everybody
    masked(scene, scene.colluders | {0})
    agree_and_reveal(scene, scene.honest[1:], lambda _: (everybody, everybody))


def masks_without_itself(scene: Scene) -> None:
    """The same, over a set that does not even hold the victim."""
    everybody = scene.everybody
    masked(scene, scene.colluders)
    agree_and_reveal(scene, scene.honest[1:], lambda _: (everybody, everybody))


def signed_away(scene: Scene) -> None:
    """Those with whom the victim has masked sign that they did not arrive, and so give their masking keys away."""
    everybody, lost = scene.everybody, dropped(scene)
    masked(scene, lost | scene.colluders | {0})
    agree_and_reveal(scene, scene.honest[1:], lambda _: (everybody, everybody - lost))


def other_participants_signed(scene: Scene) -> None:
    """The victim masks over one set and signs another, in which those with whom it has masked are lost."""
    everybody, lost = scene.everybody, dropped(scene)
    masked(scene, lost | scene.colluders | {0})
    asked = [place for place in scene.honest if place not in lost]
    agree_and_reveal(scene, asked, lambda _: (everybody, everybody - lost))


def only_survivor(scene: Scene) -> None:
    """Nobody but the victim and the colluders has arrived, so everybody is told."""
    everybody = scene.everybody
    masked(scene, everybody)
    agree_and_reveal(scene, scene.honest, lambda _: (everybody, scene.colluders | {0}))


@dataclass(frozen=True)
class Attack:
    run: Callable[[Scene], None]
    rules: tuple[Rule, ...]

    def __repr__(self) -> str:
        return f"{self.run.__name__}-{'+'.join(map(repr, self.rules))}"


ATTACKS = (
    Attack(split_survivors, (THRESHOLD,)),
    Attack(views_of_their_own, (QUORUM,)),
    Attack(views_of_their_own, (SAME_AGREEMENT,)),
    Attack(masks_of_colluders_only, (ENOUGH,)),
    Attack(masks_without_itself, (TAKES_PART, ENOUGH)),
    Attack(signed_away, (WE_ARRIVED, SIGNER_ARRIVED)),
    Attack(other_participants_signed, (SAME_PARTICIPANTS, TOOK_PART)),
    Attack(only_survivor, (ENOUGH, WE_ARRIVED, SIGNER_ARRIVED)),
)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_nobody_is_isolated_and_the_refusal_names_the_rule(attack: Attack, size: tuple[int, int, int]) -> None:
    world = scene(*size)
    attack.run(world)

    assert not world.is_isolated()
    assert any(rule.says in detail for rule in attack.rules for detail in world.refusals())
    opening = world.hub.smallest_sum(world.victim.client)
    # Colluders know their own words: what counts are the honest members' in the sum.
    assert opening is None or len(opening.members) >= world.threshold - world.colluding


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_the_victim_is_isolated_when_the_rules_are_switched_off(
    attack: Attack, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rule in attack.rules:
        rule.switch_off(monkeypatch)
    world = scene(*size)
    attack.run(world)

    assert world.is_isolated()


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if len(attack.rules) > 1], ids=repr)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_of_several_rules_is_enough(
    attack: Attack, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept in attack.rules:
        with monkeypatch.context() as patch:
            for rule in attack.rules:
                if rule is not kept:
                    rule.switch_off(patch)
            world = scene(*size)
            attack.run(world)

            assert not world.is_isolated()
            assert any(kept.says in detail for detail in world.refusals())


@pytest.mark.parametrize("in_force", [True, False])
def test_a_sum_of_fewer_than_the_clients_policy_asks_for_is_not_opened(
    in_force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_force:
        ENOUGH.switch_off(monkeypatch)
    world = scene(6, 4, 1, policy=LENIENT.model_copy(update={"min_summed": 6}))
    masked(world, world.everybody)
    agree_and_reveal(world, world.honest[:-1], lambda _: (world.everybody, world.everybody - {4}), any_signature=False)

    opening = world.hub.smallest_sum(world.victim.client)
    assert (opening is None) == in_force
    assert in_force == ("5 arrived, 6 needed" in world.refusals())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_honest_run_opens_the_sum_of_all_honest_members_and_nothing_smaller(size: tuple[int, int, int]) -> None:
    world = scene(*size)
    everybody = world.everybody
    masked(world, everybody)
    agree_and_reveal(world, world.honest, lambda _: (everybody, everybody), any_signature=False)

    opening = world.hub.smallest_sum(world.victim.client)
    assert opening is not None
    assert opening.members == set(world.honest)
    plain = world.circle.plain_sum(world.circle.clients[place] for place in world.honest)
    assert opening.words.tobytes() == plain.tobytes()
