"""Whom has the operator taken out of the federation for the time being? Marks beside the clients' state directories.

In ``<state_dir>/.away`` (no client can be called so) stands an empty file for each of them. It is put there by
`comitia worker leave` and taken away by `comitia worker rejoin`; no worker serves a client that has one. A worker looks
after it has locked a client, `take_out` waits for the lock after it has put the mark: so who is said to have left, has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from shared.disk import sync_directory
from shared.errors import StateError
from worker.storage import is_held, make_directory

AWAY_DIRECTORY = ".away"

POLL_S = 0.1


class Departure(StrEnum):
    """What became of a client that was taken out."""

    LEFT = "has left"
    NOT_SERVED = "was not served"
    STILL_SERVED = "is still served"


def clients_away(state_dir: Path) -> frozenset[str]:
    """All clients that are taken out.

    Raises:
        StateError: the marks cannot be read.
    """
    folder = state_dir / AWAY_DIRECTORY
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise StateError(f"{folder}: cannot be read: {error.strerror}") from error


def take_out(state_dir: Path, clients: Sequence[str], timeout_s: float) -> Iterator[tuple[str, Departure]]:
    """Mark clients as away, durably, and wait until nobody serves them: yields each when that is known.

    Raises:
        StateError: there is no such directory, or it cannot be used.
    """
    if not state_dir.is_dir():
        raise StateError(f"{state_dir}: there is no such directory; state_dir must be that of the workers")
    deadline = time.monotonic() + timeout_s
    waiting = {client: is_held(state_dir / client) for client in clients}
    _mark(state_dir / AWAY_DIRECTORY, clients)
    while waiting:
        for client in [client for client in waiting if not is_held(state_dir / client)]:
            yield client, Departure.LEFT if waiting.pop(client) else Departure.NOT_SERVED
        if waiting and time.monotonic() >= deadline:
            yield from ((client, Departure.STILL_SERVED) for client in waiting)
            return
        if waiting:
            time.sleep(POLL_S)


def bring_back(state_dir: Path, clients: Sequence[str]) -> list[str]:
    """Take the marks away, durably; returns who had one.

    Raises:
        StateError: the marks cannot be changed.
    """
    folder = state_dir / AWAY_DIRECTORY
    marked = clients_away(state_dir).intersection(clients)
    try:
        for client in marked:
            (folder / client).unlink(missing_ok=True)
        if marked:
            sync_directory(folder)
    except OSError as error:
        raise StateError(f"{folder}: cannot be written to: {error.strerror}") from error
    return [client for client in clients if client in marked]


def _mark(folder: Path, clients: Sequence[str]) -> None:
    try:
        make_directory(folder)
        for client in clients:
            (folder / client).touch(mode=0o600)
        sync_directory(folder)
    except OSError as error:
        raise StateError(f"{folder}: cannot be written to: {error.strerror}") from error
