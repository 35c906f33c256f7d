"""Does a worker leave in order when it is told to, and come back to where it was?"""

from __future__ import annotations

from tests.integration.conftest import MakeFederation


def test_a_worker_that_is_told_to_stop_ends_well_and_goes_on_when_it_is_started_again(
    make_federation: MakeFederation,
) -> None:
    # Given two workers, the first of which holds the third round up
    rounds, held = 5, 2
    federation = make_federation(
        "Gated",
        4,
        workload_options={"free": 2 * held},
        aggregation={"rule": "mean", "trim": 0},
        round={"rounds": rounds, "min_clients": 4, "round_deadline_s": 120, "status_interval_s": 1},
    )
    coordinator = federation.start_coordinator()
    first, second = federation.clients[:2], federation.clients[2:]
    federation.start_worker(*first)
    leaving = federation.start_worker(*second, gated=False, drain_s=0.5)
    coordinator.wait_for("round_finished", version=held)

    # When the other one is told to stop, and started again on the same state directory
    leaving.process.terminate()
    code = leaving.wait()
    for client in second:
        coordinator.wait_for("client_left", client=client)
    federation.start_worker(*second, gated=False)
    for client in second:
        coordinator.wait_for("client_joined", count=2, client=client)
    federation.open_gate()

    # Then nothing was lost by it: every round counts all clients
    assert code == 0, leaving.tail()
    assert leaving.notes("worker_stopped")
    assert coordinator.wait() == 0, coordinator.tail()
    counted = [(note["version"], note["clients_counted"]) for note in coordinator.notes("round_finished")]
    assert counted == [(version, 4) for version in range(1, rounds + 1)]
    assert not coordinator.notes("group_given_up")


def test_a_worker_that_is_killed_goes_on_from_its_state_directory(make_federation: MakeFederation) -> None:
    rounds, held = 4, 1
    federation = make_federation(
        "Gated",
        2,
        workload_options={"free": held},
        aggregation={"rule": "mean", "trim": 0},
        round={"rounds": rounds, "min_clients": 2, "round_deadline_s": 120, "status_interval_s": 8},
    )
    coordinator = federation.start_coordinator()
    first, second = federation.clients
    federation.start_worker(first)
    killed = federation.start_worker(second, gated=False)
    coordinator.wait_for("round_finished", version=held)

    killed.kill()
    again = federation.start_worker(second, gated=False)
    again.wait_for("worker_started")
    federation.open_gate()

    assert coordinator.wait() == 0, coordinator.tail()
    counted = [note["clients_counted"] for note in coordinator.notes("round_finished")]
    assert len(counted) == rounds
    assert counted[-1] == 2
