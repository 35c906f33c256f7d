"""Which exchanges, queues, routing keys and permissions does a federation have at its broker?

Everything published downwards goes to the exchange `down` with the queue's full name as its routing key; everything
that sites publish goes to `up` under their own keys. Both are topic exchanges, although `down` is only ever bound
with exact keys: RabbitMQ checks the *binding* key of a topic exchange against the user's topic permissions, which a
direct exchange does not have. So a site can bind its own talk queues, and cannot listen in on another's.

Every queue is bounded. Full queues reject what is published, so that the publisher learns of it; only the dead-letter
queue drops its oldest message, because a full one would otherwise hold up the queues that it serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.identity import COORDINATOR, OPERATOR, ClientId, SiteId, StageId, WorkerId
from shared.transport.port import Binding, Exchange, ExchangeKind, Queue, QueueKind, Topology

MIB = 2**20
DELIVERY_LIMIT = 100
"""Deliveries of one message before it is dead-lettered. Explicit: RabbitMQ 3.10 has no limit of its own, 4.0 has 20."""
UNSETTLED_MS = 30 * 24 * 3600 * 1000
"""A delivery may be unsettled for 30 days: offers are, while a run is paused. RabbitMQ's own limit is half an hour, at
which it closes the channel, and a coordinator loses its lease. 3.10 knows a limit for the whole broker only."""
_DEAD_DELIVERY_LIMIT = 1_000_000
"""Looking at dead letters returns them: RabbitMQ 4.0's own limit would drop what was looked at 20 times."""

_STREAM_BYTES_MIN = 256 * MIB
# Two snapshots and twenty changes, each as large as the model, must survive. Retention removes whole segments, of
# which there are at least eight: 26 models minus an eighth are 22.75, the rest is for manifests and draws.
_STREAM_MODELS = 26
_SEGMENTS = 8
_SEGMENT_BYTES_MAX = 500_000_000


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one federation; all begin with its identifier."""

    federation: str

    @property
    def up(self) -> str:
        """Exchange that sites publish to."""
        return f"{self.federation}.up"

    @property
    def down(self) -> str:
        """Exchange that the coordinator publishes to."""
        return f"{self.federation}.down"

    @property
    def dead_letters(self) -> str:
        """Exchange that refused messages go to."""
        return f"{self.federation}.dead-letters"

    @property
    def offers(self) -> str:
        """Queue of offers and statuses; its single active consumer is the coordinator in office."""
        return f"{self.federation}.offers"

    @property
    def groups(self) -> str:
        """Queue of group jobs, shared by all summing stages."""
        return f"{self.federation}.groups"

    @property
    def sums(self) -> str:
        """Queue of group sums."""
        return f"{self.federation}.sums"

    @property
    def dead(self) -> str:
        """Queue of dead letters."""
        return f"{self.federation}.dead"

    @property
    def log(self) -> str:
        """Stream of the model log."""
        return f"{self.federation}.log"

    @property
    def journal(self) -> str:
        """Stream of the coordinator's own state."""
        return f"{self.federation}.journal"

    def client(self, client: ClientId) -> str:
        """Queue of one client's tasks, and the lease on that client."""
        return f"{self.federation}.client.{client}"

    def talk(self, site: SiteId, worker: WorkerId) -> str:
        """Queue of one worker process for the group messages of all its seats."""
        return f"{self.federation}.talk.{site}.{worker}"

    def stage(self, stage: StageId) -> str:
        """Queue of one summing stage for the members' replies."""
        return f"{self.federation}.stage.{stage}"

    def offer_key(self, site: SiteId) -> str:
        """Routing key on `up` of a site's offers and statuses."""
        return f"offer.{site}"

    @property
    def operator_key(self) -> str:
        """Routing key on `up` of commands and candidacies; only the coordinator's own broker user may publish there."""
        return self.offer_key(OPERATOR)

    def reply_key(self, stage: StageId, site: SiteId) -> str:
        """Routing key on `up` of a site's group messages to one stage."""
        return f"reply.{stage}.{site}"


def client_queue(names: Names, client: ClientId) -> Queue:
    """Tasks of one client; the single active consumer is the worker that serves it."""
    return _work_queue(names, names.client(client), single=True, messages=1_000, size=64 * MIB)


def offers_queue(names: Names) -> Queue:
    """Offers and statuses of all clients, the operator's commands; to be its single active consumer is the lease."""
    bindings = (Binding(exchange=names.up, queue=names.offers, routing_key="offer.*"),)
    return _work_queue(names, names.offers, single=True, messages=200_000, size=512 * MIB, bindings=bindings)


