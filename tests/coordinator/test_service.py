"""The coordinator's shell: order of office, dead letters, acknowledgements, and time while the broker is away."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from coordinator.outage_clock import OutageClock
from shared.errors import BrokerUnavailable, PlanError, RefusalReason
from shared.garbage import spare_collections
from shared.modellog.chain import GENESIS
from shared.transport.port import Confirmed, Connected, Delivered, Delivery, Disconnected, Outcome, Refused
from shared.wire.framing import pack_batches, split_batch
from shared.wire.journal_messages import Record
from shared.wire.log_messages import ChangeEntry, DrawEntry, TermEntry, VoidEntry
from shared.wire.messages import Kind, Status
from tests.builders import make_offer, make_status
from tests.simulation.federation import FederationRun


def settled(run: FederationRun, queue: str) -> list[Outcome]:
    return [entry[2] for entry in run.coordinator_history if entry[:2] == ("settle", queue)]


def turns(run: FederationRun, count: int) -> None:
    for _ in range(count):
        run.turn()


def send_up(run: FederationRun, *frames: bytes, key: str = "offer.site-0") -> None:
    transport = run.processes[0].transport  # type: ignore[union-attr]
    for body in pack_batches(frames):
        transport.publish(run.keys.names.up, key, body)


def refusals(run: FederationRun) -> list[str]:
    return [str(note.fields["reason"]) for note in run.notes if note.event == "refused"]


def test_only_the_log_and_the_lease_are_consumed_before_office() -> None:
    run = FederationRun()
    names = run.keys.names

    def consumed() -> list[Any]:
        return [entry[1] for entry in run.coordinator_history if entry[0] == "consume"]

    assert consumed() == [names.log]
    run.run(until=lambda: run.version == 0)
    assert consumed()[1:] == [names.offers, names.stage(f"stage-{1:032x}"[:18]), names.groups, names.sums]


def test_a_successor_reads_the_log_waits_for_its_turn_reads_the_journal_and_only_then_takes_over_the_rest() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 2)
    run.crash_coordinator()
    run.run(until=lambda: run.count("in_office") == 2)
    names = run.keys.names

    consumed = [entry[1] for entry in run.coordinator_history if entry[0] == "consume"]
    assert consumed[:3] == [names.log, names.offers, names.journal]
    assert consumed[3:] == [names.stage(f"stage-{4:032x}"[:18]), names.groups, names.sums]
    assert names.journal not in run.coordinator_transport.seat.subscriptions
    assert run.count("journal_is_behind") == 0


def test_every_draw_and_change_stands_behind_its_record() -> None:
    run = FederationRun()
    run.run()

    names, opener = run.keys.names, run.keys.opener()
    recorded: set[bytes] = set()
    entries = 0
    for kind, key, *body in run.coordinator_history:
        if kind != "publish" or key not in (names.log, names.journal):
            continue
        for opened in map(opener.open, split_batch(body[0])):
            if isinstance(opened.message, Record):
                recorded.add(opened.message.entry)
            elif isinstance(opened.message, DrawEntry | ChangeEntry | VoidEntry):
                assert opened.digest in recorded
                entries += 1
    assert entries == len(recorded) == 10


def test_everything_is_settled_when_a_run_is_over() -> None:
    run = FederationRun()
    run.run()
    for _ in range(10):
        run.turn()

    names = run.keys.names
    assert run.broker.depth(names.offers) == run.broker.depth(names.groups) == run.broker.depth(names.dead) == 0
    assert set(settled(run, names.offers)) == {Outcome.ACK}


def test_an_offer_stays_at_the_broker_until_its_draw_is_read_back() -> None:
    run = FederationRun(clients=4, processes=4)
    run.duration_s = lambda: 1.0 + len(run.updates)
    run.run(until=lambda: run.count("client_joined") == 4 and run.now > 3.0)
    offers = run.keys.names.offers

    waiting = run.broker.depth(offers)
    assert waiting > 0
    run.crash_coordinator()
    assert run.broker.depth(offers) == waiting
    run.run()
    assert run.figures()[0]["clients_counted"] == 4


class Withheld:
    """Keeps the log and confirms from a coordinator, until the test hands them over."""

    def __init__(self, run: FederationRun) -> None:
        self.run = run
        self.log: list[Delivery] = []
        self.confirms: list[Confirmed] = []
        self.open: set[type] = set()
        run._step_coordinator = self._step  # type: ignore[method-assign]

    def _step(self) -> bool:
        items = self.run.coordinator_inbox.take(0)
        shown = [item for item in items if not self._keeps(item)]
        self.run.coordinator.step(shown, self.run.now)
        return bool(items)

    def _keeps(self, item: object) -> bool:
        if type(item) in self.open:
            return False
        if isinstance(item, Confirmed):
            self.confirms.append(item)
        elif isinstance(item, Delivered) and item.queue == self.run.keys.names.log:
            self.log.extend(item.deliveries)
        else:
            return False
        return True

    def hand_over_confirms(self) -> None:
        self.open.add(Confirmed)
        self.run.coordinator.step(self.confirms, self.run.now)

    def hand_over_log(self) -> None:
        """All that has come as one delivery, as after a connection that was away."""
        self.open.add(Delivered)
        self.run.coordinator.step([Delivered(self.run.keys.names.log, tuple(self.log))], self.run.now)


def test_what_is_handed_over_behind_a_mark_does_not_see_entries_that_stand_behind_it() -> None:
    # Given a change that waits for the confirm of its record when the connection is lost: the mark comes before it
    run = FederationRun()
    run.run(until=lambda: run.count("draw_made") == 1)
    withheld = Withheld(run)
    turns(run, 6)
    assert withheld.confirms
    run.coordinator.step([Disconnected("cut"), Connected("broker", 1)], run.now)
    turns(run, 3)
    withheld.hand_over_confirms()
    # and clients that read the change, and offer for the next version, before the coordinator has read either
    turns(run, 12)
    assert (run.version, len(withheld.log)) == (0, 2)

    withheld.hand_over_log()
    assert run.version == 1
    run.run()
    turns(run, 10)
    assert [figures["clients_counted"] for figures in run.figures()] == [4] * 5
    assert run.broker.depth(run.keys.names.offers) == 0
    assert refusals(run) == []


def test_poison_becomes_a_dead_letter_and_its_neighbors_count() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 1)
    good = run.keys.seal_as("client-0", make_status(sequence=1 << 60))
    forged = bytearray(good)
    forged[-1] ^= 1
    run.processes[0].transport.publish(run.keys.names.up, "offer.site-0", b"not a batch")  # type: ignore[union-attr]
    send_up(run, bytes(forged), good)
    run.run()

    assert refusals(run)[:2] == [RefusalReason.MALFORMED, RefusalReason.BAD_SIGNATURE]
    assert run.broker.depth(run.keys.names.dead) == 1
    assert run.version == run.plan.round.rounds


def test_replayed_late_and_foreign_messages_are_counted_and_stop_nothing() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 2)
    old_offers = [entry for entry in run.processes[0].history if entry[0] == "publish" and entry[2][8] == Kind.OFFER]  # type: ignore[union-attr]
    assert old_offers
    transport = run.processes[0].transport  # type: ignore[union-attr]
    transport.publish(run.keys.names.up, "offer.site-0", old_offers[0][2])
    stranger = run.keys.seal_as("client-0", make_offer()).replace(b"client-0", b"client-9")
    send_up(run, stranger, run.keys.seal_as("client-1", make_offer(version=99, counter=1)))
    send_up(run, run.keys.seal_as("client-1", make_status(sequence=1)))
    run.run()

    counts = run.coordinator.telemetry.counts
    assert counts["refused.unknown_sender"] == 1
    assert counts["refused.out_of_range"] == 1
    assert counts["refused.late"] >= 1
    assert counts["refused.replayed"] == 1
    assert [figures["clients_counted"] for figures in run.figures()] == [4] * 5


def test_a_kind_that_does_not_belong_into_a_queue_is_dropped() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 1)
    names = run.keys.names
    for body in pack_batches([run.keys.seal_as("client-0", make_status(sequence=1))]):
        run.coordinator_transport.publish(names.down, names.groups, body)
    run.run()
    for _ in range(5):
        run.turn()

    assert run.coordinator.telemetry.counts["refused.unexpected_kind"] == 1
    assert run.broker.depth(names.groups) == 0


def test_a_plan_for_more_clients_than_are_enrolled_is_refused() -> None:
    with pytest.raises(PlanError, match="need 5 clients"):
        FederationRun(clients=4, plan={"aggregation": {"rule": "trimmed-mean", "trim": 2}})


def test_a_foreign_term_in_the_log_is_not_believed_without_our_key() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 1)
    chain = run.coordinator.log.chain
    assert chain is not None
    entry = TermEntry(parent=chain.head, term=chain.term + 1, session=b"x" * 16)
    frame = bytearray(run.keys.seal(entry))
    frame[-1] ^= 1
    for body in pack_batches([bytes(frame)]):
        run.processes[0].transport.publish(run.keys.names.down, run.keys.names.log, body)  # type: ignore[union-attr]
    run.run()

    assert run.coordinator.telemetry.counts["log_entry_skipped"] == 1
    assert entry.parent != GENESIS


def test_a_restarted_coordinator_goes_on_with_the_same_weights() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 3)
    weights = run.coordinator.log.weights
    run.crash_coordinator()
    run.run(until=lambda: run.version == 3)

    assert (run.coordinator.log.weights == weights).all()
    run.run()
    # Version 3 was read back, and its figures died with the session.
    assert [figures["version"] for figures in run.figures()] == [1, 2, 4, 5]
    assert run.version == 5


def test_a_session_that_was_replaced_leaves_no_model_in_memory() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 1)
    try:
        spare_collections()
        replaced = weakref.ref(run.coordinator)
        run.crash_coordinator()
        spare_collections()
        assert replaced() is None
    finally:
        gc.unfreeze()


def test_a_finished_federation_ends_at_once_when_it_is_started_again() -> None:
    run = FederationRun()
    run.run()
    run.crash_coordinator()
    run.run()

    assert run.coordinator.finished is not None
    assert run.version == run.plan.round.rounds
    assert len(run.figures()) == 5


def test_time_stands_still_while_the_broker_is_away() -> None:
    clock = OutageClock()
    assert clock.at(10.0) == 10.0
    clock.watch(Disconnected("cut"), 12.0)
    clock.watch(Disconnected("the other connection"), 15.0)
    assert clock.at(20.0) == 12.0
    clock.watch(Connected("broker", 1), 32.0)
    assert clock.at(32.0) == 12.0
    clock.watch(Connected("broker", 1), 33.0)
    assert clock.at(40.0) == 20.0


def test_statuses_are_settled_when_they_are_noted() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 1)
    before = len(settled(run, run.keys.names.offers))
    send_up(run, run.keys.seal_as("client-0", Status.model_validate(make_status(sequence=1 << 60).model_dump())))
    for _ in range(4):
        run.turn()

    assert len(settled(run, run.keys.names.offers)) > before


def test_a_broker_that_refuses_entries_of_the_log_ends_the_session() -> None:
    run = FederationRun()
    run.run(until=lambda: run.version == 0)
    elsewhere = Refused(1, run.keys.names.client("client-1"), "queue is full")
    run.coordinator.step([elsewhere], run.now)
    assert [note.event for note in run.notes][-1] == "publish_refused"

    names = run.keys.names
    for stream, what in ((names.log, "entries of the model log"), (names.journal, "records of the journal")):
        with pytest.raises(BrokerUnavailable, match=f"the broker refuses {what} .*: no permission"):
            run.coordinator.step([Refused(2, stream, "no permission")], run.now)
