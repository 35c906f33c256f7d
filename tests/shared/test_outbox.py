"""Does the outbox settle every publish exactly once, in order, whatever the channel does?"""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from shared.transport.outbox import Outbox, Pending


def filled(count: int, window_bytes: int = 10**6) -> Outbox:
    outbox = Outbox(window_bytes)
    for number in range(count):
        outbox.add("exchange", "key", b"%d" % number, persistent=True)
    return outbox


def sequences(pending: list[Pending]) -> list[int]:
    return [one.sequence for one in pending]


class StrictBroker:
    """A broker that closes the channel over some messages, and confirms the others when it likes."""

    def __init__(self, poison: set[int], dice: random.Random) -> None:
        self.poison, self.dice = poison, dice
        self.taken: list[int] = []

    def receive(self, batch: list[Pending], first_tag: int) -> tuple[list[int], bool]:
        """Tags to confirm, in the broker's order, and whether the channel is closed."""
        good: list[int] = []
        for tag, pending in enumerate(batch, start=first_tag):
            if pending.sequence in self.poison:
                return self.dice.sample(good, self.dice.randint(0, len(good))), True
            good.append(tag)
            self.taken.append(pending.sequence)
        return self.dice.sample(good, len(good)), False


@given(st.integers(0, 25), st.sets(st.integers(1, 25)), st.integers(0, 2**32))
def test_every_message_arrives_or_is_refused_and_only_the_poisonous_are(
    count: int, poison: set[int], seed: int
) -> None:
    dice = random.Random(seed)
    outbox, broker = filled(count), StrictBroker(poison, dice)
    refused, marks, tag = [], [outbox.through], 0

    # One turn to find that something is wrong, then at most one for each message: no endless repetition.
    for _ in range(count + 1):
        batch = outbox.take()
        confirmed, closed = broker.receive(batch, tag + 1)
        tag += len(batch)
        for one in confirmed:
            outbox.settle(one, multiple=False)
        if closed:
            tag = 0
            culprit = outbox.channel_refused()
            refused += [culprit.sequence] if culprit else []
        elif dice.random() < 0.5:
            tag = 0
            outbox.channel_lost()
        marks.append(outbox.through)

    assert outbox.empty
    outbox.add("exchange", "key", b"next", persistent=True)
    outbox.add("exchange", "key", b"last", persistent=True)
    assert len(outbox.take()) == 2, "nothing is under suspicion any more"
    assert refused == sorted(poison & set(range(1, count + 1)))
    # Seen for the first time, messages stand in the order of their publishing.
    assert list(dict.fromkeys(broker.taken)) == [number for number in range(1, count + 1) if number not in poison]
    assert marks == sorted(marks)
    assert outbox.through == count


def test_a_multiple_confirm_settles_everything_up_to_its_tag() -> None:
    outbox = filled(5)
    outbox.take()

    assert sequences(outbox.settle(2, multiple=False)) == [2]
    assert outbox.through == 0
    assert sequences(outbox.settle(4, multiple=True)) == [1, 3, 4]
    assert outbox.through == 4
    assert outbox.settle(4, multiple=False) == []


def test_what_is_lost_with_a_channel_is_sent_before_what_waits() -> None:
    outbox = filled(3)
    outbox.take()
    outbox.settle(2, multiple=False)
    outbox.add("exchange", "key", b"late", persistent=True)

    outbox.channel_lost()

    assert sequences(outbox.take()) == [1, 3, 4]
    assert sequences(outbox.settle(1, multiple=False)) == [1]


def test_the_window_counts_unsettled_bytes_and_lets_a_large_one_go_alone() -> None:
    outbox = Outbox(10)
    assert outbox.fits(100)
    outbox.add("exchange", "key", bytes(6), persistent=True)
    assert outbox.fits(4)
    assert not outbox.fits(5)

    outbox.take()
    outbox.settle(1, multiple=False)

    assert outbox.fits(100)