def groups_queue(names: Names) -> Queue:
    """Group jobs, for competing consumers."""
    return _work_queue(names, names.groups, single=False, messages=100_000, size=512 * MIB)


def sums_queue(names: Names) -> Queue:
    """Group sums; the single active consumer is the aggregator."""
    return _work_queue(names, names.sums, single=True, messages=100_000, size=4096 * MIB)


def dead_queue(names: Names) -> Queue:
    """Dead letters, for an operator's inspection; the oldest are dropped when it is full."""
    arguments: dict[str, str | int] = {
        "x-delivery-limit": _DEAD_DELIVERY_LIMIT,
        "x-max-length": 10_000,
        "x-max-length-bytes": 256 * MIB,
        "x-overflow": "drop-head",
    }
    binding = Binding(exchange=names.dead_letters, queue=names.dead, routing_key="")
    return Queue(name=names.dead, kind=QueueKind.QUORUM, arguments=arguments, bindings=(binding,))


def log_queue(names: Names, model_bytes: int) -> Queue:
    """The model log: at least two full snapshots and twenty changes are kept."""
    return _stream(names, names.log, model_bytes)


def journal_queue(names: Names, model_bytes: int) -> Queue:
    """The coordinator's journal: kept are at least seven records with an optimizer's state of three models each."""
    return _stream(names, names.journal, model_bytes)


def talk_queue(names: Names, site: SiteId, worker: WorkerId) -> Queue:
    """Group messages to one worker process; gone when the process is."""
    name = names.talk(site, worker)
    bindings = (Binding(exchange=names.down, queue=name, routing_key=name),)
    return _exclusive_queue(name, messages=20_000, size=64 * MIB, bindings=bindings)


def stage_queue(names: Names, stage: StageId, model_bytes: int) -> Queue:
    """Members' replies to one summing stage; gone when the stage is."""
    name = names.stage(stage)
    bindings = (Binding(exchange=names.up, queue=name, routing_key=f"reply.{stage}.*"),)
    return _exclusive_queue(name, messages=200_000, size=max(256 * MIB, 64 * model_bytes), bindings=bindings)


def federation_exchanges(names: Names) -> tuple[Exchange, ...]:
    """The three exchanges of one federation."""
    return (
        Exchange(name=names.up, kind=ExchangeKind.TOPIC),
        Exchange(name=names.down, kind=ExchangeKind.TOPIC),
        Exchange(name=names.dead_letters, kind=ExchangeKind.FANOUT),
    )


def federation_topology(names: Names, clients: Iterable[ClientId], model_bytes: int) -> Topology:
    """Everything durable of one federation, for `Transport.declare` by the coordinator."""
    queues = (
        dead_queue(names),
        offers_queue(names),
        groups_queue(names),
        sums_queue(names),
        log_queue(names, model_bytes),
        journal_queue(names, model_bytes),
        *(client_queue(names, client) for client in clients),
    )
    return Topology(exchanges=federation_exchanges(names), queues=queues)


def _work_queue(
    names: Names, name: str, *, single: bool, messages: int, size: int, bindings: tuple[Binding, ...] | None = None
) -> Queue:
    """A replicated queue that loses nothing: what it cannot hold is refused, what it cannot deliver is kept as dead."""
    arguments: dict[str, str | int] = {
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-consumer-timeout": UNSETTLED_MS,
        "x-dead-letter-exchange": names.dead_letters,
        # Needs reject-publish; without it a dead letter can be lost between two queues.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-max-length": messages,
        "x-max-length-bytes": size,
    }
    if bindings is None:
        bindings = (Binding(exchange=names.down, queue=name, routing_key=name),)
    return Queue(
        name=name, kind=QueueKind.QUORUM, single_active_consumer=single, arguments=arguments, bindings=bindings
    )


def _exclusive_queue(name: str, *, messages: int, size: int, bindings: tuple[Binding, ...]) -> Queue:
    arguments: dict[str, str | int] = {
        "x-max-length": messages,
        "x-max-length-bytes": size,
        "x-overflow": "reject-publish",
    }
    return Queue(name=name, kind=QueueKind.CLASSIC, exclusive=True, arguments=arguments, bindings=bindings)


