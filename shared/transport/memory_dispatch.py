"""How do messages move through the in-process broker: from a publish to queues, consumers and dead letters?

`Dispatch` is the part of the broker that knows queues and consumers, and nothing of connections, faults or time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from shared.errors import BrokerUnavailable
from shared.transport.memory_queues import Message, Routes, Stream, WorkQueue
from shared.transport.memory_seat import Handle, Seat, Subscription
from shared.transport.port import Death, Delivered, Delivery, Depth, Outcome, Queue, QueueKind, Topology


class Dispatch:
    """Exchanges, queues and their consumers. The broker's lock guards it."""

    def __init__(self) -> None:
        self._routes = Routes()
        self._queues: dict[str, WorkQueue | Stream] = {}
        self._owners: dict[str, Seat] = {}
        # In the order of their subscribing; the first is the single active consumer.
        self._consumers: dict[str, list[Subscription]] = {}
        self._with_undead: dict[str, WorkQueue] = {}

    def has_exchange(self, name: str) -> bool:
        """Whether publishes to this exchange are possible."""
        return name in self._routes

    def depth(self, name: str) -> int:
        """Messages of a queue that wait or are unsettled; kept entries of a stream; 0 if there is no such queue."""
        found = self._queues.get(name)
        if not isinstance(found, WorkQueue):
            return 0 if found is None else len(found)
        unsettled = sum(len(consumer.unsettled) for consumer in self._consumers.get(name, ()))
        return len(found) + len(found.undead) + unsettled

    def entries(self, name: str, first: int) -> list[tuple[int, bytes]]:
        """Kept entries of a stream from an offset on; none if there is no such stream."""
        found = self._queues.get(name)
        if not isinstance(found, Stream):
            return []
        return [(offset, message.body) for offset, message in found.read(first, found.end - first)]

    def waiting(self, queue: Queue) -> Depth | None:
        """See `Transport.depths`."""
        found = self._queues.get(queue.name)
        if found is None:
            return None
        if isinstance(found, Stream):
            return Depth(None, None)
        return Depth(len(found), len(self._consumers.get(queue.name, ())))

    def restart(self) -> None:
        """Lose what a restart of the broker loses."""
        for queue in self._queues.values():
            if isinstance(queue, WorkQueue):
                queue.restart()

    def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        for exchange in topology.exchanges:
            if not self._routes.declare(exchange):
                raise BrokerUnavailable(f"exchange {exchange.name} exists with another kind")
        for queue in topology.queues:
            self._declare_queue(queue)

    def accept(self, message: Message) -> str | None:
        """Route one message; return why it is refused, if it is."""
        names = self._reached(message.exchange, message.routing_key)
        if not names and message.persistent:
            return "no queue is bound for it"
        taken = [self._queues[name].put(message.copy()) for name in names]
        for name in names:
            self._pump(name)
        return None if all(taken) else "the broker rejected it: its queue is full"

    def attach(self, subscription: Subscription) -> str | None:
        """Begin to deliver; return why that is not possible, if it is not."""
        queue = subscription.queue
        if queue.exclusive:
            if self._owners.get(queue.name, subscription.seat) is not subscription.seat:
                return "locked by another connection"
            if any(binding.exchange not in self._routes for binding in queue.bindings):
                return "no exchange to bind it to"
            self._declare_queue(queue)
            self._owners[queue.name] = subscription.seat
        found = self._queues.get(queue.name)
        if found is None:
            return "no such queue"
        subscription.attached = True
        if isinstance(found, Stream):
            assert subscription.start is not None
            subscription.cursor = found.begin(subscription.start)
        self._consumers.setdefault(queue.name, []).append(subscription)
        self._pump(queue.name)
        return None

    def detach(self, subscription: Subscription) -> None:
        """End deliveries: unsettled ones return to their queue, an exclusive queue vanishes."""
        name = subscription.queue.name
        unsettled = list(subscription.unsettled.values())
        subscription.unsettled.clear()
        subscription.generation += 1
        if not subscription.attached:
            return
        subscription.attached = False
        self._consumers[name].remove(subscription)
        if subscription.queue.exclusive:
            del self._queues[name], self._owners[name]
            self._with_undead.pop(name, None)
            self._routes.unbind(name)
        else:
            self._return(name, unsettled)

    def settle(self, handle: Handle, outcome: Outcome) -> bool:
        """End one delivery; False: it is stale, or was settled before."""
        subscription = handle.subscription
        if subscription.generation != handle.generation:
            return False
        message = subscription.unsettled.pop(handle.tag, None)
        if message is None:
            return False
        name = subscription.queue.name
        queue = self._queues[name]
        if isinstance(queue, WorkQueue):
            if outcome is Outcome.PUT_BACK:
                self._return(name, [message])
            elif outcome is Outcome.DEAD_LETTER:
                self._bury(queue, [message], "rejected")
        self._pump(name)
        return True

    def _reached(self, exchange: str, routing_key: str) -> list[str]:
        return [name for name in self._routes.match(exchange, routing_key) if name in self._queues]

    def _pump(self, name: str) -> None:
        """Deliver what can be delivered from one queue."""
        queue = self._queues.get(name)
        if isinstance(queue, Stream):
            for consumer in list(self._consumers.get(name, ())):
                self._read(consumer, queue)
        elif queue is not None:
            while len(queue) and (free := self._free_consumer(name)) is not None:
                message = queue.take()
                self._deliver(free, [(None, message)])
            self._bury_undead()

    def _free_consumer(self, name: str) -> Subscription | None:
        """The next consumer with room: the first of all if it is the single active one, else in turn."""
        consumers = self._consumers.get(name, [])
        if consumers and consumers[0].queue.single_active_consumer:
            return consumers[0] if consumers[0].room > 0 else None
        for position, consumer in enumerate(consumers):
            if consumer.room > 0:
                consumers.append(consumers.pop(position))
                return consumer
        return None

    def _read(self, consumer: Subscription, stream: Stream) -> None:
        entries = list(stream.read(consumer.cursor, consumer.room))
        if entries:
            consumer.cursor = entries[-1][0] + 1
            self._deliver(consumer, entries)

    def _deliver(self, consumer: Subscription, entries: Iterable[tuple[int | None, Message]]) -> None:
        deliveries = tuple(
            Delivery(
                queue=consumer.queue.name,
                body=message.body,
                routing_key=message.routing_key,
                redelivered=message.returns > 0,
                handle=Handle(consumer, consumer.generation, consumer.add(message)),
                user=message.user,
                offset=offset,
                death=message.death,
            )
            for offset, message in entries
        )
        consumer.seat.sent += 1
        consumer.line.send(partial(self._hand_over, consumer, consumer.generation, deliveries, consumer.seat.sent))

    def _hand_over(
        self, consumer: Subscription, generation: int, deliveries: tuple[Delivery, ...], number: int
    ) -> None:
        if generation != consumer.generation or not consumer.seat.connected:
            return
        consumer.seat.arrived(number)
        offset = deliveries[-1].offset
        if offset is not None:
            # Where a new connection goes on: behind what the client has seen, not behind what was sent to it.
            consumer.start = offset + 1
        consumer.seat.emit(Delivered(consumer.queue.name, deliveries))

    def _return(self, name: str, messages: list[Message]) -> None:
        queue = self._queues.get(name)
        if isinstance(queue, WorkQueue):
            self._bury(queue, queue.put_back(messages), "delivery_limit")
            self._pump(name)

    def _bury(self, queue: WorkQueue, dead: Sequence[Message], reason: str) -> None:
        if queue.dead_letter_exchange is not None:
            for message in dead:
                message.death = message.death or Death(queue.declared.name, reason)
            queue.undead.extend(dead)
            if dead:
                self._with_undead[queue.declared.name] = queue
            self._bury_undead()

    def _bury_undead(self) -> None:
        """Move dead letters on; one that no queue takes stays and holds up those behind it."""
        for queue in list(self._with_undead.values()):
            while queue.undead:
                # Out of the way first: delivering it may lead back here.
                dead = queue.undead.popleft()
                if not self._move(queue, dead):
                    queue.undead.appendleft(dead)
                    break
            else:
                self._with_undead.pop(queue.declared.name, None)

    def _move(self, source: WorkQueue, dead: Message) -> bool:
        names = self._reached(source.dead_letter_exchange or "", dead.routing_key)
        moved = [self._queues[name].put(dead.copy()) for name in names]
        for name in names:
            self._pump(name)
        return any(moved)

    def _declare_queue(self, queue: Queue) -> None:
        found = self._queues.get(queue.name)
        if found is not None and found.declared.declared_arguments != queue.declared_arguments:
            raise BrokerUnavailable(f"queue {queue.name} exists with other arguments")
        for binding in queue.bindings:
            if binding.exchange not in self._routes:
                raise BrokerUnavailable(f"queue {queue.name} cannot be bound: no exchange {binding.exchange}")
        if found is None:
            self._queues[queue.name] = Stream(queue) if queue.kind is QueueKind.STREAM else WorkQueue(queue)
        self._routes.bind(queue.bindings)
