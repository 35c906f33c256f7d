"""How long is an update of a million coordinates on its way into bytes and out again, beside Flower's, and how large?

"wire" is what Flower's figure is: words to messages, messages to words, with the signatures left out. "signed" has
them. "whole" is everything else that an update goes through: select, clip, round, pack; unpack, gate, scale back.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console

from coordinator.aggregator.gates import pass_gates
from shared.codec.coordinates import Coordinates, coordinate_count, select_coordinates
from shared.codec.flatten import FloatVector
from shared.codec.quantize import SumFormat, Words, open_mean, read_words
from shared.crypto.signing import SigningKey, VerificationCache
from shared.modellog.entries import cut
from shared.wire import messages
from shared.wire.framing import Opener, seal
from tests.bench.measure import Run, measure, peer, table
from worker.update import prepare_words

DIMENSION = 1_000_000
DENSITIES = (1.0, 0.1)
RECORDS_MAX = 100
OURS, SIGNED, WHOLE = "comitia, wire", "comitia, signed", "comitia, whole"
FLOWER, FLOWER_BARE, LIMIT = "flower, records", "flower, parameters", "one copy of the values"
FEDERATION = uuid.UUID(int=1)


def bench_codec(console: Console) -> None:
    """Print one table per density, and the bytes."""
    torch.set_num_threads(1)
    update = (np.random.default_rng(0).standard_normal(DIMENSION) * 1e-3).astype(np.float32)
    for density in DENSITIES:
        count = coordinate_count(DIMENSION, density)
        coordinates = None if density == 1.0 else select_coordinates(bytes(32), DIMENSION, count)
        form = SumFormat(count=count, bits=16, members=1, clipping_norm=2e-3 * math.sqrt(count))
        title = f"encode and decode an update: {DIMENSION:,} coordinates, density {density:g}, 16 bits"
        measured = measure(codec_paths(update, coordinates, form), turns=21)
        console.print(table(title, measured, ours=OURS, limit=LIMIT))
        ours = sum(len(frame) for frame in UNSIGNED.pack(words_of(update, coordinates, form)))
        flower = flower_bytes(update)
        told = "flower not installed" if flower is None else f"flower {flower:,}, {flower / ours:.1f} times as many"
        console.print(f"bytes: comitia {ours:,}; {told}")


@dataclass(frozen=True)
class Channel:
    """The real framing, with a key or with one that does nothing."""

    key: Any
    cache: Any

    def pack(self, words: Words) -> list[bytes]:
        """The frames of a client's words."""
        pieces = list(cut(words.data.cast("B")))
        return [
            seal(self._message(bytes(piece), part, len(pieces)), sender="c1", federation=FEDERATION, key=self.key)
            for part, piece in enumerate(pieces)
        ]

    def unpack(self, frames: Sequence[bytes]) -> bytes:
        """The words' bytes again."""
        opener = Opener(FEDERATION, lambda role, sender: self.key, self.cache)
        bodies = [opener.open(frame).message.body for frame in frames]  # type: ignore[attr-defined]
        return bodies[0] if len(bodies) == 1 else b"".join(bodies)

    def _message(self, body: bytes, part: int, parts: int) -> messages.Words:
        return messages.Words(draw=bytes(32), group=0, transcript=bytes(32), part=part, parts=parts, body=body)


class NoKey:
    """Signs with zeros, and verifies anything."""

    def sign(self, purpose: object, message: bytes) -> bytes:
        """64 zeros."""
        return bytes(64)

    def verify(self, key: object, purpose: object, signature: bytes, message: bytes) -> None:
        """Always."""


class EveryTime:
    """A cache that remembers nothing, so that each message costs its verification."""

    def verify(self, key: SigningKey, purpose: Any, signature: bytes, message: bytes) -> None:
        """Verify again."""
        VerificationCache(1).verify(key.public, purpose, signature, message)


UNSIGNED = Channel(NoKey(), NoKey())


def codec_paths(update: FloatVector, coordinates: Coordinates | None, form: SumFormat) -> dict[str, Run | None]:
    """All ways of one update."""
    words = words_of(update, coordinates, form)
    signed = Channel(SigningKey.from_seed(bytes(32)), EveryTime())
    return {
        OURS: lambda: read_words(UNSIGNED.unpack(UNSIGNED.pack(words)), form),
        SIGNED: lambda: read_words(signed.unpack(signed.pack(words)), form),
        WHOLE: lambda: opened(UNSIGNED.unpack(UNSIGNED.pack(words_of(update, coordinates, form))), form),
        FLOWER: flower_records(update),
        FLOWER_BARE: flower_parameters(update),
        LIMIT: update.copy,
    }


def words_of(update: FloatVector, coordinates: Coordinates | None, form: SumFormat) -> Words:
    """What a client sends."""
    source = np.random.default_rng(0)
    return prepare_words(update, coordinates, form, weight=1.0, metrics={}, source=source).words


def opened(body: bytes, form: SumFormat) -> FloatVector:
    """What the aggregator makes of it."""
    words = read_words(body, form)
    return open_mean(words, form, pass_gates(words, form, 1, RECORDS_MAX).weight)


def flower_records(update: FloatVector) -> Run | None:
    """Flower's messages: an array record in a record dictionary, by protobuf."""
    flower, serde = peer("flwr.common"), peer("flwr.common.serde")
    if flower is None or serde is None:
        return None

    def there_and_back() -> object:
        record = serde.recorddict_to_proto(flower.RecordDict({"arrays": flower.ArrayRecord([update])}))
        received = type(record).FromString(record.SerializeToString())
        return serde.recorddict_from_proto(received)["arrays"].to_numpy_ndarrays()

    return there_and_back


def flower_parameters(update: FloatVector) -> Run | None:
    """Flower's older parameters: an .npy file per array, without what it travels in."""
    flower = peer("flwr.common")
    if flower is None:
        return None
    return lambda: flower.parameters_to_ndarrays(flower.ndarrays_to_parameters([update]))


def flower_bytes(update: FloatVector) -> int | None:
    """Bytes of these files."""
    flower = peer("flwr.common")
    return None if flower is None else sum(len(one) for one in flower.ndarrays_to_parameters([update]).tensors)
