"""Who is there: every client's last sign of life, and the phase it was in."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
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

    `newest` is the frame with the highest counter that it has signed, `counter` that counter.
    """

    heard_at: float = 0.0
    sequence: int = -1
    version: int = 0
    phase: str = "joining"
    reason: str = ""
    strikes: int = 0
    backed_off_until: int = 0
    counter: int = -1
    newest: bytes = b""


class Roll:
    """The live clients of a federation. Bounded by the directory: only enrolled clients get this far.

    It is asked after every message, so no question but `silent`, when somebody may be, looks at all clients.
    """

    def __init__(self, status_interval_s: float) -> None:
        self._silence_s = SILENT_INTERVALS * status_interval_s
        self._records: dict[str, ClientRecord] = {}
        # In the order of their joining, so that a run can be repeated.
        self._live: dict[str, None] = {}
        self._heard_of: set[str] = set()
        self._exhausted: set[str] = set()
        self._struck: set[str] = set()
        self._nobody_silent_until = -math.inf

    @property
    def live(self) -> AbstractSet[str]:
        """Clients that take part now: a view that changes with the roll."""
        return self._live.keys()

    def status(self, client: str, status: Status, now: float) -> bool | None:
        """Note a status. Returns whether the client just became live, or None for a replay (nothing changes)."""
        record = self._records.setdefault(client, ClientRecord())
        if status.sequence <= record.sequence:
            return None
        was_live = client in self._live
        record.sequence = status.sequence
        record.heard_at = now
        self._heard_of.add(client)
        is_live = status.state not in CLOSED_STATES
        if is_live:
            self._live[client] = None
        else:
            self._live.pop(client, None)
        is_exhausted = status.state is ClientState.BUDGET_EXHAUSTED
        (self._exhausted.add if is_exhausted else self._exhausted.discard)(client)
        if status.state is ClientState.TRAINING:
            record.version, record.phase = status.version, "training"
        return is_live and not was_live

    @property
    def records(self) -> Mapping[str, ClientRecord]:
        """What is known of each client; to be read only."""
        return self._records

    def recall(self, memory: ClientMemory, now: float) -> None:
        """Take over what a session before knew of a client; one that took part has as long as any to be heard again."""
        self._records[memory.client] = ClientRecord(
            heard_at=now,
            strikes=memory.strikes,
            backed_off_until=memory.backed_off_until,
            counter=memory.counter,
            newest=memory.newest,
        )
        if memory.strikes:
            self._struck.add(memory.client)
        if memory.live:
            self._heard_of.add(memory.client)
            self.join(memory.client)

    @property
    def heard_of(self) -> AbstractSet[str]:
        """Clients that have been heard of in this session, or took part in the one before: a view as `live` is."""
        return self._heard_of

    @property
    def exhausted(self) -> AbstractSet[str]:
        """Clients that have said last that their privacy budget is spent: they will not come back."""
        return self._exhausted

    def spent_up(self, enrolled: Collection[str], needed: int, *, late: bool) -> str:
        """Why there will be no draw of `needed` clients any more, empty if there may: too few have budget left.

        Whoever is enrolled may still come; once it is `late`, only who has been heard of is counted on.
        """
        exhausted, heard_of = self.exhausted, self.heard_of
        if not exhausted or (late and len(heard_of) < needed):
            return ""
        left = len((heard_of if late else frozenset(enrolled)) - exhausted)
        if left >= needed:
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
        record.heard_at, record.version, record.phase = now, version, phase
        self._heard_of.add(client)

    def join(self, client: str) -> bool:
        """Take a client in. Returns whether it just became live."""
        record = self._records.setdefault(client, ClientRecord())
        was_live = client in self._live
        self._live[client] = None
        self._nobody_silent_until = min(self._nobody_silent_until, record.heard_at + self._silence_s)
        return not was_live

    def lose(self, client: str) -> tuple[int, str] | None:
        """Take a client out until it is heard again. Returns its last version and phase, None if it was out."""
        if client not in self._live:
            return None
        del self._live[client]
        record = self._records[client]
        return record.version, record.phase

    def forget_others(self, clients: Iterable[str]) -> list[str]:
        """Forget everybody who is not one of `clients`; returns them, sorted."""
        others = sorted(self._records.keys() - set(clients))
        for client in others:
            del self._records[client]
            self._live.pop(client, None)
            self._heard_of.discard(client)
            self._exhausted.discard(client)
            self._struck.discard(client)
        return others

    def back_off(self, client: str, version: int) -> int:
        """A client broke the protocol in its group. Returns the version from which on it may be drawn again."""
        record = self._records.setdefault(client, ClientRecord())
        record.strikes += 1
        self._struck.add(client)
        record.backed_off_until = version + min(BACK_OFF_MAX, 2**record.strikes)
        return record.backed_off_until

    def is_backed_off(self, client: str, version: int) -> bool:
        """Whether a client is not drawn for this version."""
        return client in self._struck and version < self._records[client].backed_off_until

    def drawable(self, clients: AbstractSet[str], version: int) -> set[str]:
        """Those of `clients` that may be drawn for this version."""
        return set(clients) - {client for client in self._struck if self.is_backed_off(client, version)}

    def silent(self, now: float) -> list[str]:
        """Live clients that have been silent for too long."""
        if now <= self._nobody_silent_until:
            return []
        heard_at = {client: self._records[client].heard_at for client in self._live}
        silent = [client for client, then in heard_at.items() if now - then > self._silence_s]
        # Whoever is heard again is silent later than that.
        self._nobody_silent_until = min(heard_at.values(), default=now) + self._silence_s
        return silent
