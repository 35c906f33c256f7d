"""Masks hide each member's words and vanish from the group's sum, whoever drops out."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.summing.secure_sum import add_words
from shared.codec.quantize import Words
from shared.crypto.keys import OneTimeKeys, agree, pair_mask_key, self_mask_key
from shared.crypto.masks import MaskKeys, add_masks, member_mask_keys, unmasking_keys
from shared.crypto.prg import Keystream
from shared.crypto.shamir import combine, randomness_bytes, split
from shared.crypto.threshold import threshold
from shared.errors import LocalProtocolError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "masks.json").read_text(encoding="utf-8"))
WORD_TYPES = {16: np.dtype("<u2"), 32: np.dtype("<u4")}
BITS = st.sampled_from([16, 32])
KEY = bytes(range(32))


def stream_words(key: bytes, length: int, bits: int = 16) -> Words:
    words: Words = np.empty(length, dtype=WORD_TYPES[bits])
    Keystream(key).fill(words)
    return words


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("case", VECTORS["blocks"])
def test_the_first_block_is_that_of_gcm(case: dict[str, str], bits: int) -> None:
    assert stream_words(bytes.fromhex(case["key"]), 128 // bits, bits).tobytes().hex() == case["block"]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("case", VECTORS["streams"], ids=lambda case: str(case["bytes"]))
def test_the_stream_is_counter_mode(case: dict[str, object], bits: int) -> None:
    stream = stream_words(bytes.fromhex(str(case["key"])), int(str(case["bytes"])) * 8 // bits, bits).tobytes()

    assert hashlib.sha256(stream).hexdigest() == case["sha256"]
    assert stream.hex() == case.get("stream", stream.hex())


@pytest.mark.parametrize("case", VECTORS["masks"], ids=lambda case: f"{case['length']}-words-of-{case['bits']}")
def test_golden_masks(case: dict[str, object]) -> None:
    bits, length = int(str(case["bits"])), int(str(case["length"]))
    plus, minus = (tuple(bytes.fromhex(key) for key in case[name]) for name in ("plus", "minus"))  # type: ignore[attr-defined]
    words = (np.arange(length, dtype=np.uint64) ** 2).astype(WORD_TYPES[bits])

    add_masks(words, MaskKeys(plus, minus))

    assert hashlib.sha256(words.tobytes()).hexdigest() == case["sha256"]
    assert words.tobytes().hex() == case.get("words", words.tobytes().hex())


def pair_keys_of(members: int) -> dict[int, dict[int, bytes]]:
    """A key for every pair, the same on both sides."""
    keys: dict[int, dict[int, bytes]] = {one: {} for one in range(members)}
    for one, other in itertools.combinations(range(members), 2):
        keys[one][other] = keys[other][one] = hashlib.sha256(bytes((one, other))).digest()
    return keys


def sum_of(vectors: list[Words]) -> Words:
    total: Words = np.zeros_like(vectors[0])
    for vector in vectors:
        add_words(total, vector)
    return total


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("members", range(1, 7))
def test_unmasking_gives_the_sum_of_those_who_arrived(members: int, bits: int) -> None:
    source = np.random.default_rng(members)
    pairs = pair_keys_of(members)
    selves = [hashlib.sha256(b"self" + bytes((member,))).digest() for member in range(members)]
    plain = [source.integers(0, 2**bits, 37, dtype=WORD_TYPES[bits]) for _ in range(members)]
    masked = [words.copy() for words in plain]
    for member, words in enumerate(masked):
        add_masks(words, member_mask_keys(member, selves[member], pairs[member]))

    # Every set that could be left, down to one: the arithmetic does not depend on the threshold.
    for size in range(1, members + 1):
        for arrived in itertools.combinations(range(members), size):
            total = sum_of([masked[member] for member in arrived])
            dropped = {
                member: {other: pairs[member][other] for other in arrived}
                for member in range(members)
                if member not in arrived
            }
            add_masks(total, unmasking_keys([selves[member] for member in arrived], dropped))
            assert np.array_equal(total, sum_of([plain[member] for member in arrived]))


@settings(max_examples=30, deadline=None)
@given(BITS, st.integers(2, 6), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_pair_masks_cancel_in_the_sum(bits: int, members: int, length: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    plain = [source.integers(0, 2**bits, length, dtype=WORD_TYPES[bits]) for _ in range(members)]
    masked, self_masks = [], []
    for member, pairs in pair_keys_of(members).items():
        self_key = source.bytes(32)
        words = plain[member].copy()
        add_masks(words, member_mask_keys(member, self_key, pairs))
        masked.append(words)
        self_masks.append(stream_words(self_key, length, bits))

    assert np.array_equal(sum_of(masked) - sum_of(self_masks), sum_of(plain))


def test_a_group_from_its_seeds_to_its_sum() -> None:
    # Five members with one colluder allowed, so four must answer; member 3 drops out after it shared its seeds.
    source = random.Random(5)
    names, transcript, participants = ["alba", "nola", "ostia", "roma", "tibur"], source.randbytes(32), bytes(32)
    needed = threshold(len(names), 1)
    keys = [OneTimeKeys(source.randbytes(32), source.randbytes(32)) for _ in names]
    self_seeds = [source.randbytes(32) for _ in names]

    def deal(secret: bytes) -> tuple[bytes, ...]:
        return split(secret, needed, len(names), source.randbytes(randomness_bytes(needed)))

    def pair_keys(seed: bytes, member: int, others: list[int]) -> dict[int, bytes]:
        secrets = {other: agree(seed, keys[other].masking_public) for other in others}
        return {
            other: pair_mask_key(secret, transcript, (names[member], names[other]), participants)
            for other, secret in secrets.items()
        }

    masking_shares = [deal(one.masking_seed) for one in keys]
    self_shares = [deal(seed) for seed in self_seeds]
    plain = [np.random.default_rng(member).integers(0, 2**16, 100, dtype=np.uint16) for member in range(5)]
    masked = [words.copy() for words in plain]
    for member, words in enumerate(masked):
        pairs = pair_keys(keys[member].masking_seed, member, [other for other in range(5) if other != member])
        add_masks(words, member_mask_keys(member, self_mask_key(self_seeds[member], transcript, names[member]), pairs))

    arrived, dropped = [0, 1, 2, 4], 3
    revealed = {member: combine({x + 1: self_shares[member][x] for x in arrived}, needed) for member in arrived}
    rebuilt = combine({x + 1: masking_shares[dropped][x] for x in arrived}, needed)
    total = sum_of([masked[member] for member in arrived])
    selves = [self_mask_key(seed, transcript, names[member]) for member, seed in revealed.items()]
    add_masks(total, unmasking_keys(selves, {dropped: pair_keys(rebuilt, dropped, arrived)}))

    assert np.array_equal(total, sum_of([plain[member] for member in arrived]))


def chi_square_deviations(words: Words, bins: int) -> float:
    """How many standard deviations the chi-square statistic of a histogram is from its mean, for uniform words."""
    counts = np.bincount(words, minlength=bins)
    expected = len(words) / bins
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (bins - 1)) / (2.0 * (bins - 1)) ** 0.5


def test_masked_words_look_uniform() -> None:
    # Each statistic of truly uniform words passes 5 deviations with probability below 1e-6 (chi-square of 255 degrees
    # has a heavier right tail than the normal law: 5e-6), so a false alarm happens for less than 1 key in 10,000;
    # the keys are fixed, so this run either always passes or never.
    length = 1 << 20
    zeros: Words = np.zeros(length, dtype=np.uint16)
    add_masks(zeros, MaskKeys((KEY,), (KEY[::-1],)))
    stream = stream_words(KEY, length)
    wide = stream_words(b"\x02" * 32, length, bits=32)

    statistics = [
        chi_square_deviations(zeros, 2**16),
        chi_square_deviations(stream, 2**16),
        chi_square_deviations(stream[1:] ^ stream[:-1], 2**16),
        chi_square_deviations(stream ^ stream_words(KEY[:-1] + b"\x20", length), 2**16),
        *(chi_square_deviations((wide >> shift & 255).astype(np.int64), 256) for shift in (0, 8, 16, 24)),
    ]

    assert max(map(abs, statistics)) < 5.0


def test_the_statistic_notices_a_missing_mask() -> None:
    small = np.random.default_rng(0).normal(0.0, 2000.0, 1 << 16).astype(np.int16).view(np.uint16)

    assert chi_square_deviations(small, 2**16) > 100.0


def test_earlier_members_add_and_later_ones_subtract() -> None:
    pairs = {0: b"a", 1: b"b", 3: b"d"}

    assert member_mask_keys(2, b"self", pairs) == MaskKeys((b"self", b"d"), (b"a", b"b"))
    assert unmasking_keys([b"x", b"y"], {2: pairs}) == MaskKeys((b"d",), (b"x", b"y", b"a", b"b"))
    assert "self" not in repr(member_mask_keys(2, b"self", pairs))


def test_pairs_that_share_no_mask_stop_the_process() -> None:
    with pytest.raises(LocalProtocolError, match="itself"):
        member_mask_keys(1, KEY, {1: KEY})
    with pytest.raises(LocalProtocolError, match="another dropped"):
        unmasking_keys([KEY], {1: {2: KEY}, 2: {0: KEY}})


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_of_another_size_stop_the_process(size: int) -> None:
    # AES takes keys of 16 bytes as well; masks do not.
    with pytest.raises(LocalProtocolError):
        add_masks(np.zeros(1, dtype=np.uint16), MaskKeys((bytes(size),), ()))


@pytest.mark.parametrize("word_type", ["<i2", "<i4", "<u8", "u1", ">u4", "<f4"])
def test_words_of_another_type_stop_the_process(word_type: str) -> None:
    with pytest.raises(LocalProtocolError):
        add_masks(np.zeros(4, dtype=word_type), MaskKeys((KEY,), ()))


def test_a_stream_goes_on_where_it_stopped() -> None:
    stream, pieces = Keystream(KEY), [np.empty(size, dtype=np.uint16) for size in (3, 0, 1, 40)]
    for piece in pieces:
        stream.fill(piece)

    assert np.array_equal(np.concatenate(pieces), stream_words(KEY, 44))
