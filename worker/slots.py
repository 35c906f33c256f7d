"""How is a record replaced with one fsync, so that a crash leaves either the old one or the new one?

Two files hold it by turns. A record is written over the *older* file and synced; whatever a crash makes of that write,
the newer file still holds the last record whose writing returned. A record carries a rising sequence number and
a checksum over all of it, so that on opening the newest whole record wins and a torn one counts as never written.

A slot file: ``magic (8) | sequence (8) | header size (4) | payload size (8) | SHA-256 (32) | header (JSON) | payload``,
integers little endian. The header is padded with spaces, so that the payload begins at a multiple of 64 bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import StateError
from worker.storage import Storage

_MAGIC = b"CMTSLOT1"
_FIXED = struct.Struct("<8sQIQ32s")
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Slot:
    """One whole record: its number, its header and its payload (a view of the file that was read)."""

    sequence: int
    header: dict[str, Any]
    payload: memoryview


def encode_slot(sequence: int, header: Mapping[str, Any], payload: memoryview) -> tuple[bytes, memoryview]:
    """Encode a record as two parts: all before the payload, and the payload itself, not copied."""
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-(_FIXED.size + len(text)) % _ALIGNMENT)
    lengths = (sequence, len(text), payload.nbytes)
    return _FIXED.pack(_MAGIC, *lengths, _checksum(lengths, text, payload)) + text, payload


def decode_slot(content: bytes) -> Slot | None:
    """Decode a slot file; None if it does not hold a whole record (empty, torn, or bytes of two writes)."""
    if len(content) < _FIXED.size:
        return None
    magic, sequence, header_bytes, payload_bytes, checksum = _FIXED.unpack_from(content)
    header_end = _FIXED.size + header_bytes
    if magic != _MAGIC or header_end + payload_bytes > len(content):
        return None
    view = memoryview(content)
    text, payload = view[_FIXED.size : header_end], view[header_end : header_end + payload_bytes]
    if _checksum((sequence, header_bytes, payload_bytes), text, payload) != checksum:
        return None
    return Slot(sequence, json.loads(bytes(text)), payload)


class SlotPair:
    """The two files of one record in a storage."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.files = (f"{name}.0", f"{name}.1")
        self._storage = storage
        self._newest = 1
        self._sequence = 0

    def recover(self, counts: Callable[[Slot], bool] = lambda _: True) -> Slot | None:
        """Read both files and return the newest whole record, safe on the disk; None if there never was one.

        A record that `counts` denies was written ahead of something that never came: it is as if it were torn.

        Raises:
            StateError: a file is missing.
        """
        best: Slot | None = None
        for number, name in enumerate(self.files):
            content = self._storage.read(name)
            if content is None:
                raise StateError(f"{self._storage.location}: {name} is missing")
            # A process that was killed may have left bytes in the page cache only: what counts must survive power cuts.
            self._storage.sync(name)
            slot = decode_slot(content)
            if slot is not None and slot.sequence > self._sequence and counts(slot):
                best, self._newest, self._sequence = slot, number, slot.sequence
        return best

    def stage(self, header: Mapping[str, Any], payload: memoryview) -> str:
        """Write a record over the older file and return the file's name: sync it, then call `settle`."""
        name = self.files[1 - self._newest]
        self._storage.write(name, encode_slot(self._sequence + 1, header, payload))
        return name

    def settle(self) -> None:
        """Take note that the staged record is synced: it is the newest from now on."""
        self._newest = 1 - self._newest
        self._sequence += 1


def _checksum(lengths: tuple[int, int, int], header: bytes | memoryview, payload: memoryview) -> bytes:
    digest = hashlib.sha256(struct.pack("<QIQ", *lengths))
    digest.update(header)
    digest.update(payload)
    return digest.digest()
