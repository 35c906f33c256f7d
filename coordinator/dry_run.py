"""What would a plan cost and bear? Everything that can be known before a federation exists.

Sizes on the wire are counted on sealed messages of the plan's own lengths. Memory counts vectors: neither the
interpreter, nor torch, nor the workload's data and activations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import safetensors.torch

from coordinator import sample_messages as samples
from coordinator.aggregator.server_step import ServerOptimizer
from coordinator.scheduler.clients import SILENT_INTERVALS
from coordinator.scheduler.full_pool import pool_size
from shared.attack_odds import odds_table
from shared.codec.quantize import METRIC_WORDS
from shared.codec.validation import is_validation_slot
from shared.crypto.draw import cut_groups
from shared.crypto.signing import SigningKey
from shared.effects import Note, note
from shared.modellog.listed import listed_size, worth_listing
from shared.plan import Plan
from shared.privacy.accountant import epsilon_of
from shared.wire.framing import pack_batches, seal
from shared.wire.log_messages import INLINE_BYTES_MAX, Entry, Piece
from shared.wire.messages import PIECE_BYTES_MAX, Message
from shared.wire.topology import Names, log_queue

FLOAT_BYTES = 4
SENDER = "client-001"
COORDINATOR_MODELS = 5
"""The present weights, the next ones, the evaluated ones; the model that evaluates and the one that goes to files. One
more where steering watches the clients: the version that they measured."""

WORKER_MODELS = 2
"""The present weights, and the next ones while an entry is applied."""

TRAINING_MODELS = 4
"""In the one training thread: the weights it began with, the model, its gradient, the update."""


RESTRICTED_REACH_MAX = 4.0
"""r * lr * local steps: all local steps go along the same few coordinates, and the server multiplies them by r.

