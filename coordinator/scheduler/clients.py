"""Who is there: every client's last sign of life, and the phase it was in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from coordinator.kept import ClientMemory
from shared.wire.messages import CLOSED_STATES, REMINDER_BYTES_MAX, ClientState, Status

SILENT_INTERVALS = 3
"""A client is lost after this many status intervals without a sign of life."""


BACK_OFF_MAX = 64
"""A client that breaks the protocol is not drawn for 2, 4, 8, … versions, and never for more than this."""


@dataclass(slots=True)
class ClientRecord:
    """What the coordinator knows of one client. `phase` is where it was when it was last heard of.

    `newest` is the frame with the highest counter that it has signed, `counter` that counter. `heard`: in this
    session, or last in the one before.
    """

    heard_at: float = 0.0
    live: bool = False
    sequence: int = -1
    version: int = 0
    phase: str = "joining"
    reason: str = ""
    strikes: int = 0
    backed_off_until: int = 0
    exhausted: bool = False
    heard: bool = False
    counter: int = -1
    newest: bytes = b""


class Roll:
    """The live clients of a federation. Bounded by the directory: only enrolled clients get this far."""

    def __init__(self, status_interval_s: float) -> None:
        self._silence_s = SILENT_INTERVALS * status_interval_s
        self._records: dict[str, ClientRecord] = {}

    @property
    def live(self) -> frozenset[str]:
        """Clients that take part now."""
        return frozenset(client for client, record in self._records.items() if record.live)

    def status(self, client: str, status: Status, now: float) -> bool | None:
        """Note a status. Returns whether the client just became live, or None for a replay (nothing changes)."""
        record = self._records.setdefault(client, ClientRecord())
        if status.sequence <= record.sequence:
            return None
        was_live = record.live
        record.sequence = status.sequence
        record.heard_at, record.heard = now, True
        record.live = status.state not in CLOSED_STATES
        record.exhausted = status.state is ClientState.BUDGET_EXHAUSTED
        if status.state is ClientState.TRAINING:
            record.version, record.phase = status.version, "training"
        return record.live and not was_live

    @property
    def records(self) -> Mapping[str, ClientRecord]:
        """What is known of each client; to be read only."""
        return self._records

    def recall(self, memory: ClientMemory, now: float) -> None:
        """Take over what a session before knew of a client; one that took part has as long as any to be heard again."""
        self._records[memory.client] = ClientRecord(
            heard_at=now,
            heard=memory.live,
            live=memory.live,
            strikes=memory.strikes,
            backed_off_until=memory.backed_off_until,
            counter=memory.counter,
            newest=memory.newest,
        )

    @property
    def heard_of(self) -> frozenset[str]:
        """Clients that have been heard of in this session, whether they take part or not."""
        return frozenset(client for client, record in self._records.items() if record.heard)

    @property
    def exhausted(self) -> frozenset[str]:
        """Clients that have said last that their privacy budget is spent: they will not come back."""
        return frozenset(client for client, record in self._records.items() if record.exhausted)

    def spent_up(self, enrolled: Collection[str], needed: int, *, late: bool) -> str:
        """Why there will be no draw of `needed` clients any more, empty if there may: too few have budget left.

        Whoever is enrolled may still come; once it is `late`, only who has been heard of is counted on.
        """
        exhausted, heard_of = self.exhausted, self.heard_of
        waits = late and len(heard_of) < needed
        left = len((heard_of if late else frozenset(enrolled)) - exhausted)
        if not exhausted or waits or left >= needed:
            return ""
        return f"the privacy budget of {len(exhausted)} clients is exhausted, {left} are left and a draw needs {needed}"

    def signed(self, client: str, counter: int, frame: bytes) -> bytes:
        """Note which counter a client has signed. Returns an earlier frame of its own with a higher one, empty: none.

        Frames that are too long for a reminder are none.
        """
        record = self._records.setdefault(client, ClientRecord())
        if counter < record.counter:
            return record.newest
        if len(frame) <= REMINDER_BYTES_MAX:
            record.counter, record.newest = counter, frame
        return b""

    def is_news(self, client: str, reason: str) -> bool:
        """Note why a client takes no part. Returns whether it has not said so before."""
        record = self._records.setdefault(client, ClientRecord())
        told, record.reason = record.reason == reason, reason
        return not told

    def heard(self, client: str, version: int, phase: str, now: float) -> None:
        """Note an offer or words: signs of life too, but whether the client takes part is another matter."""
        record = self._records.setdefault(client, ClientRecord())
        record.heard_at, record.heard = now, True
        record.version, record.phase = version, phase

    def join(self, client: str) -> bool:
        """Take a client in. Returns whether it just became live."""
        record = self._records.setdefault(client, ClientRecord())
        was_live, record.live = record.live, True
        return not was_live

    def lose(self, client: str) -> tuple[int, str] | None:
        """Take a client out until it is heard again. Returns its last version and phase, None if it was out."""
        record = self._records.get(client)
        if record is None or not record.live:
            return None
        record.live = False
        return record.version, record.phase

    def forget_others(self, clients: Iterable[str]) -> list[str]:
        """Forget everybody who is not one of `clients`; returns them, sorted."""
        others = sorted(self._records.keys() - set(clients))
        for client in others:
            del self._records[client]
        return others

    def back_off(self, client: str, version: int) -> int:
        """A client broke the protocol in its group. Returns the version from which on it may be drawn again."""
        record = self._records.setdefault(client, ClientRecord())
        record.strikes += 1
        record.backed_off_until = version + min(BACK_OFF_MAX, 2**record.strikes)
        return record.backed_off_until

    def is_backed_off(self, client: str, version: int) -> bool:
        """Whether a client is not drawn for this version."""
        record = self._records.get(client)
        return record is not None and version < record.backed_off_until

    def silent(self, now: float) -> list[str]:
        """Live clients that have been silent for too long."""
        return [
            client
            for client, record in self._records.items()
            if record.live and now - record.heard_at > self._silence_s
        ]
