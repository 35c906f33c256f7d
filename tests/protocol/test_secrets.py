"""Where do a group's secrets not show? In nothing that is printed or logged, and nowhere once the group is over."""

from __future__ import annotations

import gc

import pytest

from coordinator.events import GroupSummed
from shared.crypto.keys import OneTimeKeys
from tests.protocol.circle import Circle
from worker.dealing import Dealt
from worker.session import Session
from worker.steps import MemberState


def secrets_of(session: Session) -> list[bytes]:
    assert session.keys is not None
    assert session.dealt is not None
    kept = [share for pair in session.kept.values() for share in pair]
    return [session.keys.sealing_seed, session.keys.masking_seed, session.dealt.seed, *session.dealt.own, *kept]


def test_nothing_that_is_printed_or_noted_holds_a_secret() -> None:
    circle = Circle(4)
    circle.start()
    circle.run()
    for party in circle.parties.values():
        session = party.machine._session
        assert session is not None
        said = repr(session) + repr(session.dealt) + repr(session.keys) + repr(party.notes) + repr(circle.notes)
        for secret in secrets_of(session):
            assert repr(secret)[2:-1] not in said
            assert secret.hex() not in said


@pytest.mark.parametrize("end", ["change", "void"])
def test_all_secrets_of_a_group_are_forgotten_when_its_draw_is_closed(end: str) -> None:
    circle = Circle(4)
    circle.start()
    circle.run()
    assert isinstance(circle.results[0], GroupSummed)
    party = circle.parties["client-0"]
    assert any(isinstance(found, OneTimeKeys) for found in _reachable(party.machine))
    if end == "void":
        circle.book.void()
    else:
        circle.book.change(circle.book.reader.weights + 1)
    list(party.machine.follow(circle.book.chain, None))

    assert party.machine.state is MemberState.OUT
    assert not [found for found in _reachable(party.machine) if isinstance(found, OneTimeKeys | Dealt | Session)]


def _reachable(root: object) -> list[object]:
    """All that a machine still holds, but for what belongs to its modules and to other parties."""
    seen: dict[int, object] = {}
    waiting: list[object] = [vars(root)]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type) or callable(one) or type(one).__name__ == "module":
            continue
        seen[id(one)] = one
        waiting += gc.get_referents(one)
    return list(seen.values())
