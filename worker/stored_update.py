"""What is a finished update that waits on the disk: its values, what they were made from, and their form in a slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType

import numpy as np
from numpy.typing import NDArray

UpdateId = NewType("UpdateId", int)
"""Names one update of one client: the offer counter it was saved under, so ids rise."""


class TaskId(NamedTuple):
    """Tasks are ordered by model version, then attempt."""

    version: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMeta:
    """What an update was made from; `trained_head` is the hash of the log entry that made the trained version."""

    task: TaskId
    trained_head: bytes
    num_examples: int
    metrics: Mapping[str, float]

    def encode(self) -> dict[str, Any]:
        """The fields of a slot's header, apart from the task, which every slot has."""
        return {
            "trained_head": self.trained_head.hex(),
            "num_examples": int(self.num_examples),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredUpdate:
    """A finished update on the disk. `values`: float32, shape (d,), read-only."""

    update_id: UpdateId
    meta: UpdateMeta
    values: NDArray[np.float32]

    def payload(self) -> memoryview:
        """The values as float32, little endian: 4·d bytes, a view of them where the machine is little endian too."""
        return self.values.astype("<f4", copy=False).data.cast("B")


def decode_update(header: Mapping[str, Any], payload: memoryview) -> StoredUpdate:
    """Decode a slot that passed its checksum; the values are a read-only view of `payload`."""
    meta = UpdateMeta(
        task=TaskId(*header["task"]),
        trained_head=bytes.fromhex(header["trained_head"]),
        num_examples=header["num_examples"],
        metrics=header["metrics"],
    )
    values = np.frombuffer(payload, dtype="<f4").astype(np.float32, copy=False)
    return StoredUpdate(update_id=UpdateId(header["counter"]), meta=meta, values=values)
