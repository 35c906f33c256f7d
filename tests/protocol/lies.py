"""How is a member made dishonest? It sends what a test likes, under its own signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from coordinator.events import GroupGivenUp, GroupSummed
from shared.wire.group_messages import GroupMessage
from shared.wire.messages import Message
from tests.protocol.circle import Circle, Letter, Party
from worker.member import Session

BAD = "client-1"
PLACE = 1

Lie = Callable[[Party, Message], Iterable[Message]]
"""What a dishonest member sends instead of the message that it owes."""


def corrupt(circle: Circle, lie: Lie, client: str = BAD) -> None:
    """Make one member dishonest."""
    party = circle.parties[client]
    honest = party.take

    def take(message: GroupMessage) -> list[Letter]:
        return [
            Letter(client, "", said, circle.federation.seal_as(client, said), letter.stage)
            for letter in honest(message)
            for said in lie(party, letter.message)
        ]

    party.take = take  # type: ignore[method-assign]


def instead(kind: type[Message], change: Callable[[Any], Iterable[Message]]) -> Lie:
    """Lie in messages of one kind only."""
    return lambda _, message: change(message) if isinstance(message, kind) else (message,)


def run(circle: Circle, lost: dict[str, type[Message]] | None = None) -> GroupSummed | GroupGivenUp:
    """Run the group to its end; nothing passes of clients in `lost` from the first message of that kind on."""
    gone: set[str] = set()

    def passes(letter: Letter) -> bool:
        client = letter.to or letter.sender
        if lost and client in lost and isinstance(letter.message, lost[client]):
            gone.add(client)
        return client not in gone

    circle.start()
    return circle.finish(passes)


def assert_sum(circle: Circle, result: GroupSummed | GroupGivenUp, arrived: Iterable[str]) -> None:
    assert isinstance(result, GroupSummed), result
    assert result.arrived == tuple(arrived)
    np.testing.assert_array_equal(result.words, circle.plain_sum(result.arrived))


def others(circle: Circle) -> tuple[str, ...]:
    return tuple(client for client in circle.clients if client != BAD)


def session_of(party: Party) -> Session:
    session = party.machine._session
    assert session is not None
    return session