On digits (12 clients, Dirichlet 0.5, full batches) 4 learned steadily, 4.8 swung by 10 points, and 8 diverged.
"""

RANDOM_DENSITY_MIN = 0.5
HOPELESS_NOISE = 10.0
"""Noise over signal in the mean of all clients above which a model was not seen to learn."""

CLIENTS_IN_A_SUM = 300
"""Below about so many in one sum, client-level noise for the usual epsilons drowned what was to be learned."""

DIRECTORY_BYTES = 390
DIRECTORY_CLIENT_BYTES = 105
"""About what a signed directory takes, and each client in it; names of usual length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The figures of one plan. Bytes are those of messages, without AMQP and TCP; durations are seconds.

    `update_bytes_up` is all that one client sends for one counted update: offer, words, and what a group of `members`
    takes beside them (`group_bytes`); `threshold` of these must answer. `run_bytes_log` leaves out draws, which are
    small. `validation_words` of an update's words say what the client measured of the model it received; one with
    fewer than `validation_records_min` records measures nothing. `attack_odds` says, by the number of attackers, how
    likely more than `trim` groups are attacked. The four figures of privacy are None where there is none: epsilon for
    one client, and the noise's norm over the signal's in the mean of a smallest group and of all. `warnings` are
    sentences about what will hardly work.
    """

    clients: int
    drawn: int
    dimension: int
    values_per_update: int
    bits: int
    validation_words: int
    validation_records_min: int | None
    clipping_norm: float
    update_bytes_up: int
    offer_bytes: int
    group_bytes: int
    dense_bytes_up: int
    change_bytes_down: int
    snapshot_bytes_down: int
    rounds: int
    run_bytes_up: int
    run_bytes_log: int
    log_stream_bytes_max: int
    coordinator_memory_bytes: int
    worker_memory_bytes: int
    seat_memory_bytes: int
    groups: int
    members: int
    threshold: int
    quorum: int
    min_offers: int
    attack_odds: dict[str, float]
    round_deadline_s: float
    group_step_s: float
    sums_deadline_s: float
    client_silent_s: float
    epsilon_round: float | None
    epsilon_run: float | None
    noise_over_signal_group: float | None
    noise_over_signal_aggregate: float | None
    warnings: tuple[str, ...]


def foresee(plan: Plan, clients: int) -> DryRun:
    """Work out what a plan means for a number of enrolled clients.

    Args:
        plan: a sound plan.
        clients: how many are enrolled and take part.

    Raises:
        PlanError: that many clients could never draw, or the server optimizer does not exist or refuses its options.
    """
    plan.check_clients(clients)
    sizes = _group_sizes(plan, clients)
    drawn, groups, members = sum(sizes), len(sizes), max(sizes)
    model_bytes = FLOAT_BYTES * plan.dimension
    server_vectors, own = _server_vectors(plan), plan.codec.selection == "top_k"
    share, watched = plan.evaluation.client_share, int(plan.steering.watch == "clients")
    offer_bytes, group_bytes, words_bytes, update_bytes = _bytes_up(plan, members)
    where, changed_bytes = _changed(plan, groups, server_vectors)
    change_bytes = _entry_bytes(samples.change(plan, groups, where), changed_bytes, plan)
    directory_bytes = DIRECTORY_BYTES + clients * DIRECTORY_CLIENT_BYTES
    snapshot_bytes = _entry_bytes(samples.snapshot(plan), model_bytes, plan)
    snapshot_bytes += _cut_bytes(directory_bytes, lambda body: Piece(body=body), plan)
    means = 1 if plan.aggregation.rule == "mean" else groups
    stream = log_queue(Names(plan.federation), model_bytes).arguments["x-max-length-bytes"]
    charge, delta = plan.charge_of_run(), plan.privacy.delta or 0.0
    noise = _noise_over_signal(plan, sizes)
    return DryRun(
        clients=clients,
        drawn=drawn,
        dimension=plan.dimension,
        values_per_update=plan.coordinate_count,
        bits=plan.bits,
        validation_words=METRIC_WORDS * sum(map(is_validation_slot, plan.metric_bounds)),
        validation_records_min=math.ceil(1.0 / share - 1e-9) if share else None,
        clipping_norm=plan.codec.clipping_norm,
        update_bytes_up=update_bytes,
        offer_bytes=offer_bytes,
        group_bytes=group_bytes,
        dense_bytes_up=model_bytes,
        change_bytes_down=change_bytes,
        snapshot_bytes_down=snapshot_bytes,
        rounds=plan.round.rounds,
        run_bytes_up=plan.round.rounds * drawn * update_bytes,
        run_bytes_log=plan.round.rounds * change_bytes + _snapshots(plan, changed_bytes) * snapshot_bytes,
        log_stream_bytes_max=int(stream),
        coordinator_memory_bytes=(COORDINATOR_MODELS + watched + server_vectors) * model_bytes
        + means * FLOAT_BYTES * (plan.dimension if own else plan.coordinate_count)
        + drawn * words_bytes,
        worker_memory_bytes=(WORKER_MODELS + TRAINING_MODELS) * model_bytes,
        seat_memory_bytes=(2 if own else 1) * model_bytes + words_bytes,
        groups=groups,
        members=members,
        threshold=plan.threshold(members),
        quorum=plan.quorum_of(groups),
        min_offers=plan.min_offers,
        attack_odds=odds_table(drawn, plan.group_size, plan.aggregation.trim),
        round_deadline_s=plan.round.round_deadline_s,
        group_step_s=plan.round.group_step_s,
        sums_deadline_s=plan.round.sums_deadline_s,
        client_silent_s=SILENT_INTERVALS * plan.round.status_interval_s,
        epsilon_round=None if charge is None else epsilon_of([charge], delta),
        epsilon_run=None if charge is None else epsilon_of(Counter({charge: plan.round.rounds}), delta),
        noise_over_signal_group=None if noise is None else noise[0],
        noise_over_signal_aggregate=None if noise is None else noise[1],
        warnings=_warnings(plan) if noise is None else _privacy_warnings(plan, noise[1], members),
    )


def _group_sizes(plan: Plan, clients: int) -> list[int]:
    """The sizes of a draw's groups, if all of these clients take part."""
    is_sync = plan.round.mode == "sync"
    drawn = min(clients, (plan.round.cohort_size or clients) if is_sync else pool_size(plan, clients))
    return [len(group) for group in cut_groups(drawn, plan.group_size)]


