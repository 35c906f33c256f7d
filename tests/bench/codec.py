"""How long is an update of a million coordinates on its way into bytes and out again, beside Flower's, and how large?

"wire" is what Flower's figures are: words to messages, messages to words, with the signatures left out. "signed" has
them. "whole" is everything else that an update goes through: select, clip, round, pack; unpack, gate, scale back.

Flower has three ways of its own: "message" is what its clients really send (every array an object named by its SHA-256,
in a protobuf request of its own), "record" the same arrays in one protobuf message without hashes, "parameters" the
older .npy files without what they travel in.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coordinator.aggregator.gates import pass_gates
from shared.codec.coordinates import Coordinates, coordinate_count, select_coordinates
from shared.codec.flatten import FloatVector
from shared.codec.quantize import SumFormat, Words, open_mean, read_words
from shared.crypto.signing import SigningKey, VerificationCache
from shared.wire import group_messages
from shared.wire.framing import Opener, pack_batches, seal
from shared.wire.pieces import PieceCollector
from tests.bench.measure import HotPath, Row, Run, peer
from worker.session import words_of
from worker.update import prepare_words

DIMENSION = 1_000_000
DENSITIES = (1.0, 0.1)
RECORDS_MAX = 100
TURNS = 21
FLOWER, FLOWER_RECORD, FLOWER_PARAMETERS = "flower, message", "flower, record", "flower, parameters"
LIMIT = "one copy of the words"
FEDERATION = uuid.UUID(int=1)


def hot_paths() -> Iterator[HotPath]:
    """An update's ways at each density; Flower has but the one where everything is sent."""
    update = made_up()
    for density in DENSITIES:
        coordinates, form = what_is_sent(density)
        words = quantized(update, coordinates, form)
        signed = Channel(SigningKey.from_seed(bytes(32)), EveryTime())
        title = f"density {density:g}, d = 1e6"
        yield HotPath(
            name=f"encode + decode, wire, {title}",
            ours=lambda words=words, form=form: UNSIGNED.there_and_back(words, form),
            peers={
                FLOWER: flower_message(update),
                FLOWER_RECORD: flower_record(update),
                FLOWER_PARAMETERS: flower_parameters(update),
            },
            limit_name=LIMIT,
            limit=words.copy,
            wanted={FLOWER: 10.0},
            turns=TURNS,
        )
        yield HotPath(
            name=f"encode + decode, signed, {title}",
            ours=lambda words=words, form=form, signed=signed: signed.there_and_back(words, form),
            peers={FLOWER: flower_message(update)},
            limit_name=LIMIT,
            limit=words.copy,
            turns=TURNS,
        )
        yield HotPath(
            name=f"update to words and back, whole, {title}",
            ours=lambda coordinates=coordinates, form=form: opened(
                UNSIGNED.there_and_back(quantized(update, coordinates, form), form), form
            ),
            limit_name="one read of the update",
            limit=update.max,
            turns=TURNS,
        )


def byte_rows() -> Iterator[Row]:
    """How many bytes an update takes in the broker's messages, signatures and all, beside its words alone."""
    update = made_up()
    for density in DENSITIES:
        coordinates, form = what_is_sent(density)
        words = quantized(update, coordinates, form)
        signed = Channel(SigningKey.from_seed(bytes(32)), EveryTime())
        ours = sum(len(batch) for batch in pack_batches(signed.pack(words)))
        for name, count in (
            (FLOWER, flower_message_bytes(update)),
            (FLOWER_PARAMETERS, flower_parameter_bytes(update)),
        ):
            yield Row(
                path=f"bytes of an update, density {density:g}, d = 1e6",
                unit="bytes",
                ours=ours,
                peer_name=name,
                peer=count,
                wanted=18.0 if density == 0.1 else None,
                limit_name="its words alone",
                limit=words.nbytes,
            )


def made_up() -> FloatVector:
    """An update as it might be."""
    return (np.random.default_rng(0).standard_normal(DIMENSION) * 1e-3).astype(np.float32)


def what_is_sent(density: float) -> tuple[Coordinates | None, SumFormat]:
    """Where, and how."""
    count = coordinate_count(DIMENSION, density)
    coordinates = None if density == 1.0 else select_coordinates(bytes(32), DIMENSION, count)
    return coordinates, SumFormat(count=count, bits=16, members=1, clipping_norm=2e-3 * math.sqrt(count))


