"""What does a coordinator know that its successor cannot read from the model log?

Each machine keeps its part; together they are the state of one record of the journal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from coordinator.aggregator.steering import SteeringState
from shared.errors import RemoteProtocolError, StateError
from shared.wire.framing import decode_fields, encode_fields


@dataclass(frozen=True, slots=True)
class ClientMemory:
    """What outlives a session of one client.

    `drawn` is the highest counter of its offers that were drawn; `newest` the frame with the highest counter that it
    has signed, `counter` that counter. `counted_for` is the version whose draw took its update last; `strikes`,
    `backed_off_until` and `live` are as in `coordinator.scheduler.clients`.
    """

    client: str
    drawn: int = 0
    counter: int = -1
    newest: bytes = b""
    strikes: int = 0
    backed_off_until: int = 0
    counted_for: int | None = None
    live: bool = False


@dataclass(frozen=True, slots=True)
class SchedulerMemory:
    """`drawn` holds the frames of all offers of the open draw; none if the entry closes it."""

    clients: tuple[ClientMemory, ...]
    drawn: tuple[bytes, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class RunMemory:
    """`draws` counts by client those that are not among the `versions_before`, when everybody was drawn."""

    steering: SteeringState
    versions_before: int = 0
    draws: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """All of it; `changed_bytes` is what change entries have taken since the last snapshot."""

    scheduler: SchedulerMemory
    run: RunMemory
    changed_bytes: int

    def encode(self) -> bytes:
        """As bytes, for the journal."""
        return encode_fields(_KEPT.dump_python(self))


_KEPT = TypeAdapter(Kept)


def decode_kept(data: bytes) -> Kept:
    """What `Kept.encode` returned these bytes for.

    Raises:
        StateError: they are of another version of Comitia, or damaged.
    """
    try:
        return _KEPT.validate_python(decode_fields(data))
    except (RemoteProtocolError, ValidationError) as error:
        raise StateError("the journal holds a state that this version of Comitia cannot read") from error