def _stream(names: Names, name: str, model_bytes: int) -> Queue:
    total = max(_STREAM_BYTES_MIN, _STREAM_MODELS * model_bytes)
    arguments: dict[str, str | int] = {
        "x-max-length-bytes": total,
        # Only whole segments are ever removed: with the broker's default of 500 MB a smaller bound does nothing.
        "x-stream-max-segment-size-bytes": min(_SEGMENT_BYTES_MAX, total // _SEGMENTS),
    }
    binding = Binding(exchange=names.down, queue=name, routing_key=name)
    return Queue(name=name, kind=QueueKind.STREAM, arguments=arguments, bindings=(binding,))


@dataclass(frozen=True, slots=True)
class SitePermissions:
    """What a site's broker user may do, as anchored patterns over resource names and routing keys."""

    configure: str
    write: str
    read: str
    publish_up: str
    bind_down: str


def site_permissions(names: Names, site: SiteId, clients: Iterable[ClientId]) -> SitePermissions:
    """Permissions of one site: its talk queues, its clients' queues, the log, and its own routing keys on `up`."""
    talk = rf"{_literal(names.federation)}\.talk\.{_literal(site)}\.[a-z0-9_-]+"
    readable = [_literal(names.down), _literal(names.log), *(_literal(names.client(client)) for client in clients)]
    return SitePermissions(
        configure=f"^{talk}$",
        # Binding a queue needs the right to write to it.
        write=f"^({_literal(names.up)}|{talk})$",
        read=f"^({talk}|{'|'.join(readable)})$",
        publish_up=rf"^(offer\.{_literal(site)}|reply\.[a-z0-9_-]+\.{_literal(site)})$",
        bind_down=f"^{talk}$",
    )


def definitions(
    names: Names,
    sites: Mapping[SiteId, Iterable[ClientId]],
    model_bytes: int,
    vhost: str = "/",
    users: Mapping[SiteId, str] | None = None,
) -> dict[str, Any]:
    """The federation in the format of RabbitMQ's `definitions.json`, without users.

    Users and their credentials are the operator's: they must exist before this is imported. A site's user is the one
    in `users`, else it has the site's name; the coordinator's user is called `coordinator`.
    """
    user_of = {site: (users or {}).get(site, site) for site in sites}
    clients = {site: sorted(members) for site, members in sorted(sites.items())}
    everyone = [client for members in clients.values() for client in members]
    topology = federation_topology(names, everyone, model_bytes)
    bindings = [binding for queue in topology.queues for binding in queue.bindings]
    granted = {site: site_permissions(names, site, members) for site, members in clients.items()}
    everything = rf"^{_literal(names.federation)}\..*$"
    office = {"user": COORDINATOR, "vhost": vhost, "configure": everything, "write": everything, "read": everything}
    return {
        "vhosts": [{"name": vhost}],
        "exchanges": [_exchange_definition(exchange, vhost) for exchange in topology.exchanges],
        "queues": [_queue_definition(queue, vhost) for queue in topology.queues],
        "bindings": [_binding_definition(binding, vhost) for binding in bindings],
        "permissions": [office, *(_permission(user_of[site], vhost, granted[site]) for site in granted)],
        "topic_permissions": [
            topic for site in granted for topic in _topic_permissions(names, user_of[site], vhost, granted[site])
        ],
    }


def _literal(name: str) -> str:
    # The dot is the only character of our names that means something in a pattern (see shared.identity).
    return name.replace(".", r"\.")


def _exchange_definition(exchange: Exchange, vhost: str) -> dict[str, Any]:
    return {
        "name": exchange.name,
        "vhost": vhost,
        "type": exchange.kind.value,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": {},
    }


def _queue_definition(queue: Queue, vhost: str) -> dict[str, Any]:
    return {
        "name": queue.name,
        "vhost": vhost,
        "durable": True,
        "auto_delete": False,
        "arguments": queue.declared_arguments,
    }


def _binding_definition(binding: Binding, vhost: str) -> dict[str, Any]:
    return {
        "source": binding.exchange,
        "vhost": vhost,
        "destination": binding.queue,
        "destination_type": "queue",
        "routing_key": binding.routing_key,
        "arguments": {},
    }


def _permission(user: str, vhost: str, granted: SitePermissions) -> dict[str, Any]:
    return {
        "user": user,
        "vhost": vhost,
        "configure": granted.configure,
        "write": granted.write,
        "read": granted.read,
    }


def _topic_permissions(names: Names, user: str, vhost: str, granted: SitePermissions) -> list[dict[str, Any]]:
    return [
        {"user": user, "vhost": vhost, "exchange": names.up, "write": granted.publish_up, "read": "^$"},
        {"user": user, "vhost": vhost, "exchange": names.down, "write": "^$", "read": granted.bind_down},
    ]