@dataclass(frozen=True)
class Channel:
    """The real framing, with a key or with one that does nothing."""

    key: Any
    cache: Any

    def pack(self, words: Words) -> list[bytes]:
        """The frames of a client's words, as its worker makes them."""
        pieces = words_of(bytes(32), b"\1", words.data.cast("B"))
        return [seal(piece, sender="c1", federation=FEDERATION, key=self.key) for piece in pieces]

    def unpack(self, frames: Sequence[bytes], size: int) -> memoryview:
        """The words' bytes again, as a stage puts them together."""
        opener = Opener(FEDERATION, lambda role, sender: self.key, self.cache)
        collector = PieceCollector(size)
        for frame in frames:
            message = opener.open(frame).message
            assert isinstance(message, group_messages.Words)
            collector.put(message.part, message.parts, message.body)
        assert collector.complete
        return collector.buffer

    def there_and_back(self, words: Words, form: SumFormat) -> Words:
        """Words that have travelled."""
        return read_words(self.unpack(self.pack(words), words.nbytes), form)


class NoKey:
    """Signs with zeros, and verifies anything."""

    def sign(self, purpose: object, *message: bytes) -> bytes:
        """64 zeros."""
        return bytes(64)

    def verify(self, key: object, purpose: object, signature: bytes, *message: bytes) -> None:
        """Always."""


class EveryTime:
    """A cache that remembers nothing, so that each message costs its verification."""

    def verify(self, key: SigningKey, purpose: Any, signature: bytes, *message: bytes) -> None:
        """Verify again."""
        VerificationCache(1).verify(key.public, purpose, signature, *message)


UNSIGNED = Channel(NoKey(), NoKey())


def quantized(update: FloatVector, coordinates: Coordinates | None, form: SumFormat) -> Words:
    """What a client sends."""
    source = np.random.default_rng(0)
    return prepare_words(update, coordinates, form, weight=1.0, metrics={}, source=source).words


def opened(words: Words, form: SumFormat) -> FloatVector:
    """What the aggregator makes of them."""
    return open_mean(words, form, pass_gates(words, form, 1, RECORDS_MAX).weight)


def flower_message(update: FloatVector) -> Run | None:
    """What a Flower client does with its arrays before they leave it, and the server with what comes."""
    travel = flower_travel()
    if travel is None:
        return None

    def there_and_back() -> object:
        return travel(update)[0]["arrays"].to_numpy_ndarrays()

    return there_and_back


def flower_message_bytes(update: FloatVector) -> int | None:
    """Bytes of these requests."""
    travel = flower_travel()
    return None if travel is None else travel(update)[1]


def flower_travel() -> Callable[[FloatVector], tuple[Any, int]] | None:
    """A message's content into objects, each in a request of its own, and back; the bytes of the requests."""
    app, request = peer("flwr.app"), peer("flwr.proto.message_pb2")
    objects, contents = (peer(f"flwr.supercore.inflatable.inflatable_{name}") for name in ("object", "utils"))
    if app is None or request is None or objects is None or contents is None:
        return None

    def travel(update: FloatVector) -> tuple[Any, int]:
        record, arrived, size = app.RecordDict({"arrays": app.ArrayRecord([update])}), {}, 0
        with objects.no_object_id_recompute():
            for name, item in objects.get_all_nested_objects(record).items():
                push = request.PushObjectRequest(object_id=name, object_content=item.deflate())
                sent = push.SerializeToString(deterministic=True)
                size += len(sent)
                received = request.PushObjectRequest.FromString(sent)
                arrived[received.object_id] = received.object_content
            root = record.object_id
        return contents.inflate_object_from_contents(root, arrived), size

    return travel


def flower_record(update: FloatVector) -> Run | None:
    """An array record in a record dictionary, by protobuf."""
    flower, serde = peer("flwr.common"), peer("flwr.common.serde")
    if flower is None or serde is None:
        return None

    def there_and_back() -> object:
        record = serde.recorddict_to_proto(flower.RecordDict({"arrays": flower.ArrayRecord([update])}))
        received = type(record).FromString(record.SerializeToString())
        return serde.recorddict_from_proto(received)["arrays"].to_numpy_ndarrays()

    return there_and_back


def flower_parameters(update: FloatVector) -> Run | None:
    """An .npy file per array, without what it travels in."""
    flower = peer("flwr.common")
    if flower is None:
        return None
    return lambda: flower.parameters_to_ndarrays(flower.ndarrays_to_parameters([update]))


def flower_parameter_bytes(update: FloatVector) -> int | None:
    """Bytes of these files."""
    flower = peer("flwr.common")
    return None if flower is None else sum(len(one) for one in flower.ndarrays_to_parameters([update]).tensors)
