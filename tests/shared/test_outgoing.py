"""Publish, wait for the confirm, settle: in this order for everything that one batch of events led to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.effects import Append, Effect, Publish, Receipt, Settle, note
from shared.incoming import open_delivery
from shared.outgoing import Outgoing
from shared.transport.port import Delivery, Outcome
from shared.wire.framing import BATCH_BYTES_MAX, split_batch
from shared.wire.topology import Names
from tests.builders import LogBook, make_delivery, make_federation, make_offer, tiny_plan

NAMES = Names("test")


@dataclass
class Recorder:
    """A transport that only remembers, in order, what it was asked to do."""

    log: list[tuple[str, object]] = field(default_factory=list)
    published: list[tuple[str, str, bytes, bool]] = field(default_factory=list)
    settled: list[tuple[Delivery, Outcome]] = field(default_factory=list)

    def publish(self, exchange: str, routing_key: str, body: bytes, *, persistent: bool = True) -> int:
        self.published.append((exchange, routing_key, body, persistent))
        self.log.append(("publish", len(self.published)))
        return len(self.published)

    def settle(self, delivery: Delivery, outcome: Outcome = Outcome.ACK) -> None:
        self.settled.append((delivery, outcome))
        self.log.append(("settle", delivery.body))


def outgoing() -> tuple[Outgoing, Recorder]:
    transport = Recorder()
    return Outgoing(transport, NAMES), transport  # type: ignore[arg-type]


def receipt(name: bytes = b"delivery", messages: int = 1) -> Receipt:
    return Receipt(make_delivery(name), messages)


def frame(number: int, size: int = 80) -> bytes:
    return bytes([number]) * size


def test_a_delivery_is_settled_only_after_the_confirm_of_everything_before() -> None:
    out, transport = outgoing()

    out.carry_out([Settle(receipt(b"one")), Publish("up", "a", frame(1)), Publish("up", "b", frame(2))])
    assert transport.settled == []
    out.on_confirmed(1)
    assert transport.settled == []
    out.on_confirmed(2)

    assert transport.log == [("publish", 1), ("publish", 2), ("settle", b"one")]


def test_without_anything_unconfirmed_a_delivery_is_settled_at_once() -> None:
    out, transport = outgoing()
    out.carry_out([Settle(receipt())])
    out.carry_out([Publish("up", "a", frame(1))])
    out.on_confirmed(1)
    out.carry_out([Settle(receipt())])

    assert len(transport.settled) == 2


def test_a_later_settlement_waits_for_earlier_publishes_too() -> None:
    out, transport = outgoing()
    out.carry_out([Publish("up", "a", frame(1))])
    out.carry_out([Settle(receipt())])

    assert transport.settled == []
    out.on_confirmed(1)
    assert len(transport.settled) == 1


def test_watermarks_may_repeat_and_never_go_back() -> None:
    out, transport = outgoing()
    out.carry_out([Publish("up", "a", frame(1)), Publish("up", "b", frame(2)), Settle(receipt())])

    for through in (2, 2, 1):
        out.on_confirmed(through)
    assert len(transport.settled) == 1
    out.carry_out([Settle(receipt())])

    assert len(transport.settled) == 2


def test_a_delivery_of_several_messages_is_settled_when_the_last_is_done() -> None:
    out, transport = outgoing()
    shared = receipt(messages=3)

    out.carry_out([Settle(shared), Settle(shared)])
    assert transport.settled == []
    out.carry_out([Publish("up", "a", frame(1)), Settle(shared)])
    assert transport.settled == []
    out.on_confirmed(1)

    assert transport.settled == [(shared.delivery, Outcome.ACK)]


def test_frames_of_one_destination_leave_as_one_batch_in_their_order() -> None:
    out, transport = outgoing()

    out.carry_out(
        [
            Publish("up", "a", frame(1)),
            Publish("up", "b", frame(2)),
            Publish("up", "a", frame(3)),
            Publish("up", "a", frame(4), persistent=False),
            Publish("down", "a", frame(5)),
        ]
    )

    assert [(e, k, split_batch(body), p) for e, k, body, p in transport.published] == [
        ("up", "a", [frame(1), frame(3)], True),
        ("up", "b", [frame(2)], True),
        ("up", "a", [frame(4)], False),
        ("down", "a", [frame(5)], True),
    ]
    assert out.messages_published == 4
    assert out.bytes_published == sum(len(body) for _, _, body, _ in transport.published)


def test_what_does_not_fit_one_batch_leaves_as_several_in_order() -> None:
    out, transport = outgoing()
    frames = [frame(number, 400_000) for number in range(7)]

    out.carry_out([Publish("up", "a", one) for one in frames])

    bodies = [body for _, _, body, _ in transport.published]
    assert len(bodies) == 4
    assert max(map(len, bodies)) <= BATCH_BYTES_MAX
    assert [one for body in bodies for one in split_batch(body)] == frames


def test_entries_go_to_the_log_pieces_first_in_the_order_they_were_appended() -> None:
    book = LogBook(make_federation(1), tiny_plan(600_000, codec={"selection": "dense", "density": 1}))
    snapshot = book.seal(*book.snapshot_draft())
    book.write(*snapshot.frames())
    draw = book.seal(book.draw_draft())
    out, transport = outgoing()

    out.carry_out([Append(snapshot), Publish("down", "test.groups", frame(9)), Append(draw)])

    to_log = [body for exchange, key, body, _ in transport.published if (exchange, key) == (NAMES.down, NAMES.log)]
    frames = [one for body in to_log for one in split_batch(body)]
    assert frames == [*snapshot.frames(), draw.frame]
    assert len(transport.published) == len(to_log) + 1
    # Read back they are the chain.
    other = LogBook(make_federation(1), book.plan, np.zeros(600_000, np.float32))
    other.write(*frames)
    assert other.chain.head == draw.digest


def test_an_entry_leaves_when_its_record_is_confirmed_and_what_led_to_it_is_settled_behind_it() -> None:
    book = LogBook(make_federation(1), tiny_plan())
    book.snapshot()
    draw = book.seal(book.draw_draft())
    out, transport = outgoing()

    out.carry_out([Append(draw, [frame(1), frame(2)]), Publish(NAMES.down, NAMES.groups, frame(9)), Settle(receipt())])
    out.carry_out([Settle(receipt(b"later")), Publish(NAMES.down, "test.client", frame(8))])

    keys = [key for _, key, _, _ in transport.published]
    assert keys == [NAMES.journal, NAMES.groups, "test.client"]
    assert split_batch(transport.published[0][2]) == [frame(1), frame(2)]
    out.on_confirmed(1)
    assert transport.published[-1] == (NAMES.down, NAMES.log, transport.published[-1][2], True)
    assert split_batch(transport.published[-1][2]) == [draw.frame]
    out.on_confirmed(3)
    assert transport.settled == []
    out.on_confirmed(4)
    assert [delivery.body for delivery, _ in transport.settled] == [b"delivery", b"later"]


def test_an_entry_without_a_record_leaves_at_once() -> None:
    book = LogBook(make_federation(1), tiny_plan())
    snapshot = book.snapshot()
    out, transport = outgoing()

    out.carry_out([Append(snapshot)])
    assert [key for _, key, _, _ in transport.published] == [NAMES.log]


def test_unparseable_deliveries_go_to_the_dead_letters_after_the_confirm() -> None:
    out, transport = outgoing()
    delivery = make_delivery(b"rubbish")
    _, effects = open_delivery(make_federation(1).opener(), delivery)

    out.carry_out([Publish("up", "a", frame(1)), *[effect for effect in effects if isinstance(effect, Settle)]])
    assert transport.settled == []
    out.on_confirmed(1)

    assert transport.settled == [(delivery, Outcome.DEAD_LETTER)]


def test_a_batch_with_bad_messages_is_acknowledged_once() -> None:
    federation = make_federation(1)
    good = federation.seal_as("client-0", make_offer())
    body = b"".join(len(one).to_bytes(4, "little") + one for one in (good, good[:-1] + b"?", good))
    received, effects = open_delivery(federation.opener(), make_delivery(body))
    out, transport = outgoing()

    settles = [effect for effect in effects if isinstance(effect, Settle)]
    out.carry_out([*settles, *(Settle(one.receipt) for one in received)])

    assert [outcome for _, outcome in transport.settled] == [Outcome.ACK]


def test_notes_are_not_for_the_broker() -> None:
    out, _ = outgoing()
    with pytest.raises(AssertionError, match="not for the broker"):
        out.carry_out([note("connected")])


rounds = st.lists(st.tuples(st.lists(st.sampled_from("abs"), max_size=6), st.integers(0, 4)), min_size=1, max_size=12)


@given(rounds=rounds)
def test_whatever_the_order_nothing_is_settled_before_what_was_published_before_it(
    rounds: list[tuple[list[str], int]],
) -> None:
    """Letters: publish to a or b, or settle. After each batch of effects some more publishes are confirmed."""
    out, transport = outgoing()
    confirmed, expected = 0, list[tuple[bytes, int]]()
    for letters, more in rounds:
        effects: list[Effect] = []
        for letter in letters:
            name = len(expected).to_bytes(4, "big")
            if letter == "s":
                effects.append(Settle(receipt(name)))
                expected.append((name, -1))
            else:
                effects.append(Publish("up", letter, frame(1)))
        out.carry_out(effects)
        expected = [(name, len(transport.published) if after < 0 else after) for name, after in expected]
        confirmed = min(len(transport.published), confirmed + more)
        out.on_confirmed(confirmed)

        assert [delivery.body for delivery, _ in transport.settled] == [
            n for n, after in expected if after <= confirmed
        ]
