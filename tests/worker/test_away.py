"""`comitia worker leave` and `rejoin`: what the operator is told, and that a worker at work obeys."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.federation_keys import FederationKeys, enroll_clients, make_federation_keys, revoke_clients
from shared.errors import ComitiaError, SettingsError, StateError
from worker.away import Departure, clients_away, take_out
from worker.cli import app
from worker.storage import DirectoryStorage, is_held


@pytest.fixture
def keys(tmp_path: Path) -> FederationKeys:
    """Of clients 1 to 4, beside which there is a state directory for workers."""
    (tmp_path / "state").mkdir()
    return make_federation_keys(tmp_path / "federation", "ward", 4)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[DirectoryStorage]:
    """Client 1, served by a worker that does not react."""
    storage = DirectoryStorage(tmp_path / "state" / "client-001")
    yield storage
    storage.close()


def run(command: str, tmp_path: Path, client_ids: str, *arguments: str) -> Result:
    folders = ["--federation-dir", str(tmp_path / "federation"), "--state-dir", str(tmp_path / "state")]
    return CliRunner().invoke(app, [command, "--client-ids", client_ids, *folders, *arguments])


def refusal(result: Result) -> ComitiaError:
    assert isinstance(result.exception, ComitiaError)
    return result.exception


@pytest.mark.usefixtures("keys")
def test_clients_that_nobody_serves_are_away_until_they_rejoin(tmp_path: Path) -> None:
    left = run("leave", tmp_path, "1,3-4")
    assert (left.exit_code, left.output) == (
        0,
        "client-001 was not served\nclient-003 was not served\nclient-004 was not served\n",
    )
    assert clients_away(tmp_path / "state") == {"client-001", "client-003", "client-004"}

    back = run("rejoin", tmp_path, "2-3")
    assert (back.exit_code, back.output) == (0, "client-002 was not away\nclient-003 may be served again\n")
    assert clients_away(tmp_path / "state") == {"client-001", "client-004"}


@pytest.mark.usefixtures("keys", "held")
def test_who_is_still_served_when_time_is_up_is_named_with_the_remedy(tmp_path: Path) -> None:
    result = run("leave", tmp_path, "1-2", "--timeout", "0")

    assert result.exit_code == 1
    assert result.stdout == "client-002 was not served\nclient-001 is still served\n"
    assert "--timeout" in result.stderr
    assert "SIGTERM" in result.stderr
    assert clients_away(tmp_path / "state") == {"client-001", "client-002"}


def test_leave_waits_for_the_lock(tmp_path: Path, held: DirectoryStorage) -> None:
    # Given a worker that lets go once it has seen the mark, and who asks it to
    def work() -> None:
        while "client-001" not in clients_away(tmp_path / "state"):
            time.sleep(0.01)
        held.close()

    worker = threading.Thread(target=work)
    worker.start()

    assert list(take_out(tmp_path / "state", ["client-001"], 30.0)) == [("client-001", Departure.LEFT)]
    worker.join()


def test_whether_a_directory_is_held_can_be_asked_without_holding_it(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "client-001")
    storage = DirectoryStorage(tmp_path / "client-001")
    assert is_held(tmp_path / "client-001")
    storage.close()

    assert not is_held(tmp_path / "client-001")
    DirectoryStorage(tmp_path / "client-001").close()


@pytest.mark.parametrize("command", ["leave", "rejoin"])
def test_names_that_are_none_of_ours_change_nothing(command: str, tmp_path: Path, keys: FederationKeys) -> None:
    enroll_clients(keys, "elsewhere", ["stranger"])
    for client_ids, said in (("1,9", "'9' names client-009"), ("1,stranger", "stranger is not a client of site")):
        error = refusal(run(command, tmp_path, client_ids))
        assert isinstance(error, SettingsError)
        assert said in str(error)
    assert clients_away(tmp_path / "state") == frozenset()


def test_one_that_is_revoked_may_be_named(tmp_path: Path, keys: FederationKeys) -> None:
    run("leave", tmp_path, "2")
    revoke_clients(keys, ["client-002"])
    assert run("rejoin", tmp_path, "2").output == "client-002 may be served again\n"


@pytest.mark.usefixtures("keys")
def test_a_state_directory_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "state").rmdir()
    error = refusal(run("leave", tmp_path, "1"))
    assert isinstance(error, StateError)
    assert "state_dir must be that of the workers" in str(error)