def _bytes_up(plan: Plan, members: int) -> tuple[int, int, int, int]:
    """What a member of the largest group sends: offer, the group's other messages, bare words, and all together."""
    words = plan.sum_format(plan.members_max, plan.codec.clipping_norm).length * plan.bits // 8 + plan.positions_bytes
    offer = _message_bytes(samples.offer(plan), plan)
    group = sum(_message_bytes(message, plan) for message in samples.group_replies(plan, members))
    return offer, group, words, offer + group + _cut_bytes(words, samples.words(members), plan)


def _changed(plan: Plan, groups: int, server_vectors: int) -> tuple[samples.Where, int]:
    """How a change entry says which coordinates it changes, and the bytes of what it carries."""
    if not server_vectors and plan.codec.selection != "top_k":
        where: samples.Where = "all" if plan.coordinate_count == plan.dimension else "round"
        return where, FLOAT_BYTES * plan.coordinate_count
    # Where every client chooses its own, at most all choices together change; that is what a first round looks like.
    count = plan.dimension if server_vectors else min(plan.dimension, groups * plan.coordinate_count)
    if not server_vectors and worth_listing(plan.dimension, count):
        return "listed", listed_size(plan.dimension, count)
    return "all", FLOAT_BYTES * plan.dimension


def _noise_over_signal(plan: Plan, sizes: list[int]) -> tuple[float, float] | None:
    """In the mean of a smallest group, and in that of all groups of these sizes; None without privacy."""
    if plan.record_noise is not None:
        sent, noise = plan.coordinate_count, plan.record_noise
        return noise.noise_over_signal(sent, plan.group_size), noise.noise_over_signal(sent, sum(sizes))
    if plan.client_noise is None:
        return None
    ratios = {size: plan.client_noise.noise_over_signal(size, plan.noising(size)) for size in set(sizes)}
    return ratios[min(sizes)], math.sqrt(math.fsum(ratios[size] ** 2 for size in sizes)) / len(sizes)


def privacy_notes(plan: Plan, clients: int) -> tuple[Note, ...]:
    """What a coordinator says of the plan's privacy when it starts: what it costs, then what will hardly work."""
    if plan.privacy.level == "off":
        return ()
    run = foresee(plan, clients)
    whom = "one record" if plan.privacy.level == "record" else "one client"
    text = (
        f"epsilon {run.epsilon_round:.3g} per round and {run.epsilon_run:.3g} after {run.rounds} rounds, at delta "
        f"{plan.privacy.delta:g}, for {whom}; noise over signal {run.noise_over_signal_group:.2g} in a group mean, "
        f"{run.noise_over_signal_aggregate:.2g} in that of all"
    )
    warnings = (note("plan_warning", "warning", text=warning) for warning in run.warnings)
    return (note("privacy_announced", text=text), *warnings)


