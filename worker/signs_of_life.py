"""Where does a client stand, and when does it tell the coordinator?

A status goes up on every lasting change of phase, and every `status_interval_s` without another sign of life.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

from shared.modellog.reader import LogReader
from shared.wire.messages import ClientState, Status

STATUS_INTERVAL_S = 8.0
"""Until the plan is known."""

STATUS_DEBOUNCE_S = 0.1
"""A phase that lasts no longer than this is not worth a status."""

REASON_MAX = 500


class Phase(StrEnum):
    """Where a client stands."""

    WAITING = "waiting"
    IDLE = "idle"
    TRAINING = "training"
    SAVING = "saving"
    OFFERING = "offering"
    OFFERED = "offered"
    SHARING = "sharing"
    SPENDING = "spending"
    IN_GROUP = "in_group"
    CHARGING = "charging"
    FAILED = "failed"
    MISMATCH = "mismatch"
    OBJECTING = "objecting"
    EXHAUSTED = "exhausted"
    DRAINED = "drained"
    RELEASED = "released"
    LEFT = "left"


_STATUS_OF = {
    Phase.TRAINING: ClientState.TRAINING,
    Phase.SAVING: ClientState.TRAINING,
    Phase.OFFERING: ClientState.OFFERED,
    Phase.OFFERED: ClientState.OFFERED,
    Phase.SHARING: ClientState.IN_GROUP,
    Phase.SPENDING: ClientState.IN_GROUP,
    Phase.IN_GROUP: ClientState.IN_GROUP,
    Phase.CHARGING: ClientState.TRAINING,
    Phase.FAILED: ClientState.TRAINING_FAILED,
    Phase.MISMATCH: ClientState.PLAN_MISMATCH,
    Phase.OBJECTING: ClientState.POLICY,
    Phase.EXHAUSTED: ClientState.BUDGET_EXHAUSTED,
    Phase.DRAINED: ClientState.DRAINING,
    Phase.LEFT: ClientState.LEAVING,
}

_REASONED = (Phase.FAILED, Phase.MISMATCH, Phase.OBJECTING, Phase.EXHAUSTED)
_URGENT = (*_REASONED, Phase.DRAINED, Phase.LEFT)


class SignsOfLife:
    """When one client's next status is due, and what it says."""

    def __init__(self, log: LogReader, worker: str, sequence: Callable[[], int]) -> None:
        """
        Args:
            log: the worker's reader (read only here).
            worker: the process that speaks.
            sequence: numbers that rise with every call, also over restarts.
        """
        self._log = log
        self._worker = worker
        self._sequence = sequence
        self._announce_at = math.inf
        self._heartbeat_at = 0.0

    @property
    def next_at(self) -> float:
        """When the next status is due (seconds, monotonic)."""
        return min(self._announce_at, self._heartbeat_at)

    def changed(self, phase: Phase, now: float) -> None:
        """The phase is new. Offers and words announce themselves, and short phases are not news."""
        if phase is Phase.RELEASED:
            self._announce_at = self._heartbeat_at = math.inf
        elif phase in (Phase.OFFERED, Phase.SHARING, Phase.IN_GROUP):
            self._announce_at = math.inf
        else:
            self._announce_at = now if phase in _URGENT else now + STATUS_DEBOUNCE_S

    def heard(self, now: float) -> None:
        """Another sign of life has left: the next status may wait."""
        plan = self._log.plan
        self._heartbeat_at = now + (plan.round.status_interval_s if plan else STATUS_INTERVAL_S)

    def status(self, phase: Phase, counter: int, reason: str, now: float) -> Status:
        """The status that is due."""
        self._announce_at = math.inf
        self.heard(now)
        chain = self._log.chain
        return Status(
            sequence=self._sequence(),
            counter=counter,
            state=_STATUS_OF.get(phase, ClientState.IDLE),
            version=chain.version if chain else 0,
            worker=self._worker,
            # A client that came to a process which follows the log already has not been told its task either.
            log_position="following" if chain and phase is not Phase.WAITING else "absent",
            reason=reason[:REASON_MAX] if phase in _REASONED else "",
        )


class RisingNumbers:
    """Numbers that rise with every call and over restarts, as long as the wall clock does not go back."""

    def __init__(self, clock_us: Callable[[], int]) -> None:
        self._clock_us = clock_us
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last + 1, self._clock_us())
        return self._last
