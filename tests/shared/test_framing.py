"""A frame opens only if it is whole, genuine, of this federation and from who may say it; else it is refused."""

from __future__ import annotations

import itertools
import tracemalloc
from uuid import UUID

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.crypto.signing import Purpose, VerificationCache, VerifyingKey
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError
from shared.identity import COORDINATOR
from shared.incoming import keys_of
from shared.wire import framing
from shared.wire.framing import BATCH_BYTES_MAX, FRAME_BYTES_MIN, Opener, digest_of, pack_batches, seal, split_batch
from shared.wire.group_messages import Words
from shared.wire.log_messages import Piece, SnapshotEntry
from shared.wire.messages import (
    FRAME_BYTES_MAX,
    OFFER_BYTES_MAX,
    PIECE_BYTES_MAX,
    Kind,
    Message,
    Offer,
    PublicKeys,
    Role,
)
from tests.builders import FEDERATION_ID, Federation, make_federation, make_offer, signing_key
from tests.shared.strategies import MESSAGES

FEDERATION = make_federation(clients=3, revoked=("client-2",))
KEYS = PublicKeys(sealing=b"S" * 32, masking=b"M" * 32)
OFFER = make_offer(version=7, head=bytes(range(32)), attempt=1, counter=300, nonce=b"n" * 16, worker="w-1", keys=KEYS)
FRAME = FEDERATION.seal_as("client-0", OFFER)

# Made with this code at wire version 1. The payload is written out after the msgpack specification, and the signature
# is checked below against the Ed25519 of `cryptography`, over the bytes written out here.
GOLDEN_HEADER = b"CMT\x01\x01\x08client-0"
GOLDEN_PAYLOAD = (
    b"\x87"  # a map of 7
    b"\xa7attempt\x01"
    b"\xaftrained_version\x07"
    b"\xactrained_head\xc4\x20" + bytes(range(32)) + b"\xa7counter\xcd\x01\x2c"
    b"\xa5nonce\xc4\x10nnnnnnnnnnnnnnnn"
    b"\xa6worker\xa3w-1"
    b"\xa4keys\x82\xa7sealing\xc4\x20" + b"S" * 32 + b"\xa7masking\xc4\x20" + b"M" * 32
)
GOLDEN_SIGNATURE = bytes.fromhex(
    "eee1c36f9c104e82aaf9dd93b88ed30bcf927d6eb6d72df447f1e6098f0474d4"
    "526e93439a972e01bcc971f89818c9cae6c44897cb412f0ccd34d7104f9e4f00"
)


def seal_by_type(federation: Federation, message: Message) -> bytes:
    if message.signed_by is Role.CLIENT:
        return federation.seal_as("client-0", message)
    return federation.seal(message)


def signed(payload: bytes, kind: Kind = Kind.OFFER, client: str = "client-0") -> bytes:
    """A frame with a genuine signature of an enrolled, dishonest client over any payload."""
    name = client.encode()
    key = FEDERATION.clients[client]
    signature = key.sign(Purpose.MESSAGE, FEDERATION_ID.bytes + bytes((1, kind, len(name))) + name + payload)
    return b"CMT" + bytes((1, kind, len(name))) + name + signature + payload


def refusal_of(frame: bytes, opener: Opener | None = None) -> RefusalReason:
    with pytest.raises(RemoteProtocolError) as refusal:
        (opener or FEDERATION.opener()).open(frame)
    assert len(refusal.value.detail) < 200
    return refusal.value.reason


# ── round trip ──