def _privacy_warnings(plan: Plan, noise_over_signal: float, members: int) -> tuple[str, ...]:
    codec, warnings, by_record = plan.codec, [], plan.privacy.level == "record"
    if not by_record and members < CLIENTS_IN_A_SUM:
        warnings.append(
            f"privacy: hopeless: at the level 'client' a sum wants about {CLIENTS_IN_A_SUM} clients, and holds "
            f"{members}; each sum has all the noise, so make group_size larger, enroll more, or use 'record'"
        )
    if by_record and plan.round.mode == "async" and codec.density < 1.0:
        warnings.append(
            f"privacy: in the mode 'async' nobody knows while training which coordinates are sent, so at density "
            f"{codec.density:g} all are noised and few are sent; use codec.selection='dense', density=1"
        )
    elif by_record and codec.selection == "random" and codec.density <= RANDOM_DENSITY_MIN:
        warnings.append(
            f"privacy: codec.selection 'random' at density {codec.density:g} pays for noise on all coordinates and "
            "sends few; use 'restricted', which clips and noises only what is sent"
        )
    if noise_over_signal > HOPELESS_NOISE:
        warnings.append(
            f"privacy: in the mean of all clients the noise is {noise_over_signal:.1f} times the signal: hardly "
            "anything will be learned; take a larger epsilon, fewer rounds, or "
            + ("clients with more records" if by_record else "more clients in a sum")
        )
    return tuple(warnings)


def _warnings(plan: Plan) -> tuple[str, ...]:
    training = plan.training
    rate = training.optimizer.options.get("lr")
    if plan.codec.selection != "restricted" or training.optimizer.name != "SGD" or not isinstance(rate, int | float):
        return ()
    steps = training.local_epochs * math.ceil(plan.weight_records_max / training.batch_size)
    reach = plan.rescale * rate * steps
    if reach <= RESTRICTED_REACH_MAX:
        return ()
    return (
        f"restricted: rescale {plan.rescale:g} times lr {rate:g} times {steps} steps (at {plan.weight_records_max} "
        f"records) is {reach:.3g}, above {RESTRICTED_REACH_MAX:g}: training may diverge; take a lower lr, fewer local "
        "steps or a higher density",
    )


def _snapshots(plan: Plan, change_body_bytes: int) -> int:
    """Snapshots of a whole run: the first, the planned ones, and one whenever changes exceed the model."""
    snapshots, since = 1, 0
    for version in range(1, plan.round.rounds + 1):
        since += change_body_bytes
        if version % plan.round.snapshot_every == 0 or since > FLOAT_BYTES * plan.dimension:
            snapshots, since = snapshots + 1, 0
    return snapshots


def _server_vectors(plan: Plan) -> int:
    """Vectors of size d that the server optimizer needs for a step or keeps; if there are any, changes are dense."""
    choice, dimension = plan.aggregation.server_optimizer, 8
    optimizer = ServerOptimizer(choice.name, choice.options, dimension)
    if not optimizer.touches_all:
        return 0
    optimizer.step(np.zeros(dimension, np.float32), None, np.zeros(dimension, np.float32))
    state = safetensors.torch.load(optimizer.state_bytes())
    return 1 + sum(tensor.numel() == dimension for tensor in state.values())


_KEY = SigningKey.from_seed(bytes(32))


def _message_bytes(message: Message, plan: Plan) -> int:
    """Bytes of a broker message that holds only this one."""
    frame = seal(message, sender=SENDER, federation=plan.federation_id, key=_KEY)
    return sum(len(body) for body in pack_batches([frame]))


def _cut_bytes(body_bytes: int, message_of: Callable[[bytes], Message], plan: Plan) -> int:
    """Bytes of a body that is cut into pieces, each in a message of its own."""
    whole, rest = divmod(body_bytes, PIECE_BYTES_MAX)
    total = whole * _message_bytes(message_of(bytes(PIECE_BYTES_MAX)), plan) if whole else 0
    return total + (_message_bytes(message_of(bytes(rest)), plan) if rest else 0)


def _entry_bytes(entry: Entry, body_bytes: int, plan: Plan) -> int:
    """Bytes of an entry and its body, inline or in pieces."""
    if body_bytes <= INLINE_BYTES_MAX:
        return _message_bytes(entry.model_copy(update={"body": bytes(body_bytes)}), plan)
    pieces = (bytes(32),) * -(-body_bytes // PIECE_BYTES_MAX)
    manifest = _message_bytes(entry.model_copy(update={"pieces": pieces}), plan)
    return manifest + _cut_bytes(body_bytes, lambda body: Piece(body=body), plan)
