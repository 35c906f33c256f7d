"""What the commands do to a stack: start its supervisor, ask it for something, wait until it is so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from deploy.stack.files import Order, Present, StackFiles, Wanted, read_record, write_record
from deploy.stack.lock import acquire, held
from shared.errors import ComitiaError

POLL_S = 0.1
UP_S = 300.0
"""A private node may take 120 s on a machine under full load, and the coordinator starts after it."""

SHARED_OUT_S = 15.0

CHANGE_S = 720.0
"""The longest drain (600 s), and what everything else may need to end after it."""


class StackError(ComitiaError):
    """The stack is not in the state that a command needs; the message says what to do."""


class StackBroken(ComitiaError):
    """The stack, or a part of it, failed."""

    exit_code = 1


def is_up(files: StackFiles) -> bool:
    """Whether the stack has a supervisor."""
    return held(files.supervisor)


def is_alive(files: StackFiles) -> bool:
    """Whether anything of the stack lives, perhaps only to end soon; a private node has a lock of its own."""
    return held(files.lock) or held(files.broker / "lock")


@contextlib.contextmanager
def locked(files: StackFiles) -> Iterator[int]:
    """Hold the stack's lock, for the time until a supervisor has it too. Waits for whoever has it but no supervisor.

    Raises:
        StackError: it is up, or its remains do not end.
    """
    files.make()
    deadline = time.monotonic() + CHANGE_S
    while is_alive(files) or (lock := acquire(files.lock)) is None:
        if is_up(files):
            pid = files.supervisor.read_text().strip()
            raise StackError(f"the stack is up already (process {pid}); `comitia down` stops it")
        _wait(deadline, f"what a killed stack left behind does not end; see {files.logs}")
    try:
        yield lock
    finally:
        os.close(lock)


def start(files: StackFiles, order: Order, lock: int) -> Present:
    """Start a supervisor in the background and wait until the coordinator works.

    Raises:
        StackBroken: it does not; everything is gone again.
    """
    command = [sys.executable, "-m", "deploy.stack.supervisor", str(files.root), str(lock)]
    with files.log("supervisor").open("wb") as log:
        supervisor = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,
        )
    assert supervisor.stdin is not None
    with supervisor.stdin as pipe:
        pipe.write(order.model_dump_json().encode())
    try:
        return _await_start(files, supervisor)
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        raise


def _await_start(files: StackFiles, supervisor: subprocess.Popen[bytes]) -> Present:
    deadline = time.monotonic() + UP_S
    while True:
        ended = supervisor.poll() is not None
        present = read_record(files.present, Present)
        if present is not None and present.phase == "up":
            return present
        if ended:
            reason = present.error if present is not None else ""
            raise StackBroken(reason or f"the supervisor ended; see {files.log('supervisor')}")
        _wait(deadline, f"the stack did not come up; see {files.logs}")


def present(files: StackFiles) -> Present:
    """What there is.

    Raises:
        StackError: the stack is not up.
    """
    found = read_record(files.present, Present) if is_up(files) else None
    if found is None:
        raise StackError("the stack is not up; start it with `comitia up`")
    return found


def set_workers(files: StackFiles, count: int, clients: int) -> Present:
    """Have `count` workers share out `clients` clients, and wait until all run and all clients are served, evenly.

    Clients move when their groups are over, so that may take long; `SHARED_OUT_S` after all run this waits no more.

    Raises:
        StackError: the stack is not up.
        StackBroken: a worker failed to start; the supervisor keeps trying.
    """
    wanted = read_record(files.wanted, Wanted) or Wanted()
    wanted = wanted.model_copy(update={"generation": wanted.generation + 1, "workers": count})
    write_record(files.wanted, wanted)
    deadline = time.monotonic() + CHANGE_S
    running_since: float | None = None
    while True:
        now = present(files)
        workers = [one for one in now.processes if one.name != "coordinator"]
        if now.generation >= wanted.generation:
            for worker in workers:
                if worker.state == "restarting":
                    raise StackBroken(f"{worker.name} did not start: {worker.last_words}")
            if all(worker.state == "running" for worker in workers):
                running_since = running_since or time.monotonic()
                served = [len(worker.clients) for worker in workers] or [clients]
                is_even = sum(served) == clients and max(served) - min(served) <= 1
                if is_even or time.monotonic() > running_since + SHARED_OUT_S:
                    return now
        _wait(deadline, f"the workers did not change; see {files.logs}")


def stop(files: StackFiles) -> bool:
    """Have everything end, and wait until it is gone. Returns False if there was nothing.

    Raises:
        StackBroken: it does not end.
    """
    if not is_alive(files):
        return False
    wanted = read_record(files.wanted, Wanted) or Wanted()
    write_record(files.wanted, wanted.model_copy(update={"down": True}))
    deadline = time.monotonic() + CHANGE_S
    while is_alive(files):
        _wait(deadline, f"the stack does not end; see {files.log('supervisor')}")
    return True


def _wait(deadline: float, failure: str) -> None:
    if time.monotonic() > deadline:
        raise StackBroken(failure)
    time.sleep(POLL_S)
