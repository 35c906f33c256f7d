"""Takes and gives back clients while a worker runs: the shell around `worker.sharing_out`.

Every `LOOK_S` it looks who else is there (`worker.replicas`) and how many clients that makes for each. A client is
taken by locking its state directory, and goes on from what stands there. One whose directory or key cannot be used is
left alone for a while, and said; the others are served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shared.crypto.signing import SigningKey
from shared.directory import Directory
from shared.effects import note
from shared.errors import DirectoryError, SettingsError, StateError, StateHeld
from shared.telemetry import Telemetry
from worker.client_ids import parse_client_ids
from worker.keystore import CLIENT_KEYS_DIRECTORY, clients_with_keys, identity_key
from worker.replicas import Sign, live_replicas
from worker.service import WorkerService
from worker.settings import WorkerSettings
from worker.sharing_out import Decision, Replica, View, decide, room_elsewhere
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
    """Those whom the settings name, from start to end."""

    def look(self, now: float) -> None:
        """Nobody comes or goes."""

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
        self._shunned: dict[str, _Shunned] = {}
        self._next_look = 0.0
        self._me = replica.worker
        self._sign = Sign(settings.state_dir, replica)

    def look(self, now: float) -> None:
        """Take and give back, if it is time to.

        Raises:
            StateError: the place for the replicas' signs cannot be used.
        """
        self._sign.show(frozenset(self._service.clients))
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        self._candidates = self._present_candidates()
        decision = decide(self._view(now))
        self._give_back(decision.give_back, now)
        taken = self._take(decision, now)
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

    def _view(self, now: float) -> View:
        served = self._service.clients
        self._leaving &= served.keys()
        found = live_replicas(self._settings.state_dir)
        others = [one for one in found if one.pool == self._sign.replica.pool and one.worker != self._me]
        return View(
            me=self._me,
            replicas=[*others, self._sign.replica],
            candidates=self._candidates,
            served={client: phase for client, phase in served.items() if client not in self._leaving},
            leaving=self._leaving,
            shunned={client for client, one in self._shunned.items() if now < one.until},
        )

    def _give_back(self, clients: tuple[str, ...], now: float) -> None:
        self._leaving |= set(clients)
        self._service.release(clients, now)

    def _take(self, decision: Decision, now: float) -> int:
        taken = 0
        for client in decision.take:
            if taken == min(decision.wanted, TAKEN_AT_ONCE):
                break
            try:
                state, key = open_client(self._settings, self._directory(), client)
            except StateHeld:
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
        named = parse_client_ids(settings.client_ids, directory.clients)
        for client in named:
            if directory.clients[client].site != settings.site:
                raise SettingsError(f"client_ids: {client} is not a client of site {settings.site!r}")
        return [client for client in named if client in active]
    here = clients_with_keys(settings.federation_dir / CLIENT_KEYS_DIRECTORY, directory)
    return [client for client in here if directory.clients[client].site == settings.site]


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


def open_client(settings: WorkerSettings, directory: Directory, client: str) -> tuple[ClientState, SigningKey]:
    """Load a client's key, lock and open its state directory.

    Raises:
        DirectoryError: no key, or not the right one.
        StateHeld: another process serves it.
        StateError: the directory is damaged, or another's.
    """
    key = identity_key(settings.federation_dir / CLIENT_KEYS_DIRECTORY, client, directory)
    storage = DirectoryStorage(settings.state_dir / client)
    try:
        return ClientState(storage, client=client, federation=directory.federation_id), key
    except BaseException:
        storage.close()
        raise
