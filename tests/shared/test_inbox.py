"""What threads put in comes out in order, as one list, and wakes whoever waits."""

from __future__ import annotations

import threading
import time

from shared.inbox import Inbox


def test_everything_that_came_in_is_taken_at_once_and_once() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put([1, 2])
    inbox.put([3])

    assert inbox.take(0) == [1, 2, 3]
    assert inbox.take(0) == []


def test_taking_waits_for_the_first_item() -> None:
    inbox: Inbox[str] = Inbox()
    threading.Timer(0.05, inbox.put, (["item"],)).start()

    assert inbox.take(30) == ["item"]


def test_an_empty_put_does_not_end_the_wait() -> None:
    inbox: Inbox[int] = Inbox()
    threading.Timer(0.02, inbox.put, ([],)).start()
    threading.Timer(0.06, inbox.put, ([7],)).start()

    assert inbox.take(30) == [7]


def test_taking_ends_when_nothing_comes() -> None:
    started = time.monotonic()

    assert Inbox[int]().take(0.05) == []
    assert time.monotonic() - started >= 0.04


def test_nothing_is_lost_or_reordered_between_threads() -> None:
    inbox: Inbox[tuple[int, int]] = Inbox()
    threads = [
        threading.Thread(target=lambda writer=writer: [inbox.put([(writer, number)]) for number in range(500)])
        for writer in range(4)
    ]
    for thread in threads:
        thread.start()
    taken: list[tuple[int, int]] = []
    while len(taken) < 2000:
        taken += inbox.take(10)
    for thread in threads:
        thread.join()

    for writer in range(4):
        assert [number for name, number in taken if name == writer] == list(range(500))
