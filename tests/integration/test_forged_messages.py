"""Does rubbish in the queues change nothing but the counts?"""

from __future__ import annotations

from collections.abc import Iterable

from shared.crypto.signing import SigningKey, load_signing_key
from shared.identity import COORDINATOR
from shared.modellog.chain import GENESIS
from shared.wire.framing import BATCH_BYTES_MAX, pack_batches, seal
from shared.wire.group_messages import Words
from shared.wire.log_messages import VoidEntry
from shared.wire.messages import ClientState, Message, Offer, Status, Task
from tests.integration.conftest import MakeFederation
from tests.integration.federation import LiveFederation, wait_until
from worker.keystore import key_file

ROUNDS = 5
STRANGER = SigningKey.from_seed(b"s" * 32)

STATUS = Status(
    sequence=1, counter=0, state=ClientState.TRAINING_FAILED, version=0, worker="w-0", log_position="following"
)
OFFER = Offer(attempt=0, trained_version=0, trained_head=bytes(32), counter=0, nonce=bytes(16), worker="w-0")
WORDS = Words(transcript=bytes(32), participants=b"\1", part=0, parts=1, body=b"words of no group")
REFUSED = {
    "malformed": 4,  # no batch twice, no frame twice
    "oversized": 1,
    "wrong_version": 1,
    "unknown_kind": 1,
    "bad_signature": 5,  # cut, changed, forged as client, as coordinator, as a member
    "unknown_sender": 1,
    "replayed": 1,
    "unexpected_kind": 2,
    "late": 2,
}
VOID = VoidEntry(parent=GENESIS, term=1, draw=bytes(32), reason="a stranger says so")


def frame(federation: LiveFederation, message: Message, sender: str, key: SigningKey = STRANGER) -> bytes:
    """One message, signed by whomever."""
    return seal(message, sender=sender, federation=federation.keys.directory.federation_id, key=key)


def batch(*frames: bytes) -> bytes:
    """One broker message."""
    (body,) = pack_batches(frames)
    return body


def rubbish(federation: LiveFederation, stage_key: str) -> Iterable[tuple[str, str, bytes]]:
    """(exchange, routing key, body) of messages that nobody should act on."""
    names, client = federation.names, federation.clients[0]
    genuine = load_signing_key(key_file(federation.keys.client_key_directory, client))
    offers, log, tasks = names.offer_key("site-1"), names.log, names.client(client)
    whole = frame(federation, STATUS, client, genuine)
    # no batches at all: dead letters
    yield names.up, offers, b""
    yield names.up, offers, b"\xff" * 100
    yield names.up, offers, bytes(BATCH_BYTES_MAX + 1)
    yield names.down, tasks, b"not a batch"
    # batches whose frames do not verify
    yield names.up, offers, batch(whole[:-1], whole[:-1] + b"!", b"XYZ" + whole[3:])
    yield names.up, offers, batch(whole[:3] + b"\x09" + whole[4:], whole[:4] + b"\xfe" + whole[5:])
    yield names.up, offers, batch(frame(federation, STATUS, client), frame(federation, STATUS, "client-999"))
    yield names.up, offers, batch(frame(federation, VOID, COORDINATOR))
    yield names.down, tasks, batch(frame(federation, _task(client), COORDINATOR))
    # genuine frames that are old, late, or out of place
    yield names.up, offers, batch(whole, frame(federation, OFFER, client, genuine))
    yield names.up, offers, batch(frame(federation, WORDS, client, genuine))
    yield names.up, stage_key, batch(frame(federation, WORDS, client, genuine), whole)
    yield names.up, stage_key, batch(frame(federation, WORDS, client), b"rubbish" * 20)
    # the log
    yield names.down, log, b"\x00\x01"
    yield names.down, log, batch(frame(federation, VOID, COORDINATOR))
    yield names.down, log, batch(whole)


def _task(client: str) -> Task:
    return Task(client=client, version=99, attempt=0, head=bytes(32), snapshot_offset=1 << 40)


def test_rubbish_in_every_queue_is_counted_and_the_run_ends_well(make_federation: MakeFederation) -> None:
    # Given a run that stands still in its third round
    federation = make_federation(
        "Gated",
        4,
        workload_options={"free": 4},
        aggregation={"rule": "mean", "trim": 0},
        round={"rounds": ROUNDS, "min_clients": 4, "round_deadline_s": 120},
        log_level="debug",
    )
    coordinator = federation.start_coordinator()
    with federation.channel() as channel:
        tapped = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(tapped, federation.names.up, "reply.#")
        workers = federation.start_workers(2)
        coordinator.wait_for("round_finished", version=2)
        stage_key = channel.basic_get(tapped, auto_ack=True)[0].routing_key

        # When rubbish comes from all sides
        sent = list(rubbish(federation, stage_key))
        for exchange, routing_key, body in sent:
            channel.basic_publish(exchange, routing_key, body)
        coordinator.wait_for("refused", reason="unexpected_kind", sender=federation.clients[0])
        coordinator.wait_for("log_entry_skipped", count=3)
        federation.open_gate()

        # Then the run ends as if nothing had been, and everything was counted
        assert coordinator.wait() == 0, coordinator.tail()
        for worker in workers:
            worker.process.terminate()
            assert worker.wait() == 0, worker.tail()
        dead = wait_until(lambda: _waiting(channel, federation.names.dead, 4), "4 dead letters")
    counted = [(note["version"], note["clients_counted"]) for note in coordinator.notes("round_finished")]
    assert counted == [(version, 4) for version in range(1, ROUNDS + 1)]
    assert dead == 4

    counts = coordinator.notes("coordinator_stopped")[0]["counts"]
    refused = {name.removeprefix("refused."): count for name, count in counts.items() if name.startswith("refused.")}
    assert refused == REFUSED
    assert counts["log_entry_skipped"] == 3
    served = next(worker for worker in workers if federation.clients[0] in worker.notes("worker_started")[0]["clients"])
    told = served.notes("worker_stopped")[0]["counts"]
    assert told["refused.malformed"] >= 1
    assert told["refused.bad_signature"] >= 1


def _waiting(channel: object, queue: str, count: int) -> int:
    """How many messages wait in a queue, 0 before there are `count`."""
    present: int = channel.queue_declare(queue, passive=True).method.message_count  # type: ignore[attr-defined]
    return present if present >= count else 0