@pytest.mark.parametrize("kind", Kind)
@settings(max_examples=25)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(kind: Kind, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    frame = seal_by_type(FEDERATION, message)

    opened = FEDERATION.opener().open(frame)

    assert opened.message == message
    assert type(opened.message) is type(message)
    assert opened.sender == ("client-0" if message.signed_by is Role.CLIENT else COORDINATOR)
    assert opened.digest == digest_of(frame)


def test_the_bytes_of_a_frame_never_change() -> None:
    assert FRAME == GOLDEN_HEADER + GOLDEN_SIGNATURE + GOLDEN_PAYLOAD

    public = Ed25519PublicKey.from_public_bytes(FEDERATION.clients["client-0"].public.raw)
    signed_bytes = b"comitia/1/message\0" + FEDERATION_ID.bytes + b"\x01\x01\x08client-0" + GOLDEN_PAYLOAD
    public.verify(GOLDEN_SIGNATURE, signed_bytes)


def test_the_largest_piece_fits_a_frame_and_a_batch() -> None:
    frame = FEDERATION.seal(Piece(body=bytes(PIECE_BYTES_MAX)))

    assert len(frame) <= FRAME_BYTES_MAX
    assert split_batch(b"".join(pack_batches([frame]))) == [frame]


@pytest.mark.parametrize("size", [0, 2**16 - 1, 2**16, PIECE_BYTES_MAX])
def test_a_payload_is_plain_msgpack_whatever_its_size(size: int) -> None:
    words = Words(transcript=bytes(32), participants=b"\1", part=0, parts=1, body=bytes(size))

    frame = FEDERATION.seal_as("client-0", words)

    payload = msgpack.packb(words.model_dump())
    assert frame[-len(payload) :] == payload
    assert FEDERATION.opener().open(frame).message == words


def test_the_largest_offer_fits_a_roster() -> None:
    name = "a" * 63
    largest = make_offer(
        version=2**48 - 1, attempt=2**63 - 1, counter=2**63 - 1, worker=name, keys=KEYS, nonce=bytes(16)
    )

    frame = seal(largest, sender=name, federation=FEDERATION_ID, key=signing_key(1))
    assert len(frame) <= OFFER_BYTES_MAX


def test_what_nobody_could_open_is_not_sealed() -> None:
    too_large = SnapshotEntry.model_construct(plan=bytes(FRAME_BYTES_MAX))

    with pytest.raises(LocalProtocolError, match="SnapshotEntry"):
        FEDERATION.seal(too_large)


# ── what is refused ──


def test_a_frame_cut_anywhere_is_refused() -> None:
    opener = FEDERATION.opener()
    for end in range(len(FRAME)):
        expected = RefusalReason.MALFORMED if end < len(GOLDEN_HEADER) + 64 else RefusalReason.BAD_SIGNATURE
        assert refusal_of(FRAME[:end], opener) is expected, end


def test_a_frame_changed_in_any_byte_is_refused() -> None:
    opener = FEDERATION.opener()
    for position in range(len(FRAME)):
        changed = bytearray(FRAME)
        changed[position] ^= 0x20
        refusal_of(bytes(changed), opener)
    assert len(opener.cache) == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", RefusalReason.MALFORMED),
        (FRAME + bytes(FRAME_BYTES_MAX), RefusalReason.OVERSIZED),
        (b"CMU" + FRAME[3:], RefusalReason.MALFORMED),
        (FRAME[:3] + b"\x02" + FRAME[4:], RefusalReason.WRONG_VERSION),
        (FRAME[:4] + b"\x00" + FRAME[5:], RefusalReason.UNKNOWN_KIND),
        (FRAME[:4] + b"\x02" + FRAME[5:], RefusalReason.BAD_SIGNATURE),
        (FRAME.replace(b"client-0", b"client-1", 1), RefusalReason.BAD_SIGNATURE),
        (FRAME.replace(b"client-0", b"client-9", 1), RefusalReason.UNKNOWN_SENDER),
        (FRAME.replace(b"client-0", b"cli\xe9nt-0", 1), RefusalReason.MALFORMED),
        (FRAME[:-1] + b"2", RefusalReason.BAD_SIGNATURE),
        (FEDERATION.seal_as("client-2", OFFER), RefusalReason.UNKNOWN_SENDER),
        (FEDERATION.seal_as("client-0", Piece(body=b"")), RefusalReason.NOT_ALLOWED),
        (FEDERATION.seal(OFFER), RefusalReason.NOT_ALLOWED),
    ],
    ids=[
        "empty",
        "oversized",
        "magic",
        "wire-version",
        "kind-unknown",
        "kind-swapped",
        "sender-swapped",
        "sender-unknown",
        "sender-not-ascii",
        "payload-changed",
        "revoked",
        "client-as-coordinator",
        "coordinator-as-client",
    ],
)
def test_a_bad_frame_is_refused_with_its_reason(frame: bytes, reason: RefusalReason) -> None:
    assert refusal_of(frame) is reason


def test_a_frame_of_another_federation_is_refused() -> None:
    elsewhere = seal(OFFER, sender="client-0", federation=UUID(int=6), key=FEDERATION.clients["client-0"])

    assert refusal_of(elsewhere) is RefusalReason.BAD_SIGNATURE


def test_a_frame_of_another_key_is_refused() -> None:
    forged = seal(OFFER, sender="client-0", federation=FEDERATION_ID, key=signing_key(666))

    assert refusal_of(forged) is RefusalReason.BAD_SIGNATURE


