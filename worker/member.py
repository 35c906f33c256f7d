"""What does a member do with the roster of its group? It checks it, and makes the words that it is bound to then.

Everything that the words depend on (coordinates, clipping norm, scale, threshold) is computed here from plan and log;
no message decides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from shared.codec.positions import encode_positions, largest
from shared.codec.quantize import UniformSource
from shared.crypto import merkle
from shared.crypto.draw import group_leaf
from shared.errors import RefusalReason, RemoteProtocolError
from shared.modellog.chain import ChainState
from shared.modellog.entries import cut
from shared.modellog.reader import LogReader
from shared.rounds import ground_of, transcript_of
from shared.wire.messages import PIECE_BYTES_MAX, Group, Message, Roster, Words
from worker.feedback import SentValues, residual_after
from worker.stored_update import StoredUpdate
from worker.update import Encode, PreparedUpdate


@dataclass(frozen=True, slots=True)
class Bound:
    """The group that a client's words were made for, and their frames: a repeat is answered with the same bytes."""

    draw: bytes
    group: Group
    frames: tuple[bytes, ...]


def check_roster(roster: Roster, chain: ChainState, client: str, offer: bytes | None) -> None:
    """Return if this roster is a group of the open draw in which `client` has a place.

    Args:
        roster: of the draw that the log has accepted last.
        chain: our log.
        client: who asks.
        offer: digest of its open offer, None if it has none.

    Raises:
        RemoteProtocolError: it is not; the reason says why.
    """
    draw, group = chain.draw, roster.group
    assert draw is not None
    if roster.version != chain.version or roster.groups != draw.groups:
        raise RemoteProtocolError(RefusalReason.WRONG_PARENT, "the roster contradicts its draw")
    if len(group.members) != 1:
        raise RemoteProtocolError(RefusalReason.POLICY, f"a group of {len(group.members)}: only 1 is supported")
    leaf = group_leaf(group.index, [(member.client, member.offer) for member in group.members])
    merkle.verify_path(draw.root, leaf, group.index, draw.groups, group.path)
    mine = [member for member in group.members if member.client == client]
    if not mine:
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, "the roster is another client's")
    if offer is None:
        raise RemoteProtocolError(RefusalReason.STALE, "no offer of this client is open")
    if mine[0].offer != offer:
        raise RemoteProtocolError(RefusalReason.STALE, "the roster names another offer of this client")


def make_words(
    roster: Roster,
    log: LogReader,
    update: StoredUpdate,
    seal: Callable[[Message], bytes],
    rounding: UniformSource,
    encode: Encode,
) -> tuple[Bound, PreparedUpdate]:
    """Encode an update for a checked roster.

    Args:
        roster: passed `check_roster`.
        log: plan, directory, draw and coordinates of the round.
        update: what is to be spent; under `top_k` its values are those of `worker.feedback.owed`.
        seal: the client's signature.
        rounding: randomness of stochastic rounding.
        encode: makes the words.

    Returns:
        The words' frames, and what had to be cut from the update.

    Raises:
        WorkloadError: the update is not finite, or lacks a metric.
    """
    assert log.plan is not None
    assert log.chain is not None
    plan, chain, group = log.plan, log.chain, roster.group
    transcript = transcript_of(ground_of(log), roster.draw, group.index, chain.version, group.members)
    own = plan.codec.selection == "top_k"
    coordinates = largest(update.values, plan.coordinate_count) if own else log.coordinates
    form = plan.sum_format(len(group.members), chain.clipping_norm)
    weight = min(1.0, update.meta.num_examples / plan.weight_records_max)
    prepared = encode(update.values, coordinates, form, weight=weight, metrics=update.meta.metrics, source=rounding)
    body = prepared.words.data.cast("B")
    if own:
        assert coordinates is not None
        body = memoryview(b"".join((body, encode_positions(coordinates, plan.dimension))))
        sent = SentValues(coordinates, prepared.words, prepared.norm, weight)
        prepared = replace(prepared, residual=residual_after(update.values, sent, form))
    frames = tuple(seal(words) for words in _pieces(roster, transcript, body))
    return Bound(roster.draw, group, frames), prepared


def _pieces(roster: Roster, transcript: bytes, view: memoryview) -> Iterator[Words]:
    parts = -(-view.nbytes // PIECE_BYTES_MAX)
    for part, piece in enumerate(cut(view)):
        yield Words(
            draw=roster.draw,
            group=roster.group.index,
            transcript=transcript,
            part=part,
            parts=parts,
            body=bytes(piece),
        )
