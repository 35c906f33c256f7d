"""What does the operator's word in the log mean for the rounds? Paused, running, or to end with the round under way."""

from __future__ import annotations

from collections.abc import Iterator

from shared.effects import Note, note
from shared.modellog.chain import ChainState
from shared.wire.log_messages import RunEntry
from shared.wire.messages import RunState


class RunWord:
    """The last command that counts; `paused`: nothing begins but what is under way goes on."""

    def __init__(self) -> None:
        self.paused = False
        self._stop_at: int | None = None

    def begin(self, chain: ChainState) -> Iterator[Note]:
        """A session begins: a pause of the one before holds."""
        if chain.run is RunState.PAUSED:
            self.paused = True
            yield note("run_paused", version=chain.version)

    def take(self, entry: RunEntry, *, gathering: bool) -> Iterator[Note]:
        """The log has accepted a command; `gathering`: no round is under way."""
        was_paused, self.paused = self.paused, entry.run is RunState.PAUSED
        self._stop_at = None
        match entry.run:
            case RunState.PAUSED:
                yield note("run_paused", version=entry.version)
            case RunState.RUNNING:
                yield note("run_resumed", version=entry.version)
            case RunState.STOPPING:
                self._stop_at = entry.version if was_paused or gathering else entry.version + 1
                yield note("run_stopping", version=entry.version)

    def stops(self, version: int, *, gathering: bool) -> bool:
        """Whether the run is over at this version."""
        return self._stop_at is not None and (gathering or version >= self._stop_at)
