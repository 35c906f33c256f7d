"""How does a child process end when its parent ends, however the parent dies?

The parent starts *this file as a script*, which starts the command and reads a pipe that only the parent can write
to. When the parent ends, the pipe ends, after kill -9 just as after a clean exit; the script then stops the command.
Both run in sessions of their own, so a Ctrl-C in the terminal reaches the parent alone, which ends things in order.

Only the standard library is used here: the script runs isolated, outside the package. (Children that the parent
makes by a bare fork, without exec, would hold the pipe open for as long as they live.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# What the script itself may need beyond the command's grace period.
SLACK_S = 10.0


class Leashed:
    """A running command that does not outlive this process.

    Args:
        command: the program and its arguments.
        environment: its whole environment.
        directory: its working directory.
        log: what it prints is appended to this file.
        grace_s: time from SIGTERM to SIGKILL when it has to end.
        keep_open: file descriptors that stay open until the command has ended (a lock, for example).
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        log: Path,
        grace_s: float,
        keep_open: Sequence[int] = (),
    ) -> None:
        self._grace_s = grace_s
        with log.open("ab") as output:
            self._script = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=directory,
                pass_fds=tuple(keep_open),
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the command still runs."""
        return self._script.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the command ended (128 + n for signal n), None while it runs."""
        return self._script.poll()

    def ask_to_stop(self) -> None:
        """Let the command know that it is to end (SIGTERM). Idempotent."""
        if self._script.stdin is not None:
            self._script.stdin.close()

    def stop(self) -> None:
        """End the command and wait until it is gone. Idempotent."""
        self.ask_to_stop()
        try:
            self._script.wait(self._grace_s + SLACK_S)
        except subprocess.TimeoutExpired:
            self._script.kill()
            self._script.wait()


def main(arguments: Sequence[str]) -> int:
    """Run the command `arguments[1:]` until it ends or standard input does; `arguments[0]` is the grace in seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    grace_s = float(arguments[0])
    command = subprocess.Popen(arguments[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda _number, _frame: command.terminate())
    threading.Thread(target=_stop_at_end_of_input, args=(command, grace_s), daemon=True).start()
    code = command.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _stop_at_end_of_input(command: subprocess.Popen[bytes], grace_s: float) -> None:
    while os.read(0, 1024):
        pass
    command.terminate()
    try:
        command.wait(grace_s)
    except subprocess.TimeoutExpired:
        command.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
