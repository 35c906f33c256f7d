"""Replicas on one state root take and give back real directories; a bad one stops nobody."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from deploy.federation_keys import FederationKeys, enroll_clients, make_federation_keys, revoke_clients
from shared.crypto.signing import SigningKey
from shared.effects import Note
from shared.errors import ClientAway, ComitiaError, DirectoryError, SettingsError, StateError
from shared.telemetry import Telemetry
from worker.app import run_worker
from worker.away import Departure, bring_back, clients_away, take_out
from worker.events import HandOver, Leave
from worker.replicas import live_replicas
from worker.seating import (
    LOOK_S,
    SHUN_S,
    TAKEN_AT_ONCE,
    FixedSeats,
    Seating,
    candidates_of,
    check_candidates,
    open_client,
    open_fixed,
)
from worker.settings import WorkerSettings
from worker.sharing_out import Replica
from worker.signs_of_life import Phase
from worker.state import ClientState
from worker.storage import DirectoryStorage


@dataclass
class Service:
    """Serves clients in name only; who is in a group stays until it is over."""

    states: dict[str, ClientState] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    said: dict[str, HandOver | Leave] = field(default_factory=dict)

    @property
    def clients(self) -> dict[str, Phase]:
        return {client: Phase.IN_GROUP if client in self.grouped else Phase.IDLE for client in self.states}

    def take(self, client: str, state: ClientState, key: SigningKey, now: float) -> None:
        assert client not in self.states
        self.states[client] = state

    def release(self, clients: Iterable[str], now: float, event: HandOver | Leave) -> None:
        clients = self.states.keys() & set(clients)
        self.said |= dict.fromkeys(clients, event)
        self.leaving |= clients
        self.grouped -= clients if event.at_once else set()
        for client in self.leaving - self.grouped:
            self.states.pop(client).close()
        self.leaving &= self.grouped


class Hall:
    """Replicas of one federation, and its time."""

    def __init__(self, root: Path, clients: int) -> None:
        self.root = root
        self.keys: FederationKeys = make_federation_keys(root / "federation", "hall", clients)
        self.now = 0.0
        self.notes: list[Note] = []
        self.replicas: dict[str, tuple[Seating, Service]] = {}

    def settings(self, **fields: Any) -> WorkerSettings:
        return WorkerSettings(federation_dir=self.root / "federation", state_dir=self.root / "state", **fields)

    def come(self, worker: str, **fields: Any) -> tuple[Seating, Service]:
        settings, service = self.settings(**fields), Service()
        replica = Replica(
            pool=settings.client_ids,
            worker=worker,
            pid=1,
            since_us=len(self.replicas),
            seats=settings.seats,
            clients=frozenset(),
        )
        telemetry = Telemetry(self.notes.append)
        seating = Seating(settings, lambda: self.keys.directory, cast(Any, service), replica, telemetry)
        self.replicas[worker] = (seating, service)
        return self.replicas[worker]

    def fix(self, *clients: str) -> tuple[FixedSeats, Service]:
        """A worker that was told whom to serve."""
        settings = self.settings(clients=list(clients))
        opened = open_fixed(settings, self.keys.directory)
        service = Service({client: state for client, (state, _) in opened.items()})
        telemetry = Telemetry(self.notes.append)
        return FixedSeats(settings, lambda: self.keys.directory, cast(Any, service), telemetry), service

    def take_out(self, *clients: str) -> list[Departure]:
        """What is known at once of those whom the operator takes out."""
        (self.root / "state").mkdir(exist_ok=True)
        return [departure for _, departure in take_out(self.root / "state", clients, 0.0)]

    def die(self, worker: str) -> None:
        """All that the operating system lets go of when a process is killed."""
        seating, service = self.replicas.pop(worker)
        assert seating._sign._lock is not None
        os.close(seating._sign._lock)
        for state in service.states.values():
            state.close()

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            for seating, _ in self.replicas.values():
                seating.look(self.now)
            self.now += LOOK_S

    @property
    def served(self) -> dict[str, int]:
        return {worker: len(service.states) for worker, (_, service) in self.replicas.items()}

    def events(self, event: str) -> list[Note]:
        return [note for note in self.notes if note.event == event]


@pytest.fixture
def hall(tmp_path: Path) -> Hall:
    """Six clients and no replica."""
    return Hall(tmp_path, 6)


def test_who_comes_is_given_a_share_and_the_clients_of_who_dies_are_taken_over(hall: Hall) -> None:
    hall.come("one")
    hall.look()
    assert hall.served == {"one": 6}

    hall.come("two")
    hall.come("three")
    hall.look(2)
    assert hall.served == {"one": 2, "two": 2, "three": 2}
    shown = {one.worker: one.clients for one in live_replicas(hall.root / "state")}
    assert shown == {worker: frozenset(service.states) for worker, (_, service) in hall.replicas.items()}

    hall.die("one")
    hall.look()
    assert hall.served == {"two": 3, "three": 3}


def test_who_is_in_a_group_moves_when_it_is_over(hall: Hall) -> None:
    _, one = hall.come("one")
    hall.look()
    one.grouped = set(one.states)
    hall.come("two")
    hall.look(3)
    assert hall.served == {"one": 6, "two": 0}
    assert len(one.leaving) == 3  # and nobody else is asked meanwhile

    one.grouped.clear()
    one.release((), hall.now, HandOver())
    hall.look()
    assert hall.served == {"one": 3, "two": 3}


def test_a_damaged_directory_is_said_and_left_alone_and_the_others_are_served(hall: Hall) -> None:
    # Given a client whose ledger is gone
    hall.come("one")
    hall.look()
    hall.die("one")
    ledger = hall.root / "state" / "client-003" / "ledger.log"
    kept = ledger.read_bytes()
    ledger.unlink()

    # When others take over
    _, two = hall.come("two")
    hall.look(2)

    # Then all but that one are served, it is said once, and its lock is nobody's
    assert hall.served == {"two": 5}
    (note,) = hall.events("client_unusable")
    assert note.level == "error"
    assert note.fields["client"] == "client-003"
    assert "ledger.log is missing" in str(note.fields["reason"])
    DirectoryStorage(ledger.parent).close()

    # And it is tried again after a pause that doubles
    tries = []
    for _ in range(int(4 * SHUN_S / LOOK_S)):
        before = two.states.keys() | set()
        pause = hall.replicas["two"][0]._door._shunned["client-003"].pause_s
        hall.look()
        if hall.replicas["two"][0]._door._shunned["client-003"].pause_s != pause:
            tries.append(pause)
        assert before == two.states.keys()
    assert tries == [SHUN_S, 2 * SHUN_S]
    assert len(hall.events("client_unusable")) == 1

    ledger.write_bytes(kept)
    hall.now += 10 * SHUN_S
    hall.look()
    assert hall.served == {"two": 6}


def test_a_client_without_its_key_is_left_alone_too(hall: Hall) -> None:
    (hall.root / "federation" / "clients" / "client-002.key").write_text("no key")
    hall.come("one")
    hall.look()

    assert hall.served == {"one": 5}
    assert hall.events("client_unusable")[0].fields["client"] == "client-002"


def test_whoever_else_holds_a_client_keeps_it(hall: Hall) -> None:
    other = DirectoryStorage(hall.root / "state" / "client-001")
    hall.come("one")
    hall.look()
    assert hall.served == {"one": 5}
    assert hall.events("client_unusable") == []

    other.close()
    hall.look()
    assert hall.served == {"one": 6}


def test_many_are_taken_in_parts_but_without_a_pause(tmp_path: Path) -> None:
    hall = Hall(tmp_path, 2 * TAKEN_AT_ONCE + 1)
    seating, service = hall.come("one")
    for expected in (TAKEN_AT_ONCE, 2 * TAKEN_AT_ONCE, 2 * TAKEN_AT_ONCE + 1):
        seating.look(0.0)
        assert len(service.states) == expected


def test_seats_bound_and_client_ids_choose(hall: Hall) -> None:
    hall.come("one", seats=2)
    hall.come("two")
    hall.come("other", client_ids="1-2")
    hall.look(2)

    assert hall.served["one"] == 2
    assert sum(hall.served.values()) == 6
    assert set(hall.replicas["other"][1].states) <= {"client-001", "client-002"}


def test_who_is_enrolled_is_taken_and_who_is_revoked_given_back(hall: Hall) -> None:
    _, service = hall.come("one")
    hall.look()

    hall.keys = enroll_clients(hall.keys, "site-1", ["newcomer"])
    hall.keys = revoke_clients(hall.keys, ["client-004"])
    hall.look()

    assert "newcomer" in service.states
    assert "client-004" not in service.states


def test_keys_that_cannot_be_read_for_a_moment_cost_nobody_their_seat(hall: Hall) -> None:
    hall.come("one")
    hall.look()
    folder = hall.root / "federation" / "clients"
    folder.rename(folder.with_name("elsewhere"))
    hall.look()

    assert hall.served == {"one": 6}


@pytest.mark.parametrize(("seats", "kept"), [(None, 0), (4, 2)])
def test_who_ends_leaves_as_many_as_the_others_have_seats_for(hall: Hall, seats: int | None, kept: int) -> None:
    seating, one = hall.come("one")
    hall.look()
    hall.come("two", seats=seats)
    hall.look(2)

    seating.leave(hall.now)
    del hall.replicas["one"]
    hall.look()

    assert len(one.states) == kept
    assert hall.served == {"two": 6 - kept}


def test_who_ends_alone_keeps_its_clients_to_say_goodbye(hall: Hall) -> None:
    seating, one = hall.come("one")
    hall.look()

    seating.leave(hall.now)
    seating.close()

    assert len(one.states) == 6
    assert live_replicas(hall.root / "state") == []


# ── who is away ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_is_taken_out_is_let_go_of_and_taken_by_nobody_until_it_is_back(hall: Hall) -> None:
    _, one = hall.come("one")
    _, two = hall.come("two")
    hall.look(3)
    out = [next(iter(service.states)) for service in (one, two)]

    assert hall.take_out(*out) == [Departure.STILL_SERVED] * 2
    hall.look(3)

    assert hall.served == {"one": 2, "two": 2}
    assert [one.said[out[0]], two.said[out[1]]] == [Leave(), Leave()]
    assert hall.take_out(*out) == [Departure.NOT_SERVED] * 2
    # Nor by one that begins anew.
    hall.die("one")
    hall.come("three")
    hall.look(3)
    assert hall.served == {"two": 2, "three": 2}

    assert bring_back(hall.root / "state", out) == out
    assert bring_back(hall.root / "state", out) == []
    hall.look(3)
    assert hall.served == {"two": 3, "three": 3}


def test_who_is_taken_out_finishes_its_group_but_within_the_time_of_a_drain(hall: Hall) -> None:
    _, one = hall.come("one", drain_s=5.0)
    hall.look()
    one.grouped = {"client-001", "client-002"}
    hall.take_out("client-001", "client-002")

    hall.look(3)
    assert one.leaving == {"client-001", "client-002"}
    one.grouped.remove("client-002")
    one.release((), hall.now, HandOver())
    hall.look(2)
    assert one.leaving == {"client-001"}
    assert hall.served == {"one": 5}

    hall.look()
    assert one.said["client-001"] == Leave(at_once=True)
    assert hall.served == {"one": 4}


def test_who_comes_back_while_it_leaves_is_taken_again(hall: Hall) -> None:
    _, one = hall.come("one")
    hall.look()
    one.grouped = {"client-001"}
    hall.take_out("client-001")
    hall.look()
    bring_back(hall.root / "state", ["client-001"])
    hall.look()
    one.grouped.clear()
    one.release((), hall.now, HandOver())
    assert hall.served == {"one": 5}

    hall.look()
    assert hall.served == {"one": 6}


def test_a_worker_whose_clients_are_fixed_lets_go_of_them_too_and_waits_for_them(hall: Hall) -> None:
    # Given one of two that is away at the start already
    hall.take_out("client-001")
    seats, service = hall.fix("client-001", "client-002")
    assert list(service.states) == ["client-002"]

    hall.take_out("client-002")
    seats.look(1.0)
    assert service.said == {"client-002": Leave()}
    bring_back(hall.root / "state", ["client-001", "client-002"])
    seats.look(1.5)
    assert service.states == {}

    seats.look(2.0)
    assert list(service.states) == ["client-001", "client-002"]
    seats.look(3.0)
    assert hall.events("client_unusable") == []


def test_a_fixed_client_whose_directory_is_damaged_meanwhile_is_said_and_tried_again(hall: Hall) -> None:
    seats, service = hall.fix("client-001")
    hall.take_out("client-001")
    seats.look(0.0)
    ledger = hall.root / "state" / "client-001" / "ledger.log"
    ledger.rename(ledger.with_name("kept"))
    bring_back(hall.root / "state", ["client-001"])
    seats.look(1.0)
    seats.look(2.0)
    assert [note.fields["client"] for note in hall.events("client_unusable")] == ["client-001"]

    ledger.with_name("kept").rename(ledger)
    seats.look(1.0 + SHUN_S)
    assert list(service.states) == ["client-001"]


def test_a_mark_that_is_made_before_the_lock_is_seen_after_it(hall: Hall) -> None:
    # Whoever takes a client looks for the mark last: who was found unserved after the mark is served by nobody.
    assert hall.take_out("client-001") == [Departure.NOT_SERVED]

    with pytest.raises(ClientAway, match="rejoin"):
        open_client(hall.settings(), hall.keys.directory, "client-001")
    DirectoryStorage(hall.root / "state" / "client-001").close()


def test_marks_are_put_nowhere_else_than_beside_the_clients(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no such directory"):
        list(take_out(tmp_path / "elsewhere", ["client-001"], 0.0))
    assert clients_away(tmp_path / "elsewhere") == frozenset()
    (tmp_path / ".away").write_text("")
    with pytest.raises(StateError, match="cannot be read"):
        clients_away(tmp_path)
    with pytest.raises(StateError, match="cannot be written to"):
        list(take_out(tmp_path, ["client-001"], 0.0))


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_candidates_are_those_of_the_site_whose_keys_are_here(hall: Hall) -> None:
    hall.keys = enroll_clients(hall.keys, "elsewhere", ["stranger"])
    (hall.root / "federation" / "clients" / "client-005.key").unlink()

    found = candidates_of(hall.settings(), hall.keys.directory)

    assert found == [f"client-00{number}" for number in (1, 2, 3, 4, 6)]
    assert candidates_of(hall.settings(client_ids="5,1-2"), hall.keys.directory) == [
        "client-005",
        "client-001",
        "client-002",
    ]


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"client_ids": "1-7"}, SettingsError, r"client_ids: '1-7' names client-007, which is not enrolled"),
        (
            {"client_ids": "stranger"},
            SettingsError,
            r"client_ids: stranger is not a client of site 'site-1' \(COMITIA",
        ),
        ({"client_ids": "1-6"}, DirectoryError, r"clients: client_ids names client-005, whose key is not here"),
        ({"site": "empty"}, DirectoryError, r"clients: holds no key of a client of site 'empty'"),
    ],
)
def test_nobody_to_share_out_is_a_mistake(
    hall: Hall, fields: dict[str, str], error: type[ComitiaError], said: str
) -> None:
    hall.keys = enroll_clients(hall.keys, "elsewhere", ["stranger"])
    (hall.root / "federation" / "clients" / "client-005.key").unlink()

    with pytest.raises(error, match=said):
        check_candidates(hall.settings(**fields), hall.keys.directory)


def test_a_site_that_is_not_enrolled_is_told_with_those_that_are(hall: Hall) -> None:
    with pytest.raises(SettingsError, match=r"'site-9' is not in .*directory\.signed \(site-1\); set COMITIA_SITE"):
        run_worker(hall.settings(site="site-9"))


def test_a_fixed_list_asks_for_no_candidates(hall: Hall) -> None:
    check_candidates(hall.settings(clients=["client-001"], client_ids="1-7"), hall.keys.directory)
