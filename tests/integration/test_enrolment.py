"""Enrolling and revoking with `comitia keys` while a federation of real processes is at work."""

from __future__ import annotations

import subprocess

from shared.crypto.signing import load_signing_key, load_verifying_key
from shared.directory import load_directory, sign_directory
from tests.integration.conftest import MakeFederation
from tests.integration.federation import COMMAND, LiveFederation, environment

ROUNDS = 20_000


def keys(federation: LiveFederation, *arguments: str) -> None:
    command = [*COMMAND, "keys", arguments[0], "--dir", str(federation.keys.root), *arguments[1:]]
    subprocess.run(command, env=environment(), cwd=federation.root, check=True, capture_output=True)


def test_clients_come_and_go_while_the_federation_runs(make_federation: MakeFederation) -> None:
    federation = make_federation(
        "Small",
        3,
        aggregation={"rule": "mean", "trim": 0},
        round={"rounds": ROUNDS, "min_clients": 2, "straggler_grace_s": 1.0, "offer_quorum": 1.0},
    )
    coordinator = federation.start_coordinator()
    federation.start_workers(1)
    coordinator.wait_for("round_finished", clients_counted=3)

    # The coordinator finds the new directory where the old one was; its running worker reads it in the log.
    keys(federation, "enroll", "--site", "site-1", "--client", "newcomer-9")
    coordinator.wait_for("directory_adopted", number=3)
    newcomer = federation.start_worker("newcomer-9")
    coordinator.wait_for("round_finished", clients_counted=4)
    state = federation.root / "state" / "directory.signed"
    enrolment = load_verifying_key(federation.keys.enrolment_public_file)
    assert load_directory(state, enrolment).number == 3

    keys(federation, "revoke", "--client", "client-002")
    (adopted,) = coordinator.wait_for("directory_adopted", number=4)
    (revoked,) = coordinator.wait_for("client_revoked")
    assert revoked["client"] == "client-002"
    coordinator.wait_for("round_finished", version=adopted["version"] + 3)
    since = [note for note in coordinator.notes("round_finished") if note["version"] > adopted["version"]]
    assert {note["clients_counted"] for note in since} == {3}
    assert load_directory(state, enrolment).number == 4
    assert newcomer.process.poll() is None

    # An older directory in its place changes nothing.
    file = federation.keys.directory_file
    aside = file.with_name("old")
    aside.write_bytes(sign_directory(federation.keys.directory, load_signing_key(federation.keys.enrolment_key_file)))
    aside.replace(file)
    (refused,) = coordinator.wait_for("directory_refused")
    assert "number 4 is in force" in refused["reason"]
