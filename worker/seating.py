"""Takes and gives back clients while a worker runs: the shell around `worker.sharing_out`.

Every `LOOK_S` it looks who else is there (`worker.replicas`) and how many clients that makes for each. A client is
taken by locking its state directory, and goes on from what stands there. One whose directory or key cannot be used is
left alone for a while, and said; the others are served. One that the operator has taken out (`worker.away`) is let go
of, and not taken until it is back, also where the settings fix whom we serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from shared.crypto.signing import SigningKey
from shared.directory import Directory
from shared.effects import note
from shared.errors import ClientAway, DirectoryError, SettingsError, StateError, StateHeld
from shared.telemetry import Telemetry
from worker.away import clients_away
from worker.client_ids import parse_client_ids
from worker.events import HandOver, Leave
from worker.keystore import CLIENT_KEYS_DIRECTORY, clients_with_keys, identity_key
from worker.replicas import Sign, live_replicas
from worker.service import WorkerService
from worker.settings import WorkerSettings
from worker.sharing_out import Replica, View, decide, room_elsewhere
from worker.state import ClientState
from worker.storage import DirectoryStorage

LOOK_S = 1.0
TAKEN_AT_ONCE = 8
"""Opening a directory waits for the disk: those who are served already get a turn in between."""

SHUN_S, SHUN_S_MAX = 10.0, 600.0


@dataclass(slots=True)
class _Shunned:
    until: float
    pause_s: float
    reason: str


class Seats(Protocol):
    """Decides whom this process serves."""

    def look(self, now: float) -> None:
        """Take and give back, if it is time to (`now`: seconds, monotonic)."""

    def leave(self, now: float) -> None:
        """This process is to end: let others have its clients."""


class FixedSeats:
    """Those whom the settings name, from start to end, but for whom the operator takes out meanwhile."""

    def __init__(
        self,
        settings: WorkerSettings,
        directory: Callable[[], Directory],
        service: WorkerService,
        telemetry: Telemetry,
    ) -> None:
        """As `Seating`, with a service that serves those of the settings already, but for who is away."""
        self._clients = settings.clients
        self._service = service
        self._door = _Door(settings, directory, service, telemetry)
        self._next_look = 0.0

    def look(self, now: float) -> None:
        """Let go of whom the operator has taken out, take in whom he has brought back.

        Raises:
            StateError: the operator's marks cannot be read.
        """
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        present = self._service.clients.keys() | self._door.show_out(now) | self._door.shunned(now)
        self._door.take([client for client in self._clients if client not in present], len(self._clients), now)

    def leave(self, now: float) -> None:
        """Nobody else is expected to serve them."""


class Seating:
    """Which clients sit in this process, one of several replicas."""

    def __init__(
        self,
        settings: WorkerSettings,
        directory: Callable[[], Directory],
        service: WorkerService,
        replica: Replica,
        telemetry: Telemetry,
    ) -> None:
        """Count as a replica from here on.

        Args:
            settings: where directories and keys are, whom to choose from.
            directory: the directory of members that counts now.
            service: serves the clients; started.
            replica: this process, serving nobody yet.
            telemetry: takes notes.

        Raises:
            StateError: the place for the replicas' signs cannot be used.
        """
        self._settings = settings
        self._directory = directory
        self._service = service
        self._telemetry = telemetry
        self._candidates = candidates_of(settings, directory())
        self._leaving: set[str] = set()
        self._door = _Door(settings, directory, service, telemetry)
        self._next_look = 0.0
        self._me = replica.worker
        self._sign = Sign(settings.state_dir, replica)

    def look(self, now: float) -> None:
        """Take and give back, if it is time to.

        Raises:
            StateError: the place for the replicas' signs, or the operator's marks, cannot be used.
        """
        self._sign.show(frozenset(self._service.clients))
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        away = self._door.show_out(now)
        self._leaving |= away & self._service.clients.keys()
        self._candidates = self._present_candidates()
        decision = decide(self._view(away, now))
        self._give_back(decision.give_back, now)
        taken = self._door.take(decision.take, decision.wanted, now)
        if taken == TAKEN_AT_ONCE < decision.wanted:
            self._next_look = now
        self._sign.show(frozenset(self._service.clients))

    def leave(self, now: float) -> None:
        """This process is to end: the other replicas take its clients, those that they have seats for.

        Raises:
            StateError: as `look`.
        """
        self._sign.take_down()
        ours = [one for one in live_replicas(self._settings.state_dir) if one.pool == self._sign.replica.pool]
        staying = [client for client in self._service.clients if client not in self._leaving]
        self._give_back(tuple(staying[: room_elsewhere(self._me, ours, len(staying))]), now)

    def close(self) -> None:
        """Count no more as a replica. Idempotent."""
        self._sign.take_down()

    def _present_candidates(self) -> list[str]:
        try:
            return candidates_of(self._settings, self._directory())
        except (DirectoryError, SettingsError):
            # What was readable at the start is not for the moment: no reason to let go of anybody.
            return self._candidates

    def _view(self, away: frozenset[str], now: float) -> View:
        served = self._service.clients
        self._leaving &= served.keys()
        found = live_replicas(self._settings.state_dir)
        others = [one for one in found if one.pool == self._sign.replica.pool and one.worker != self._me]
        return View(
            me=self._me,
            replicas=[*others, self._sign.replica],
            candidates=[client for client in self._candidates if client not in away],
            served={client: phase for client, phase in served.items() if client not in self._leaving},
            leaving=self._leaving,
            shunned=self._door.shunned(now),
        )

    def _give_back(self, clients: tuple[str, ...], now: float) -> None:
        self._leaving |= set(clients)
        self._service.release(clients, now, HandOver())


class _Door:
    """Through which clients come and go, whoever decides that; who is away stays outside."""

    def __init__(
        self,
        settings: WorkerSettings,
        directory: Callable[[], Directory],
        service: WorkerService,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._service = service
        self._telemetry = telemetry
        self._shunned: dict[str, _Shunned] = {}
        self._out_by: dict[str, float] = {}

    def show_out(self, now: float) -> frozenset[str]:
        """Let go of those whom the operator has taken out: after a group in progress, but within `drain_s`.

        Returns all who are away, served here or not.
        """
        away = clients_away(self._settings.state_dir)
        staying = away & self._service.clients.keys()
        told, self._out_by = self._out_by, {c: self._out_by.get(c, now + self._settings.drain_s) for c in staying}
        self._service.release(staying - told.keys(), now, Leave())
        self._service.release([c for c, by in self._out_by.items() if now >= by], now, Leave(at_once=True))
        return away

    def shunned(self, now: float) -> frozenset[str]:
        """Clients that could not be opened a while ago."""
        return frozenset(client for client, one in self._shunned.items() if now < one.until)

    def take(self, clients: Iterable[str], wanted: int, now: float) -> int:
        """Try clients in this order until `wanted` are taken, or `TAKEN_AT_ONCE`; returns how many were."""
        taken = 0
        for client in clients:
            if taken == min(wanted, TAKEN_AT_ONCE):
                break
            try:
                state, key = open_client(self._settings, self._directory(), client)
            except (StateHeld, ClientAway):
                continue
            except (StateError, DirectoryError) as error:
                self._shun(client, str(error), now)
                continue
            self._shunned.pop(client, None)
            self._telemetry.note(note("client_taken", client=client, unspent=state.unspent() is not None))
            self._service.take(client, state, key, now)
            taken += 1
        return taken

    def _shun(self, client: str, reason: str, now: float) -> None:
        """Leave a client alone for a while that doubles."""
        before = self._shunned.get(client)
        pause_s = SHUN_S if before is None else min(SHUN_S_MAX, 2 * before.pause_s)
        if before is None or before.reason != reason:
            self._telemetry.note(note("client_unusable", "error", client=client, reason=reason))
        self._shunned[client] = _Shunned(now + pause_s, pause_s, reason)


def candidates_of(settings: WorkerSettings, directory: Directory) -> list[str]:
    """The clients to share out, in good standing.

    Raises:
        SettingsError: `client_ids` names nobody, or a client of another site.
        DirectoryError: the keys cannot be read.
    """
    active = set(directory.active_clients())
    if settings.client_ids:
        return [client for client in named_clients(settings, directory) if client in active]
    here = clients_with_keys(settings.federation_dir / CLIENT_KEYS_DIRECTORY, directory)
    return [client for client in here if directory.clients[client].site == settings.site]


def named_clients(settings: WorkerSettings, directory: Directory) -> list[str]:
    """The clients that `client_ids` names, revoked ones too.

    Raises:
        SettingsError: as `candidates_of`.
    """
    named = parse_client_ids(settings.client_ids, directory.clients)
    for client in named:
        if directory.clients[client].site != settings.site:
            raise SettingsError(f"client_ids: {client} is not a client of site {settings.site!r} (COMITIA_SITE)")
    return named


def check_candidates(settings: WorkerSettings, directory: Directory) -> None:
    """See at the start that there is somebody to share out.

    Raises:
        SettingsError, DirectoryError: as `candidates_of`; or there is nobody, or nobody's key.
    """
    if settings.clients:
        return
    candidates, folder = candidates_of(settings, directory), settings.federation_dir / CLIENT_KEYS_DIRECTORY
    if not candidates:
        raise DirectoryError(f"{folder}: holds no key of a client of site {settings.site!r}; enroll or copy some")
    missing = sorted(set(candidates) - set(clients_with_keys(folder, directory)))
    if missing:
        raise DirectoryError(f"{folder}: client_ids names {missing[0]}, whose key is not here")


def open_fixed(settings: WorkerSettings, directory: Directory) -> dict[str, tuple[ClientState, SigningKey]]:
    """Open those whom the settings fix, but for who is away.

    Raises:
        DirectoryError, StateHeld, StateError: as `open_client`.
    """
    opened = {}
    for client in settings.clients:
        with suppress(ClientAway):
            opened[client] = open_client(settings, directory, client)
    return opened


def open_client(settings: WorkerSettings, directory: Directory, client: str) -> tuple[ClientState, SigningKey]:
    """Load a client's key, lock and open its state directory.

    Raises:
        DirectoryError: no key, or not the right one.
        StateHeld: another process serves it.
        ClientAway: the operator has taken it out.
        StateError: the directory is damaged, or another's.
    """
    key = identity_key(settings.federation_dir / CLIENT_KEYS_DIRECTORY, client, directory)
    storage = DirectoryStorage(settings.state_dir / client)
    try:
        # After the lock: whoever takes it out waits for the lock after the mark.
        if client in clients_away(settings.state_dir):
            raise ClientAway(f"{client}: was taken out; `comitia worker rejoin` brings it back")
        return ClientState(storage, client=client, federation=directory.federation_id), key
    except BaseException:
        storage.close()
        raise
