"""What a machine may ask of its shell: frozen values, carried out in their order after `handle` returned.

The shell keeps one order for everything that one batch of events led to: **save, publish, settle**. A delivery is
settled only after every message published before it has been confirmed, so a crash between any two steps makes
the broker deliver again, never lose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from shared.modellog.entries import SealedEntry
from shared.transport.port import Delivery, Outcome


class Receipt:
    """A delivery that several messages arrived in: it is settled when the last of them is done."""

    __slots__ = ("delivery", "open")

    def __init__(self, delivery: Delivery, messages: int) -> None:
        self.delivery = delivery
        self.open = messages


@dataclass(frozen=True, slots=True)
class Publish:
    """Send one frame; frames for the same key leave together, in their order."""

    exchange: str
    routing_key: str
    frame: bytes
    persistent: bool = True


@dataclass(frozen=True, slots=True)
class Settle:
    """One message of a delivery is done (or belongs to the dead letters)."""

    receipt: Receipt
    outcome: Outcome = Outcome.ACK


@dataclass(frozen=True, slots=True)
class Append:
    """Append an entry and its pieces to the model log, once the journal holds what `record` yields (frames)."""

    sealed: SealedEntry
    record: Iterable[bytes] = ()


Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something an operator may want to know: one structured log line and, by its event name, one count."""

    event: str
    level: Level = "info"
    fields: dict[str, object] = field(default_factory=dict)


def note(event: str, level: Level = "info", **fields: object) -> Note:
    """Shorthand for `Note`."""
    return Note(event, level, fields)


Effect = Publish | Settle | Append | Note