FIELDS = OFFER.model_dump()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb([1]),
        msgpack.packb(FIELDS) + b"\x00",
        msgpack.packb(FIELDS)[:-1],
        msgpack.packb({**FIELDS, "worker": b"w-1"}),
        msgpack.packb({**FIELDS, "x" * 100_000: 1}),
        msgpack.packb({**FIELDS, b"x" * 100_000: 1}),
        msgpack.packb({**FIELDS, 1: 1}, strict_types=True),
        msgpack.packb({**FIELDS, "attempt": msgpack.Timestamp(1)}),
        msgpack.packb({**FIELDS, "attempt": [0]}),
        msgpack.packb({key: value for key, value in FIELDS.items() if key != "nonce"}),
        msgpack.packb({str(number): number for number in range(1000)}),
        b"\xdf\xff\xff\xff\xff" + bytes(1000),
        b"\x81\xa7attempt" + b"\xdd\x00\x0f\xff\xff" * 900 + bytes(1 << 20),
        b"\x91" * 100_000,
        b"\x81\xa1a" * 2000 + b"\x80",
        b"\x81\xa7attempt\xd7\xff" + bytes(8),
        b"\x81\xa2\xff\xff\x00",
    ],
)
def test_an_enrolled_client_cannot_make_the_decoder_fail(payload: bytes) -> None:
    assert refusal_of(signed(payload)) is RefusalReason.MALFORMED


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\x00\x0f\xff\xff" + b"\x80" * 0xFFFFF,
        b"\x81\xa7attempt\xdd\x00\x0f\xff\xff" + b"\x90" * 0xFFFFF,
        b"\xdf\x00\x03\x00\x00" + b"".join(b"\xa2" + n.to_bytes(2, "big") + b"\x80" for n in range(0x3000)),
    ],
    ids=["array", "nested array", "map"],
)
def test_a_payload_takes_no_more_memory_than_its_bytes(payload: bytes) -> None:
    frame, opener = signed(payload), FEDERATION.opener()

    tracemalloc.start()
    refusal_of(frame, opener)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 << 20


def test_a_refusal_names_the_field_and_never_its_value() -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        FEDERATION.opener().open(signed(msgpack.packb({**FIELDS, "worker": "Secret.Name"})))

    assert refusal.value.detail.startswith("Offer.worker: ")
    assert "Secret" not in str(refusal.value)


# ── the cache ──


def test_a_repeat_costs_no_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    members = FEDERATION.members()
    verified = []
    verify = VerifyingKey.verify
    monkeypatch.setattr(VerifyingKey, "verify", lambda *call: (verified.append(1), verify(*call))[1])
    opener = Opener(FEDERATION_ID, keys_of(members), VerificationCache())

    first, repeat = opener.open(FRAME), opener.open(FRAME)

    assert first.message == repeat.message == OFFER
    assert len(verified) == 1
    opener.open(FEDERATION.seal_as("client-1", OFFER))
    assert len(verified) == 2


# ── batches ──

frames_lists = st.lists(st.binary(min_size=FRAME_BYTES_MIN, max_size=300), min_size=1, max_size=8)


@given(frames=frames_lists)
def test_a_batch_holds_its_frames_in_order(frames: list[bytes]) -> None:
    assert [frame for body in pack_batches(frames) for frame in split_batch(body)] == frames


@given(frames=frames_lists, data=st.data())
def test_a_batch_cut_anywhere_is_refused_or_ends_between_two_frames(frames: list[bytes], data: st.DataObject) -> None:
    (body,) = pack_batches(frames)
    end = data.draw(st.integers(0, len(body) - 1))
    ends = [sum(4 + len(frame) for frame in frames[:count]) for count in range(1, len(frames))]

    if end in ends:
        assert split_batch(body[:end]) == frames[: ends.index(end) + 1]
    else:
        with pytest.raises(RemoteProtocolError) as refusal:
            split_batch(body[:end])
        assert refusal.value.reason is RefusalReason.MALFORMED


def test_batches_are_closed_before_they_pass_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "BATCH_BYTES_MAX", 1000)
    frames = [bytes([number]) * (100 + 90 * number) for number in range(10)]

    batches = list(pack_batches(frames))

    assert max(len(body) for body in batches) <= 1000
    assert [frame for body in batches for frame in split_batch(body)] == frames
    # Closed only when the next one does not fit.
    assert all(len(a) + 4 + len(split_batch(b)[0]) > 1000 for a, b in itertools.pairwise(batches))


def test_the_lengths_of_frames_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "BATCH_BYTES_MAX", 1000)

    assert len(list(pack_batches([bytes(496), bytes(496)]))) == 1
    assert len(list(pack_batches([bytes(496), bytes(497)]))) == 2


def test_no_frames_are_no_batch() -> None:
    assert list(pack_batches([])) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", RefusalReason.MALFORMED),
        (bytes(3), RefusalReason.MALFORMED),
        # Hundreds of thousands of empty frames in one message would each be refused, noted and settled.
        (bytes(BATCH_BYTES_MAX // 4 * 4), RefusalReason.MALFORMED),
        ((FRAME_BYTES_MIN - 1).to_bytes(4, "little") + bytes(FRAME_BYTES_MIN - 1), RefusalReason.MALFORMED),
        (b"\xff\xff\xff\xff" + bytes(100), RefusalReason.MALFORMED),
        (bytes(BATCH_BYTES_MAX + 1), RefusalReason.OVERSIZED),
    ],
)
def test_what_is_no_batch_is_refused(body: bytes, reason: RefusalReason) -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        split_batch(body)

    assert refusal.value.reason is reason


def test_the_shortest_frame_that_a_sender_can_seal_is_no_shorter_than_the_bound() -> None:
    shortest = seal(Offer.model_construct(), sender="c", federation=FEDERATION_ID, key=signing_key(1))

    assert len(shortest) >= FRAME_BYTES_MIN
