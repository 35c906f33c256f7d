"""Two members agree on keys that nobody else has and that fit one use only."""

from __future__ import annotations

import hmac
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.keys import (
    KeyPurpose,
    OneTimeKeys,
    agree,
    derive,
    of_full_order,
    pair_mask_key,
    public_of,
    sealing_key,
    self_mask_key,
)
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "keys.json").read_text(encoding="utf-8"))
SEEDS = st.binary(min_size=32, max_size=32)
SECRET = bytes(range(32))
PRIME = 2**255 - 19

# The u-coordinates of all points of low order, in every encoding that fits 255 bits.
# Reference: D. J. Bernstein, "Curve25519: new Diffie-Hellman speed records" (PKC 2006), and its web page's FAQ.
LOW_ORDER = (
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    PRIME - 1,
    PRIME,
    PRIME + 1,
)


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 as it is written, from the standard library."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    stream, block = b"", b""
    for counter in itertools.count(1):
        if len(stream) >= size:
            return stream[:size]
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        stream += block
    raise AssertionError


@pytest.mark.parametrize("case", VECTORS["x25519"])
def test_agreement_is_x25519(case: dict[str, str]) -> None:
    assert agree(bytes.fromhex(case["scalar"]), bytes.fromhex(case["u"])).hex() == case["output"]


@pytest.mark.parametrize("case", VECTORS["hkdf"])
def test_the_reference_is_hkdf(case: dict[str, str]) -> None:
    expected = bytes.fromhex(case["okm"])

    got = hkdf(bytes.fromhex(case["ikm"]), bytes.fromhex(case["salt"]), bytes.fromhex(case["info"]), size=len(expected))

    assert got == expected


@given(SEEDS, st.sampled_from(KeyPurpose), st.lists(st.binary(max_size=40), max_size=4))
def test_keys_are_derived_by_hkdf(secret: bytes, purpose: KeyPurpose, context: list[bytes]) -> None:
    fields = [b"comitia/1/key", purpose.value.encode(), *context]
    info = b"".join(len(field).to_bytes(4, "big") + field for field in fields)

    assert derive(secret, purpose, context) == hkdf(secret, b"", info, 32)


def test_golden_keys() -> None:
    case = VECTORS["composite"]
    seeds, transcript = [bytes.fromhex(seed) for seed in case["seeds"]], bytes.fromhex(case["transcript"])
    publics = [public_of(seed) for seed in seeds]

    secret = agree(seeds[0], publics[1])

    assert [public.hex() for public in publics] == case["publics"]
    assert secret.hex() == case["secret"]
    assert sealing_key(secret, transcript, "alba", "roma").hex() == case["sealing_key"]
    assert pair_mask_key(secret, transcript, ("roma", "alba"), bytes(32)).hex() == case["pair_mask_key"]
    assert self_mask_key(seeds[0], transcript, "alba").hex() == case["self_mask_key"]


@given(SEEDS, SEEDS)
def test_both_sides_agree(one: bytes, other: bytes) -> None:
    assert agree(one, public_of(other)) == agree(other, public_of(one))


@pytest.mark.parametrize("high_bit", [0, 1 << 255])
@pytest.mark.parametrize("u", LOW_ORDER)
def test_points_of_low_order_are_refused(u: int, high_bit: int) -> None:
    for seed in (SECRET, b"\xff" * 32):
        with pytest.raises(RemoteProtocolError) as refusal:
            agree(seed, (u | high_bit).to_bytes(32, "little"))
        assert refusal.value.reason is RefusalReason.BAD_KEY
    with pytest.raises(ValueError, match="low order"):
        of_full_order((u | high_bit).to_bytes(32, "little"))


@given(SEEDS)
def test_keys_of_seeds_are_of_full_order(seed: bytes) -> None:
    public = public_of(seed)
    assert of_full_order(public) == public


@pytest.mark.parametrize("twin", [1 << 255, PRIME])
def test_no_key_has_a_second_form(twin: int) -> None:
    """Or a roster could hold the same key twice without showing it."""
    ours = (9).to_bytes(32, "little")
    again = (9 + twin).to_bytes(32, "little")
    assert agree(SECRET, again) == agree(SECRET, ours)

    assert of_full_order(ours) == ours
    with pytest.raises(ValueError, match="form"):
        of_full_order(again)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_keys_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        agree(SECRET, b"\x09" * size)
    assert refusal.value.reason is RefusalReason.BAD_KEY
    for ours in (lambda: agree(bytes(size), public_of(SECRET)), lambda: public_of(bytes(size))):
        with pytest.raises(LocalProtocolError):
            ours()
    with pytest.raises(LocalProtocolError):
        derive(bytes(size), KeyPurpose.SEALING, ())


def test_every_use_has_a_key_of_its_own() -> None:
    here, elsewhere = bytes(32), b"\x01" * 32
    keys = [
        *(derive(SECRET, purpose, ()) for purpose in KeyPurpose),
        *(derive(SECRET, KeyPurpose.SEALING, context) for context in ((b"",), (b"ab",), (b"a", b"b"), (b"", b"ab"))),
        *(sealing_key(SECRET, h, *pair) for h in (here, elsewhere) for pair in (("a", "b"), ("b", "a"), ("a", "c"))),
        *(
            pair_mask_key(SECRET, h, pair, p)
            for h, p in itertools.product((here, elsewhere), repeat=2)
            for pair in (("a", "b"), ("a", "c"))
        ),
        *(self_mask_key(SECRET, h, client) for h in (here, elsewhere) for client in "ab"),
    ]

    assert len(set(keys)) == len(keys)


def test_a_pair_has_one_mask_key_in_either_order() -> None:
    one = pair_mask_key(SECRET, bytes(32), ("b", "a"), bytes(32))

    assert one == pair_mask_key(SECRET, bytes(32), ("a", "b"), bytes(32))


def test_one_time_keys_show_their_public_halves_only() -> None:
    keys = OneTimeKeys(SECRET, SECRET[::-1])

    assert (keys.sealing_public, keys.masking_public) == (public_of(SECRET), public_of(SECRET[::-1]))
    assert repr(keys) == "OneTimeKeys()"
    with pytest.raises(LocalProtocolError):
        OneTimeKeys(SECRET, SECRET)


def test_one_time_keys_agree_as_their_seeds_do() -> None:
    keys, theirs = OneTimeKeys(SECRET, SECRET[::-1]), public_of(b"\x07" * 32)

    for _ in range(2):
        assert keys.sealing_secret(theirs) == agree(SECRET, theirs)
        assert keys.masking_secret(theirs) == agree(SECRET[::-1], theirs)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            keys.sealing_secret(bytes(32))
