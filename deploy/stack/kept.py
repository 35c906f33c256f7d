"""How is one process kept running? Started, watched through its log, and started again when it fails.

state       what happened            next
──────────  ───────────────────────  ───────────────────────────────────────────────
starting    its log says it is ready running
starting,   exit code 0              ended
running     any other exit code      restarting, after a pause that doubles
restarting  the pause is over        starting
any         it is asked to stop      stopping, then ended
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from deploy.log_lines import parse_note
from deploy.stack.files import ProcessPresent, ProcessState

PAUSE_S = 1.0
PAUSE_S_MAX = 60.0
STEADY_S = 60.0
"""A process that has run for this long has recovered: the pause before its next restart is short again."""

LAST_WORDS_BYTES = 4096


class Process(Protocol):
    """What `deploy.leash.Leashed` offers."""

    @property
    def alive(self) -> bool: ...

    @property
    def exit_code(self) -> int | None: ...

    def ask_to_stop(self) -> None: ...

    def stop(self) -> None: ...


class Kept:
    """One process of the stack."""

    def __init__(self, name: str, start: Callable[[], Process], log: Path, ready_event: str) -> None:
        """
        Args:
            name: what people call it.
            start: starts it; what it prints is appended to `log`.
            log: JSON lines.
            ready_event: the event in its log that tells that it works.
        """
        self.name = name
        self._start_process = start
        self._log = log
        self._ready_event = ready_event
        self._process: Process | None = None
        self._pid: int | None = None
        self._read = 0
        self._failures = 0
        self._retry_at = 0.0
        self._started_at = 0.0
        self._last_words = ""
        self.state: ProcessState = "ended"

    def start(self, now: float) -> None:
        """Start the process at time `now` (seconds, monotonic)."""
        self._read = self._log.stat().st_size if self._log.exists() else 0
        self._pid, self._started_at = None, now
        self._process = self._start_process()
        self.state = "starting"

    def step(self, now: float) -> None:
        """Look after the process."""
        if self._process is None:
            if self.state == "restarting" and now >= self._retry_at:
                self.start(now)
            return
        alive = self._process.alive
        self._read_log()
        if not alive:
            self._on_exit(self._process.exit_code, now)

    def ask_to_stop(self) -> None:
        """Let the process end, and not start again. Idempotent."""
        if self._process is None:
            self.state = "ended"
        else:
            self.state = "stopping"
            self._process.ask_to_stop()

    def stop(self) -> None:
        """End the process and wait until it is gone. Idempotent."""
        self.ask_to_stop()
        if self._process is not None:
            self._process.stop()
            self._process = None
            self.state = "ended"

    @property
    def failed(self) -> bool:
        """Whether its last start came to a bad end."""
        return self.state == "restarting"

    @property
    def last_words(self) -> str:
        """What it said before it failed last, in one line."""
        return self._last_words

    def present(self) -> ProcessPresent:
        """How it is."""
        return ProcessPresent(
            name=self.name,
            state=self.state,
            pid=self._pid if self._process is not None else None,
            last_words=self._last_words if self.failed else "",
        )

    def _on_exit(self, code: int | None, now: float) -> None:
        self._process = None
        if code == 0 or self.state == "stopping":
            self.state = "ended"
            return
        if now - self._started_at >= STEADY_S:
            self._failures = 0
        self._last_words = f"exit code {code}: {self._tail()}"
        self._retry_at = now + min(PAUSE_S_MAX, PAUSE_S * 2**self._failures)
        self._failures += 1
        self.state = "restarting"

    def _read_log(self) -> None:
        """Look for the process id and the sign of readiness in what is new."""
        if self._pid is not None and self.state != "starting":
            return
        with self._log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        whole, _, _ = new.rpartition(b"\n")
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            note = parse_note(line)
            if note is None:
                continue
            if note["event"] == "process_started":
                self._pid = note["pid"]
            elif note["event"] == self._ready_event and self.state == "starting":
                self.state = "running"

    def _tail(self) -> str:
        """The last line that it printed: where a command that fails says why."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - LAST_WORDS_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        plain = [line for line in lines if line.strip() and parse_note(line.encode()) is None]
        return plain[-1].removeprefix("comitia: ") if plain else f"see {self._log}"
