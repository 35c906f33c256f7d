"""SIGTERM and SIGINT as a flag that a main loop looks at: a process ends between two steps, never inside one."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self


class StopSignal:
    """While entered, SIGTERM and SIGINT set `requested`; a second one of either raises KeyboardInterrupt."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
