"""What has this client spent? The ledger's records, and how its file shows that none was lost, changed or added.

A record says what left, when, and what it costs: an update that was spent, or a training run that failed, since also
that it failed says something about the data. Records name their format; those of format 1, which knew neither costs
nor times, are still read.

The file only grows. A *frame* holds all that one fsync made true: ``length (4) | ~length (4) | SHA-256 (32) | body``,
lengths little endian. The body is a JSON list of records, and the hash covers the hash of the frame before, so that
frames can be neither exchanged nor left out. Only the last frame can be torn, since none is appended before the one
before it is synced.

Everything else is damage, and is never repaired by guessing: a frame that is bad and has another one behind it, or
that lies before an *anchor*. An anchor is a position and the chain's hash there, written elsewhere when the ledger was
known to be synced so far: it also gives away a ledger that was cut, replaced or taken from a backup.

This module is pure: it works on bytes, and `worker.state` reads, appends and syncs them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shared.errors import StateError
from shared.privacy.charges import Charge, ClientCharge, RecordCharge

FRAME_BYTES_MAX = 1 << 16
"""Upper bound of one frame's body; a spending update takes about 250 bytes."""

_LENGTHS = struct.Struct("<II")
_FRAME_HEAD_BYTES = _LENGTHS.size + hashlib.sha256().digest_size
_GENESIS = hashlib.sha256(b"comitia/1/ledger").digest()
_FORMAT = 2
_UNITS: dict[str, type[Charge]] = {"record": RecordCharge, "client": ClientCharge}


@dataclass(frozen=True, slots=True)
class SpentMark:
    """Update `update` leaves: it is never sent or masked again. `counter` is the client's counter from then on.

    `at_us`: wall clock (microseconds since 1970), 0 if unknown. `charge`: None if it was sent without noise.
    """

    update: int
    counter: int
    version: int
    attempt: int
    at_us: int = 0
    charge: Charge | None = None


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A training run for this version and attempt failed, or its update cannot be sent; fields as in `SpentMark`."""

    counter: int
    version: int
    attempt: int
    at_us: int
    charge: Charge


LedgerRecord = SpentMark | FailedRun
_KINDS: dict[str, type[LedgerRecord]] = {"spent": SpentMark, "failed": FailedRun}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class LedgerEnd:
    """A position in the file, and the chain's hash there: what the next frame goes on from, and what an anchor is."""

    position: int = 0
    chain: bytes = _GENESIS


def charges_of(records: Iterable[LedgerRecord]) -> list[Charge]:
    """What records cost, oldest first; those without noise are left out."""
    return [record.charge for record in records if record.charge is not None]


def encode_frame(end: LedgerEnd, records: Sequence[LedgerRecord]) -> tuple[bytes, LedgerEnd]:
    """Encode records as the next frame; returns its bytes, and the end behind it."""
    body = json.dumps([_fields(record) for record in records], separators=(",", ":")).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise ValueError(f"a ledger frame of {len(body)} bytes passes the limit of {FRAME_BYTES_MAX}")
    chain = _chain(end.chain, body)
    frame = _LENGTHS.pack(len(body), len(body) ^ 0xFFFFFFFF) + chain + body
    return frame, LedgerEnd(end.position + len(frame), chain)


def read_ledger(content: bytes, anchor: LedgerEnd) -> tuple[list[LedgerRecord], LedgerEnd]:
    """Check a ledger file and decode its records.

    Args:
        content: the whole file.
        anchor: the furthest end that is known to have been synced; `LedgerEnd()` if none is.

    Returns:
        All records, oldest first, and the end behind the last whole frame. Bytes behind that end are a torn frame,
        whose sync never returned: cut them off before appending.

    Raises:
        StateError: the file is damaged.
    """
    bodies: list[bytes] = []
    end = LedgerEnd()
    anchored = anchor.position == 0
    while end.position < len(content):
        frame = _frame_at(content, end)
        if frame is None:
            break
        body, end = frame
        bodies.append(body)
        anchored = anchored or end == anchor
    if not anchored:
        raise StateError(f"the ledger's first {anchor.position} bytes are not those that were synced")
    return _decode(bodies), end


def _frame_at(content: bytes, end: LedgerEnd) -> tuple[bytes, LedgerEnd] | None:
    start = end.position + _FRAME_HEAD_BYTES
    if start > len(content):
        return None
    length, inverse = _LENGTHS.unpack_from(content, end.position)
    stop = start + length
    whole = length ^ inverse == 0xFFFFFFFF and length <= FRAME_BYTES_MAX and stop <= len(content)
    body = content[start:stop] if whole else b""
    chain = content[end.position + _LENGTHS.size : start]
    if whole and chain == _chain(end.chain, body):
        return body, LedgerEnd(stop, chain)
    # Bad. The last frame may be: it was torn. Whatever reaches further than one frame was synced once.
    if (whole and stop < len(content)) or len(content) - end.position > _FRAME_HEAD_BYTES + FRAME_BYTES_MAX:
        raise StateError(f"the ledger is damaged at byte {end.position}")
    return None


def _fields(record: LedgerRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": _NAMES[type(record)], "format": _FORMAT} | asdict(record)
    if record.charge is not None:
        unit = next(name for name, kind in _UNITS.items() if isinstance(record.charge, kind))
        fields["charge"] |= {"unit": unit}
    return fields


def _decode(bodies: Sequence[bytes]) -> list[LedgerRecord]:
    # One parse for all frames: a hundred thousand of them open in a fraction of a second.
    frames: list[list[dict[str, Any]]] = json.loads(b"[" + b",".join(bodies) + b"]")
    # Most records cost the same: equal charges become one object, which is quick to count.
    known: dict[tuple[object, ...], Charge] = {}
    try:
        return [_record(fields, known) for frame in frames for fields in frame]
    except (KeyError, TypeError) as error:
        text = "the ledger holds a record that this release does not know; use the newer release"
        raise StateError(text) from error


def _record(fields: Mapping[str, Any], known: dict[tuple[object, ...], Charge]) -> LedgerRecord:
    """
    Raises:
        KeyError, TypeError: it has another form than those that we know.
    """
    rest = dict(fields)
    kind, form = _KINDS[rest.pop("kind")], rest.pop("format", 1)
    if form not in (1, _FORMAT):
        raise KeyError(form)
    charge = rest.get("charge")
    if charge is not None:
        values = tuple(charge.values())
        if values not in known:
            known[values] = _UNITS[charge.pop("unit")](**charge)
        rest["charge"] = known[values]
    return kind(**rest)


def _chain(previous: bytes, body: bytes) -> bytes:
    return hashlib.sha256(previous + body).digest()
