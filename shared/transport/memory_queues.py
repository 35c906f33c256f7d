"""How do RabbitMQ's queues and streams behave, as data structures without clients?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared.transport.port import Binding, Death, Exchange, ExchangeKind, Queue, QueueKind, StreamStart


@dataclass(slots=True, eq=False)
class Message:
    """One message inside a queue; the same body may be in several."""

    exchange: str
    routing_key: str
    body: bytes
    persistent: bool
    user: str
    returns: int = 0
    death: Death | None = None

    def copy(self) -> Message:
        """The same message for one more queue, where its returns are counted anew."""
        return Message(self.exchange, self.routing_key, self.body, self.persistent, self.user, death=self.death)


class WorkQueue:
    """A quorum or classic queue: messages that wait, bounded, each handed out to one consumer at a time."""

    def __init__(self, declared: Queue) -> None:
        self.declared = declared
        arguments = declared.arguments
        self._messages_max = _number(arguments.get("x-max-length"))
        self._bytes_max = _number(arguments.get("x-max-length-bytes"))
        self._rejects = arguments.get("x-overflow") == "reject-publish"
        self._limit = _number(arguments.get("x-delivery-limit"))
        self._ready: deque[Message] = deque()
        self._bytes = 0
        self.undead: deque[Message] = deque()
        """Dead letters that no queue took yet (at-least-once dead lettering keeps them here)."""

    def __len__(self) -> int:
        """Messages that wait for a consumer."""
        return len(self._ready)

    @property
    def dead_letter_exchange(self) -> str | None:
        """Where refused messages go, if anywhere."""
        name = self.declared.arguments.get("x-dead-letter-exchange")
        return None if name is None else str(name)

    def put(self, message: Message) -> bool:
        """Append a message; False: the queue is full and rejects it."""
        full = not self._fits(1, len(message.body))
        if full and self._rejects:
            return False
        self._ready.append(message)
        self._bytes += len(message.body)
        while full and len(self._ready) > 1 and not self._fits(0, 0):
            self.take()
        return True

    def take(self) -> Message:
        """Remove the oldest message that waits."""
        message = self._ready.popleft()
        self._bytes -= len(message.body)
        return message

    def put_back(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages, oldest first, to the front; those past the delivery limit are returned as dead instead."""
        for message in messages:
            message.returns += 1
        dead = [message for message in messages if self._limit is not None and message.returns > self._limit]
        alive = [message for message in messages if message not in dead]
        self._ready.extendleft(reversed(alive))
        self._bytes += sum(len(message.body) for message in alive)
        return dead

    def restart(self) -> None:
        """The broker starts again: a classic queue has lost its transient messages."""
        if self.declared.kind is QueueKind.CLASSIC:
            self._ready = deque(message for message in self._ready if message.persistent)
            self._bytes = sum(len(message.body) for message in self._ready)

    def _fits(self, messages: int, size: int) -> bool:
        count = len(self._ready) + len(self.undead) + messages
        within_count = self._messages_max is None or count <= self._messages_max
        return within_count and (self._bytes_max is None or self._bytes + size <= self._bytes_max)


class Stream:
    """An append-only log whose oldest segments go when it is too long."""

    def __init__(self, declared: Queue) -> None:
        self.declared = declared
        self._bytes_max = _number(declared.arguments.get("x-max-length-bytes"))
        self._segment_max = _number(declared.arguments.get("x-stream-max-segment-size-bytes")) or 500_000_000
        self._entries: deque[Message] = deque()
        self._first = 0
        # Length in entries and in bytes of each segment, oldest first.
        self._segments: deque[tuple[int, int]] = deque([(0, 0)])
        self._bytes = 0

    def __len__(self) -> int:
        """Entries that are kept."""
        return len(self._entries)

    @property
    def end(self) -> int:
        """The offset that the next entry will have."""
        return self._first + len(self._entries)

    def put(self, message: Message) -> bool:
        """Append an entry; a stream never refuses one."""
        count, size = self._segments[-1]
        if size >= self._segment_max:
            self._segments.append((0, 0))
            self._retain()
            count, size = 0, 0
        self._segments[-1] = (count + 1, size + len(message.body))
        self._entries.append(message)
        self._bytes += len(message.body)
        return True

    def begin(self, start: StreamStart) -> int:
        """The offset at which a consumer with this start begins: the nearest that is kept."""
        if start == "first":
            return self._first
        if start == "next":
            return self.end
        return min(max(start, self._first), self.end)

    def read(self, offset: int, limit: int) -> Iterator[tuple[int, Message]]:
        """Up to `limit` entries from `offset` (or the oldest that is kept) on."""
        begin = max(offset, self._first)
        for position in range(begin, min(begin + limit, self.end)):
            yield position, self._entries[position - self._first]

    def _retain(self) -> None:
        while self._bytes_max is not None and self._bytes > self._bytes_max and len(self._segments) > 1:
            count, size = self._segments.popleft()
            for _ in range(count):
                self._entries.popleft()
            self._first += count
            self._bytes -= size


class Routes:
    """Exchanges and bindings: which queues does a message reach?"""

    def __init__(self) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._exact: dict[tuple[str, str], dict[str, None]] = {}
        self._patterns: dict[str, dict[tuple[str, str], None]] = {}

    def __contains__(self, exchange: str) -> bool:
        """Whether the exchange is declared; the nameless one always is."""
        return not exchange or exchange in self._exchanges

    def declare(self, exchange: Exchange) -> bool:
        """Add an exchange; False: there is one of that name and another kind."""
        return self._exchanges.setdefault(exchange.name, exchange) == exchange

    def bind(self, bindings: Iterable[Binding]) -> None:
        """Add bindings; known ones change nothing."""
        for binding in bindings:
            everything = self._exchanges[binding.exchange].kind is ExchangeKind.FANOUT
            words = binding.routing_key.split(".")
            if everything or "*" in words or "#" in words:
                pattern = "#" if everything else binding.routing_key
                self._patterns.setdefault(binding.exchange, {})[pattern, binding.queue] = None
            else:
                self._exact.setdefault((binding.exchange, binding.routing_key), {})[binding.queue] = None

    def unbind(self, queue: str) -> None:
        """Remove all bindings of a queue that is gone."""
        for queues in self._exact.values():
            queues.pop(queue, None)
        for patterns in self._patterns.values():
            for pattern in [pattern for pattern in patterns if pattern[1] == queue]:
                del patterns[pattern]

    def match(self, exchange: str, routing_key: str) -> list[str]:
        """Names of the queues that a message reaches, each once. The nameless exchange knows every queue by name."""
        if not exchange:
            return [routing_key]
        found = dict(self._exact.get((exchange, routing_key), {}))
        for pattern, queue in self._patterns.get(exchange, {}):
            if topic_matches(pattern, routing_key):
                found[queue] = None
        return list(found)


def topic_matches(pattern: str, routing_key: str) -> bool:
    """Whether a topic pattern fits a routing key: `*` is one word, `#` is any number of words."""
    return _words_match(pattern.split("."), routing_key.split("."))


def _words_match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_words_match(pattern[1:], words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _words_match(pattern[1:], words[1:])


def _number(argument: str | int | None) -> int | None:
    return None if argument is None else int(argument)
