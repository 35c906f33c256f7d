"""What does a stack need before it starts: which broker, which federation, which settings?

The private node comes first here, unlike in the demo: a federation lives on from one `up` to the next, and a node keeps
the model log in its directory, where a container takes it along.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from coordinator.settings import CoordinatorSettings
from deploy.brokers import BrokerKind, choose_broker
from deploy.brokers.choose import AUTO
from deploy.brokers.docker import find_image
from deploy.brokers.private_node import find_programs
from deploy.federation_keys import FederationKeys, load_keys, make_federation_keys
from deploy.stack.files import BrokerChoice, Order, Origin, StackFiles, read_record, write_record
from shared.errors import BrokerUnavailable, SettingsError
from shared.workloads.batches import example_count
from shared.workloads.loading import load_workload
from worker.settings import WorkerSettings

FEDERATION = "local"
CLIENTS = 20
CLIENTS_MAX = 1000
DRAIN_S = 5.0
"""How long a worker here waits for a group in progress, unless it is set: on one machine groups take milliseconds."""

WORKER_SLACK_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A stack that can be started. `is_new`: the federation has just been made."""

    order: Order
    origin: Origin
    is_new: bool


def prepare(
    files: StackFiles, requested: str, clients: int | None, rounds: int | None, say: Callable[[str], None]
) -> Prepared:
    """Choose the broker, make the federation or find it again, and check the settings.

    Args:
        files: the stack's directory; its lock is held.
        requested: `auto` or AMQP URLs, as for the demo.
        clients, rounds: None for what the federation has, or the defaults if it is new.
        say: told what people may want to know.

    Raises:
        ComitiaError: a setting is bad, there is no broker, or the federation was made with something else.
    """
    coordinator, worker = CoordinatorSettings.load(), WorkerSettings.load()
    if clients is not None and not 1 <= clients <= CLIENTS_MAX:
        raise SettingsError(f"clients: must be 1 to {CLIENTS_MAX}, not {clients}")
    if rounds is not None and rounds < 1:
        raise SettingsError(f"rounds: must be at least 1, not {rounds}")
    choice, name = choose(requested, say)
    origin = read_record(files.origin, Origin)
    if origin is not None and origin.broker_kind is BrokerKind.DOCKER:
        say("the last federation's model log went with its container: a new federation begins")
        origin = None
    is_new = origin is None
    if origin is None:
        origin = _make_federation(files, choice, name, clients or CLIENTS, rounds)
    else:
        _check_origin(origin, name, clients)
        if rounds not in (None, origin.rounds):
            origin = origin.model_copy(update={"rounds": rounds})
            write_record(files.origin, origin)
    keys = load_keys(files.federation)
    drain_s = worker.drain_s if "drain_s" in worker.model_fields_set else DRAIN_S
    order = Order(
        broker=choice,
        environment=_environment(files, drain_s),
        coordinator_environment=_plan_environment(coordinator, keys, origin.rounds),
        worker_grace_s=drain_s + WORKER_SLACK_S,
    )
    return Prepared(order=order, origin=origin, is_new=is_new)


def choose(requested: str, say: Callable[[str], None]) -> tuple[BrokerChoice, str]:
    """The broker to use, and a name of it that tells it from others and holds no password.

    Raises:
        SettingsError: not `auto` or a URL.
        BrokerUnavailable: neither RabbitMQ nor a Docker that can run it is installed.
    """
    if requested != AUTO:
        broker = choose_broker(requested, Path())
        if broker.kind is BrokerKind.MEMORY:
            raise SettingsError("broker: the processes of a stack share no memory; use auto or a URL")
        parts = [urlsplit(url) for url in requested.split()]
        name = " ".join(f"{one.hostname}:{one.port or 5672}{one.path or '/'}" for one in parts)
        return BrokerChoice(kind=BrokerKind.URL, source=requested), name
    try:
        find_programs()
    except BrokerUnavailable as no_node:
        try:
            return BrokerChoice(kind=BrokerKind.DOCKER, source=find_image(say)), "a container"
        except BrokerUnavailable as no_docker:
            raise BrokerUnavailable(f"{no_node}; {no_docker}. `make broker` installs RabbitMQ") from no_docker
    return BrokerChoice(kind=BrokerKind.PRIVATE_NODE), "the private node"


def _make_federation(files: StackFiles, choice: BrokerChoice, name: str, clients: int, rounds: int | None) -> Origin:
    files.forget_federation()
    # A broker that others use too may hold their federation of this name.
    federation = f"{FEDERATION}-{secrets.token_hex(4)}" if choice.kind is BrokerKind.URL else FEDERATION
    make_federation_keys(files.federation, federation, clients)
    origin = Origin(broker_kind=choice.kind, broker=name, federation=federation, clients=clients, rounds=rounds)
    write_record(files.origin, origin)
    return origin


def _check_origin(origin: Origin, broker: str, clients: int | None) -> None:
    anew = "`comitia down --purge` makes room for a new one"
    if origin.broker != broker:
        raise SettingsError(f"broker: the federation's model log is on {origin.broker}, not on {broker}; {anew}")
    if clients not in (None, origin.clients):
        raise SettingsError(f"clients: the federation was made with {origin.clients} clients; {anew}")


def _environment(files: StackFiles, drain_s: float) -> dict[str, str]:
    return {
        "COMITIA_FEDERATION_DIR": str(files.federation),
        "COMITIA_STATE_DIR": str(files.state),
        "COMITIA_OUTPUT_DIR": str(files.output),
        "COMITIA_SITE": "site-1",
        # All workers are alike and share out all clients, whatever the settings of a worker here say.
        "COMITIA_CLIENTS": "[]",
        "COMITIA_CLIENT_IDS": "",
        "COMITIA_LOG_FORMAT": "json",
        "COMITIA_LOG_LEVEL": "info",  # the supervisor and `comitia status` read the logs
        "COMITIA_DRAIN_S": str(drain_s),
        # Few cores and many processes: threads that spin while they wait would only heat each other.
        "OMP_NUM_THREADS": "1",
    }


def _plan_environment(settings: CoordinatorSettings, keys: FederationKeys, rounds: int | None) -> dict[str, str]:
    """What the plan takes from the number of clients, where the settings do not say otherwise."""
    variables = {} if rounds is None else {"COMITIA_ROUND__ROUNDS": str(rounds)}
    if "min_clients" not in settings.round.model_fields_set:
        # Workers here share out all clients: without this, a round would begin with those that are taken first.
        variables["COMITIA_ROUND__MIN_CLIENTS"] = str(len(keys.clients))
    if ":" in settings.workload:
        return variables  # a workload from outside has its own options, and its data may be out of our reach
    options = {"clients": len(keys.clients)} | settings.workload_options
    variables["COMITIA_WORKLOAD_OPTIONS"] = json.dumps(options)
    if "weight_records_max" not in settings.model_fields_set:
        workload = load_workload(settings.workload, options)
        most = max(example_count(workload.client_data(client, None)) for client in keys.clients)
        variables["COMITIA_WEIGHT_RECORDS_MAX"] = str(max(1, most))
    return variables
