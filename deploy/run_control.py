"""How does somebody at another terminal steer a run? A signed command to the coordinator, which answers in the log.

The log is followed from its beginning, as every worker does, until the entry that repeats the command's time of issue
has joined the chain: what is reported has happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.crypto.signing import SigningKey, VerificationCache
from shared.errors import BrokerUnavailable, ComitiaError
from shared.identity import COORDINATOR
from shared.inbox import Inbox
from shared.incoming import keys_of
from shared.membership import Membership
from shared.modellog.reader import Accepted, LogReader
from shared.transport.port import ConsumerWaiting, Delivered, Disconnected, Refused, Sink, Transport, TransportEvent
from shared.wire.framing import Opener, pack_batches, seal
from shared.wire.log_messages import RunEntry
from shared.wire.messages import Control, RunState
from shared.wire.topology import Names, log_queue

LOG_PREFETCH = 32


class NoAnswer(ComitiaError):
    """No coordinator has obeyed in time."""

    exit_code = 1


Connect = Callable[[Sink, str], Transport]
"""Makes a transport that gives its events to a sink, under a name for the broker."""


def steer(
    members: Membership, key: SigningKey, connect: Connect, run: RunState, *, issued_us: int, timeout_s: float
) -> RunEntry:
    """Send a command and wait until the run obeys.

    Args:
        members: of the federation.
        key: the coordinator's.
        connect: reaches the broker, as a user that may write to `up` under the operator's key, and read the log.
        run: what is wanted.
        issued_us: the wall clock (microseconds since 1970).
        timeout_s: how long to wait for the broker's log, and then for the coordinator.

    Raises:
        NoAnswer: no coordinator obeyed.
        BrokerUnavailable: no broker.
    """
    directory = members.directory
    names, inbox = Names(directory.federation), Inbox[TransportEvent]()
    transport = connect(inbox.put, f"{directory.federation}-operator")
    try:
        transport.connect()
        # Before the command leaves: its answer cannot be missed.
        transport.consume(log_queue(names, 0), prefetch=LOG_PREFETCH, start="first")
        frame = seal(
            Control(run=run, issued_us=issued_us), sender=COORDINATOR, federation=directory.federation_id, key=key
        )
        for body in pack_batches([frame]):
            transport.publish(names.up, names.operator_key, body)
        log = LogReader(Opener(directory.federation_id, keys_of(members), VerificationCache()), members)
        return _await_entry(log, transport, inbox, issued_us, timeout_s)
    finally:
        transport.close()


def _await_entry(
    log: LogReader, transport: Transport, inbox: Inbox[TransportEvent], issued_us: int, timeout_s: float
) -> RunEntry:
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        for item in inbox.take(left):
            match item:
                case Delivered(_, deliveries):
                    for delivery in deliveries:
                        assert delivery.offset is not None
                        for event in log.feed(delivery.offset, delivery.body):
                            match event:
                                case Accepted(entry=RunEntry(issued_us=theirs) as entry) if theirs == issued_us:
                                    return entry
                        transport.settle(delivery)
                case ConsumerWaiting(queue, reason):
                    raise NoAnswer(f"{queue} cannot be read: {reason}; has a coordinator of this federation started?")
                case Refused(_, _, reason):
                    raise BrokerUnavailable(f"the broker does not take the command: {reason}")
                case Disconnected(reason):
                    raise BrokerUnavailable(f"the connection was lost: {reason}")
    raise NoAnswer(
        f"no coordinator has obeyed within {timeout_s:g} s. One that starts within a minute of the command still will; "
        "one that refuses it says why in its log (the clocks of both machines must agree within a minute)"
    )
