"""Two federations at the same time on one broker, with clients of the same names: nothing crosses."""

from __future__ import annotations

from tests.integration.conftest import MakeFederation
from tests.integration.federation import LiveFederation
from tests.integration.test_continuing import export

ROUNDS = 6
AGGREGATION = {"rule": "mean", "trim": 0}
CODEC = {"selection": "dense", "density": 1}


def test_two_federations_on_one_broker_end_with_their_own_models(make_federation: MakeFederation) -> None:
    counts = (3, 5)
    federations: list[LiveFederation] = [
        make_federation(
            "Small",
            clients,
            aggregation=AGGREGATION,
            codec=CODEC,
            round={"rounds": ROUNDS, "min_clients": clients},
        )
        for clients in counts
    ]
    first, second = federations
    assert set(first.clients) < set(second.clients)

    # All coordinators before any worker: whoever took another's message would have every chance to.
    coordinators = [federation.start_coordinator() for federation in federations]
    workers = [federation.start_workers(1) for federation in federations]
    for coordinator in coordinators:
        assert coordinator.wait() == 0, coordinator.tail()

    ends = []
    for federation, coordinator, clients in zip(federations, coordinators, counts, strict=True):
        rounds = coordinator.notes("round_finished")
        assert [note["version"] for note in rounds] == list(range(1, ROUNDS + 1))
        assert {note["clients_counted"] for note in rounds} == {clients}
        (ended,) = coordinator.notes("coordinator_stopped")
        exported = export(federation)
        assert exported["federation"] == federation.name
        assert exported["weights_sha256"] == ended["weights_sha256"]
        ends.append(ended["weights_sha256"])
        with federation.channel() as channel:
            assert channel.queue_declare(federation.names.dead, passive=True).method.message_count == 0
    assert ends[0] != ends[1]
    for process in (*coordinators, *workers[0], *workers[1]):
        assert process.notes("refused") == []
