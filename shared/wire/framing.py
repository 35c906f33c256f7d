"""How a message becomes bytes: sealed (msgpack inside a fixed, signed header), opened, and put together in batches.

A frame is ``magic (3) | wire version (1) | kind (1) | sender length (1) | sender | signature (64) | msgpack payload``.
The header has fixed fields, so that size, kind, sender and signature are checked before anything of the
payload is decoded. The signature covers the federation, kind and sender together with the payload *as received*.
A broker message is a batch: frames one after the other, each behind its length (4 bytes, little endian).

This module is the only user of msgpack.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

import msgpack
from pydantic import ValidationError

from shared.crypto.signing import Purpose, SigningKey, VerificationCache, VerifyingKey
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError
from shared.identity import COORDINATOR
from shared.wire.messages import FRAME_BYTES_MAX, GROUPS_MAX, Kind, Message, Role
from shared.wire.registry import MESSAGE_TYPES

MAGIC = b"CMT"
WIRE_VERSION = 1
BATCH_BYTES_MAX = FRAME_BYTES_MAX + 4
"""A batch is closed before it passes this size; a single frame always fits."""

_HEADER = struct.Struct("<3sBBB")
_SIGNATURE_BYTES = 64
_LENGTH = struct.Struct("<I")
_LARGE = struct.Struct(">BI")  # how msgpack begins bytes of 2**16 and more ("bin 32")
_LARGE_MARK = 0xC6
_LARGE_BYTES = 1 << 16

FRAME_BYTES_MIN = _HEADER.size + 1 + _SIGNATURE_BYTES
"""A shorter frame holds no sender and signature; a batch of such frames would cost more to refuse than to send."""

# What no message needs is not decoded: containers may take thousands of times the memory of their encoded bytes.
_FIELDS_MAX = 32
_PLACE_CHARS_MAX = 80
_ITEMS_MAX = {Role.CLIENT: 0, Role.COORDINATOR: GROUPS_MAX}

KeyOf = Callable[[Role, str], VerifyingKey]
"""Finds the key of a sender in a role; raises `RemoteProtocolError` (unknown sender)."""


@dataclass(frozen=True)
class Opened:
    """A verified, decoded message, who signed it, and the frame it came in."""

    message: Message
    sender: str
    frame: bytes

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the frame: the message's name in other messages (32 bytes)."""
        return digest_of(self.frame)


def digest_of(frame: bytes) -> bytes:
    """SHA-256 of one frame: an offer's digest, an entry's hash."""
    return hashlib.sha256(frame).digest()


def seal(
    message: Message, *, sender: str, federation: UUID, key: SigningKey, made: VerificationCache | None = None
) -> bytes:
    """Encode and sign one message.

    Args:
        made: takes the signature as verified, for a frame that comes back to this process inside another message.

    Returns:
        The frame. The same message, sender and key give the same bytes (Ed25519 is deterministic).

    Raises:
        LocalProtocolError: the frame would be too large for anybody to open.
    """
    name = sender.encode()
    payload = _encode(message.model_dump())
    context = _context(message.kind, name, federation)
    signature = key.sign(Purpose.MESSAGE, context, *payload)
    if made is not None:
        made.made(key, Purpose.MESSAGE, signature, context, *payload)
    header = _HEADER.pack(MAGIC, WIRE_VERSION, message.kind, len(name))
    frame = b"".join((header, name, signature, *payload))
    if len(frame) > FRAME_BYTES_MAX:
        raise LocalProtocolError(f"{type(message).__name__} of {len(frame)} bytes does not fit a frame")
    return frame


@dataclass(frozen=True)
class Opener:
    """Opens frames of one federation: size, header, sender and signature first, then the payload.

    `cache` remembers signatures already verified: repeats of a message cost a hash.
    """

    federation: UUID
    key_of: KeyOf
    cache: VerificationCache

    def open(self, frame: bytes) -> Opened:
        """Verify and decode one frame.

        Raises:
            RemoteProtocolError: oversized, malformed, of another wire version or kind, from an unknown sender,
                with a bad signature, or with a field outside its bounds.
        """
        if len(frame) > FRAME_BYTES_MAX:
            raise RemoteProtocolError(RefusalReason.OVERSIZED, f"frame of {len(frame)} bytes")
        message_type, sender, body_at = _parse_header(frame)
        payload = memoryview(frame)[body_at + _SIGNATURE_BYTES :]
        key = self.key_of(message_type.signed_by, sender)
        context = _context(message_type.kind, sender.encode(), self.federation)
        self.cache.verify(key, Purpose.MESSAGE, frame[body_at : body_at + _SIGNATURE_BYTES], context, payload)
        return Opened(_decode(message_type, payload), sender, frame)


