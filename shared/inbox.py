"""Where the threads of a process leave what happened, for the one thread that acts on it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue that is emptied as a list: one wake-up for everything that came in meanwhile.

    It needs no bound of its own: transports hold back unsettled deliveries by prefetch, and work that a process
    gives to its own threads is bounded by its seats.
    """

    def __init__(self) -> None:
        self._items: list[T] = []
        self._changed = threading.Condition()

    def put(self, items: Sequence[T]) -> None:
        """Add items, from any thread."""
        with self._changed:
            self._items.extend(items)
            self._changed.notify()

    def take(self, timeout_s: float) -> list[T]:
        """All items, after waiting up to `timeout_s` for the first one; empty if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._items, timeout_s)
            items, self._items = self._items, []
            return items
