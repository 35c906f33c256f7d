"""How does somebody who only listens get the present model? By reading the federation's log, as every worker does.

Nothing is published or declared, so the right to read the log is enough. A stream does not tell where it ends, and a
mark of our own would need the right to write. So reading ends when nothing has come for `quiet_s`; and, in a
federation that never is that quiet, with the first message that was written after we came, which a second
subscription shows. A broker that pauses for longer in the middle of the log makes the export an older version, never
a wrong one: signatures, hash chain and weights of every entry are verified.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.output import save_model
from shared.codec.flatten import layout_of, write_weights
from shared.crypto.signing import VerificationCache
from shared.errors import BrokerUnavailable, ComitiaError, PlanError
from shared.inbox import Inbox
from shared.incoming import keys_of
from shared.membership import Membership
from shared.modellog.chain import ChainState
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.transport.port import Connected, ConsumerWaiting, Delivered, Disconnected, Sink, Transport, TransportEvent
from shared.wire.framing import Opener
from shared.wire.topology import Names, log_queue
from shared.workloads.loading import load_workload
from shared.workloads.port import Workload

QUIET_S = 1.0
LOG_PREFETCH = 32

MODEL_FILE = "model.safetensors"
PLAN_FILE = "plan.json"


class NoModel(ComitiaError):
    """The federation's log cannot be read, or holds no model yet."""


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """The newest version that a log was read to: its plan, its place in the chain, and its weights (float32 (d,))."""

    plan: Plan
    chain: ChainState
    weights: np.ndarray


def read_model(
    members: Membership, connect: Callable[[Sink, str], Transport], *, quiet_s: float = QUIET_S, patience_s: float
) -> LoggedModel:
    """Read a federation's log to its end.

    Args:
        members: names the federation and the key that its entries verify with.
        connect: makes a transport that gives its events to a sink, under a name for the broker.
        quiet_s: how long nothing has to come, once something has, for the log to have ended (seconds).
        patience_s: how long to wait for the first message, and for a lost connection (seconds).

    Raises:
        NoModel: no log there, no right to read it, or nothing in it that verifies.
        BrokerUnavailable: no broker, or it was lost for too long.
        PlanError: the plan in the log is not one that this version can read.
    """
    inbox: Inbox[TransportEvent] = Inbox()
    later: Inbox[TransportEvent] = Inbox()
    directory = members.directory
    name = f"{directory.federation}-export"
    transport, probe = connect(inbox.put, name), connect(later.put, f"{name}-probe")
    try:
        queue = log_queue(Names(directory.federation), 0)
        for one in (probe, transport):
            one.connect()
        probe.consume(queue, prefetch=1, start="next")
        transport.consume(queue, prefetch=LOG_PREFETCH, start="first")
        log = LogReader(Opener(directory.federation_id, keys_of(members), VerificationCache()), members)
        _read_to_the_end(log, transport, inbox, later, quiet_s, patience_s)
    finally:
        transport.close()
        probe.close()
    if log.chain is None or log.plan is None:
        raise NoModel(f"the log of federation {directory.federation!r} holds no model that verifies yet")
    return LoggedModel(log.plan, log.chain, log.weights)


def _read_to_the_end(
    log: LogReader,
    transport: Transport,
    inbox: Inbox[TransportEvent],
    later: Inbox[TransportEvent],
    quiet_s: float,
    patience_s: float,
) -> None:
    began, connected, newest, end = False, True, -1, None
    while end is None or newest < end:
        items = inbox.take(quiet_s if began and connected else patience_s)
        if not items and not connected:
            raise BrokerUnavailable(f"the broker was lost, and is not back after {patience_s:g} s")
        if not items:
            return
        for item in items:
            match item:
                case Delivered(_, deliveries):
                    began = connected = True
                    for delivery in deliveries:
                        assert delivery.offset is not None
                        log.feed(delivery.offset, delivery.body)
                        newest = delivery.offset
                        transport.settle(delivery)
                case ConsumerWaiting(queue, reason) if not began:
                    raise NoModel(f"{queue} cannot be read: {reason}")
                case Connected():
                    connected = True
                case Disconnected() | ConsumerWaiting():
                    connected = False
        end = _first_offset(later.take(0)) if end is None else end


def _first_offset(items: list[TransportEvent]) -> int | None:
    """Where the first message stands that came after we did."""
    offsets = (one.offset for item in items if isinstance(item, Delivered) for one in item.deliveries)
    return next(offsets, None)


def agreed_workload(plan: Plan, reference: str) -> Workload:
    """The workload of a plan: code is imported only under the name that the caller has agreed to.

    Raises:
        PlanError: the plan names another, or its model has other parameters here.
        WorkloadError: it cannot be loaded.
    """
    if plan.workload != reference:
        raise PlanError(
            f"workload: the plan's is {plan.workload!r}, not {reference!r}; give --workload {plan.workload}"
        )
    workload = load_workload(plan.workload, plan.workload_options)
    if layout_of(workload.model(), plan.float_buffers).digest().hex() != plan.layout_digest:
        raise PlanError(f"workload: the model of {plan.workload!r} has other parameters here than in the plan")
    return workload


def write_export(found: LoggedModel, workload: Workload, out: Path) -> tuple[Path, Path]:
    """Write the model with all its parameters and buffers, and the plan; each file is replaced in one step.

    Returns:
        The paths of model.safetensors, whose metadata say where it comes from, and plan.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = workload.model()
    plan, chain = found.plan, found.chain
    write_weights(model, found.weights, float_buffers=plan.float_buffers)
    metadata = {
        "federation": plan.federation,
        "federation_id": str(plan.federation_id),
        "plan_sha256": plan.digest().hex(),
        "model_version": str(chain.version),
        "weights_sha256": chain.weights_sha256.hex(),
        "log_head": chain.head.hex(),
    }
    save_model(model, out / MODEL_FILE, metadata)
    aside = (out / PLAN_FILE).with_suffix(".new")
    aside.write_text(json.dumps(plan.model_dump(mode="json"), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(out / PLAN_FILE)
    return out / MODEL_FILE, out / PLAN_FILE