def pack_batches(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Join frames into broker messages of at most `BATCH_BYTES_MAX` bytes, in their order."""
    parts: list[bytes] = []
    size = 0
    for frame in frames:
        if parts and size + _LENGTH.size + len(frame) > BATCH_BYTES_MAX:
            yield b"".join(parts)
            parts, size = [], 0
        parts += (_LENGTH.pack(len(frame)), frame)
        size += _LENGTH.size + len(frame)
    if parts:
        yield b"".join(parts)


def split_batch(body: bytes) -> list[bytes]:
    """Cut a broker message into its frames.

    Raises:
        RemoteProtocolError: larger than `BATCH_BYTES_MAX`, empty, or a length that cannot be or does not fit.
    """
    if len(body) > BATCH_BYTES_MAX:
        raise RemoteProtocolError(RefusalReason.OVERSIZED, f"batch of {len(body)} bytes")
    frames = []
    at = 0
    while at + _LENGTH.size <= len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if length < FRAME_BYTES_MIN or at + length > len(body):
            raise RemoteProtocolError(RefusalReason.MALFORMED, f"frame of {length} bytes in {len(body) - at}")
        frames.append(body[at : at + length])
        at += length
    if at != len(body) or not frames:
        raise RemoteProtocolError(RefusalReason.MALFORMED, f"batch of {len(body)} bytes ends inside a frame")
    return frames


def encode_fields(fields: Any) -> bytes:
    """Encode what a process writes for itself: maps, sequences, numbers, strings and bytes; without a signature."""
    encoded: bytes = msgpack.packb(fields, use_bin_type=True)
    return encoded


def decode_fields(data: bytes) -> Any:
    """What `encode_fields` returned these bytes for; sequences come back as tuples.

    Raises:
        RemoteProtocolError: the bytes are no such encoding (`MALFORMED`).
    """
    try:
        return msgpack.unpackb(data, raw=False, use_list=False)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(RefusalReason.MALFORMED, "not msgpack") from error


def _context(kind: Kind, sender: bytes, federation: UUID) -> bytes:
    return federation.bytes + bytes((WIRE_VERSION, kind, len(sender))) + sender


def _parse_header(frame: bytes) -> tuple[type[Message], str, int]:
    if len(frame) < _HEADER.size:
        raise RemoteProtocolError(RefusalReason.MALFORMED, f"frame of {len(frame)} bytes")
    magic, version, kind, name_length = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise RemoteProtocolError(RefusalReason.MALFORMED, "not a Comitia frame")
    if version != WIRE_VERSION:
        raise RemoteProtocolError(RefusalReason.WRONG_VERSION, f"wire version {version}, ours is {WIRE_VERSION}")
    message_type = MESSAGE_TYPES.get(kind)
    if message_type is None:
        raise RemoteProtocolError(RefusalReason.UNKNOWN_KIND, f"kind {kind}")
    body_at = _HEADER.size + name_length
    if len(frame) < body_at + _SIGNATURE_BYTES:
        raise RemoteProtocolError(RefusalReason.MALFORMED, f"frame of {len(frame)} bytes ends in its header")
    try:
        sender = frame[_HEADER.size : body_at].decode("ascii")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(RefusalReason.MALFORMED, "sender is not ASCII") from error
    if (message_type.signed_by is Role.COORDINATOR) != (sender == COORDINATOR):
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, f"{message_type.__name__} from {sender!r}")
    return message_type, sender, body_at


def _encode(fields: dict[str, object]) -> list[bytes]:
    """The msgpack of a message in pieces to be joined, so that a large body is copied once only, into its frame."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(len(fields))
    pieces: list[bytes] = []
    for name, value in fields.items():
        packer.pack(name)
        if isinstance(value, bytes) and len(value) >= _LARGE_BYTES:
            pieces += (packer.bytes() + _LARGE.pack(_LARGE_MARK, len(value)), value)
            packer.reset()
        else:
            packer.pack(value)
    pieces.append(packer.bytes())
    return pieces


def _decode(message_type: type[Message], payload: bytes | memoryview) -> Message:
    # The signer is known by now, but a known signer may still be dishonest: every failure is a refusal.
    try:
        fields = msgpack.unpackb(
            payload,
            raw=False,
            use_list=False,
            max_map_len=_FIELDS_MAX,
            max_array_len=_ITEMS_MAX[message_type.signed_by],
        )
        return message_type.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # A dishonest sender chooses the names of fields that do not exist.
        place = ".".join(str(part) for part in first["loc"])[:_PLACE_CHARS_MAX]
        raise RemoteProtocolError(
            RefusalReason.MALFORMED, f"{message_type.__name__}.{place}: {first['msg']}"
        ) from error
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(RefusalReason.MALFORMED, f"{message_type.__name__}: not msgpack") from error
