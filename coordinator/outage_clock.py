"""What time is it for those whom nobody could reach? While the broker is away their time stands still."""

from __future__ import annotations

from shared.transport.port import Connected, Disconnected


class OutageClock:
    """A clock that stands still from a lost connection to the next one that works."""

    def __init__(self) -> None:
        self._away_s = 0.0
        self._lost_at: float | None = None

    def watch(self, item: object, now: float) -> None:
        """Take an event of the transport into account."""
        if isinstance(item, Disconnected) and self._lost_at is None:
            self._lost_at = now
        elif isinstance(item, Connected) and self._lost_at is not None:
            self._away_s += now - self._lost_at
            self._lost_at = None

    def at(self, now: float) -> float:
        """This clock's time at `now` (both in seconds)."""
        return (now if self._lost_at is None else self._lost_at) - self._away_s
