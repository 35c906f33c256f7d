"""How long do masks and shares of secure aggregation take, beside Flower's SecAgg+ and beside the bare keystream?

A group of 16, a million coordinates. The limit is as many bytes of keystream as there are masks, written to one buffer
that stays in the cache: nothing is added anywhere. The library's plain counter mode stands beside it. Flower's
functions are called in the order in which its client and its workflow call them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from shared.codec.flatten import FloatVector
from shared.codec.quantize import SumFormat, Words
from shared.crypto.keys import agree, pair_mask_key, public_of, self_mask_key
from shared.crypto.masks import MaskKeys, add_masks, member_mask_keys, unmasking_keys
from shared.crypto.shamir import combine, randomness_bytes, split
from shared.crypto.threshold import threshold
from tests.bench.measure import HotPath, Run, peer
from worker.update import prepare_words

DIMENSION = 1_000_000
MEMBERS = 16
SHARES, NEEDED = 32, 17
MODULUS = 2**32
WORD_TYPE = np.dtype("<u4")
KEYSTREAM_BYTES = 256 * 1024
SIZE = "d = 1e6"
TURNS = 15
FLOWER, LIMIT, PLAIN = "flower", "its keystreams alone", "keystreams of plain CTR alone"
GCM, CTR = modes.GCM(bytes(12)), modes.CTR(bytes(16))
TRANSCRIPT, PARTICIPANTS = bytes(32), bytes(32)


def hot_paths() -> Iterator[HotPath]:
    """Masks alone, with quantizing, taken off again, and the secrets behind them."""
    yield from mask_paths()
    yield prepare_path()
    yield unmask_path()
    yield shamir_path()


def member_keys() -> MaskKeys:
    """What the member in the middle of the group masks with: its own key and 15 pairs."""
    source = random.Random(0)
    middle = MEMBERS // 2
    pairs = {other: source.randbytes(32) for other in range(MEMBERS) if other != middle}
    return member_mask_keys(middle, source.randbytes(32), pairs)


def bare_keystream(streams: int, mode: modes.GCM | modes.CTR, itemsize: int = 4) -> Run:
    """The limit: a million words of each of that many keystreams, into a buffer that stays in the cache."""
    zeros, buffer = memoryview(bytes(KEYSTREAM_BYTES)), memoryview(bytearray(KEYSTREAM_BYTES))
    size = DIMENSION * itemsize

    def draw() -> None:
        for stream in range(streams):
            encryptor = Cipher(algorithms.AES(stream.to_bytes(32, "big")), mode).encryptor()
            for start in range(0, size, KEYSTREAM_BYTES):
                part = min(KEYSTREAM_BYTES, size - start)
                encryptor.update_into(zeros[:part], buffer[:part])

    return draw


def mask_paths() -> Iterator[HotPath]:
    """Masks alone."""
    keys = member_keys()
    quantized = [np.zeros(DIMENSION, dtype=np.int32)]
    for bits, limit_name, limit, peers in (
        (32, LIMIT, GCM, {FLOWER: flower_mask(keys, quantized)}),
        (32, PLAIN, CTR, {}),
        (16, LIMIT, GCM, {}),
    ):
        words: Words = np.zeros(DIMENSION, dtype=f"<u{bits // 8}")
        yield HotPath(
            name=f"mask, {bits} bits, {MEMBERS} members, {SIZE}" + (", beside plain CTR" if limit is CTR else ""),
            ours=partial(add_masks, words, keys),
            peers=peers,
            limit_name=limit_name,
            limit=bare_keystream(MEMBERS, limit, bits // 8),
            wanted={FLOWER: 5.0} if peers else {},
            turns=TURNS,
        )


def prepare_path() -> HotPath:
    """From the update to masked words."""
    keys = member_keys()
    update = (np.random.default_rng(0).standard_normal(DIMENSION) * 1e-3).astype(np.float32)
    form = SumFormat(count=DIMENSION, bits=32, members=MEMBERS, clipping_norm=2e-3 * math.sqrt(DIMENSION))
    return HotPath(
        name=f"quantize + mask, {MEMBERS} members, {SIZE}",
        ours=lambda: add_masks(words_of(update, form), keys),
        peers={FLOWER: flower_prepare(keys, update)},
        limit_name=LIMIT,
        limit=bare_keystream(MEMBERS, GCM),
        turns=TURNS,
    )


def words_of(update: FloatVector, form: SumFormat) -> Words:
    """What a client masks."""
    source = np.random.default_rng(0)
    return prepare_words(update, None, form, weight=1.0, metrics={}, source=source).words


def unmask_path() -> HotPath:
    """Rebuild 15 self-mask seeds and a masking key from shares, agree on the dropped member's pair keys, unmask."""
    source = random.Random(1)
    needed = threshold(MEMBERS, 1)
    seeds = [source.randbytes(32) for _ in range(MEMBERS)]  # the last one: the dropped member's masking key
    dealt = [split(seed, needed, MEMBERS, source.randbytes(randomness_bytes(needed))) for seed in seeds]
    shares = [{x + 1: one[x] for x in range(needed)} for one in dealt]
    publics = [public_of(source.randbytes(32)) for _ in range(MEMBERS - 1)]
    total: Words = np.zeros(DIMENSION, dtype=WORD_TYPE)

    def unmask() -> None:
        *self_seeds, dropped_seed = (combine(one, needed) for one in shares)
        selves = [self_mask_key(seed, TRANSCRIPT, f"c{at}") for at, seed in enumerate(self_seeds)]
        add_masks(total, unmasking_keys(selves, {MEMBERS - 1: dropped_pairs(dropped_seed, publics)}))

    return HotPath(
        name=f"unmask, {MEMBERS} members, 1 dropped, {SIZE}",
        ours=unmask,
        peers={FLOWER: flower_unmask(needed)},
        limit_name=PLAIN,
        limit=bare_keystream(2 * (MEMBERS - 1), CTR),
        wanted={FLOWER: 20.0},
        turns=TURNS,
    )


def dropped_pairs(seed: bytes, publics: list[bytes]) -> Mapping[int, bytes]:
    """The pair keys of the last member with all others."""
    last = f"c{MEMBERS - 1}"
    return {
        at: pair_mask_key(agree(seed, public), TRANSCRIPT, (f"c{at}", last), PARTICIPANTS)
        for at, public in enumerate(publics)
    }


def shamir_path() -> HotPath:
    """One secret; there is no physical limit worth naming but its hash."""
    secret = bytes(range(32))
    shares = split(secret, NEEDED, SHARES, random.Random(2).randbytes(randomness_bytes(NEEDED)))
    chosen = {x: shares[x - 1] for x in range(1, SHARES + 1, 2)} | {2: shares[1]}
    flower = peer("flwr.common.secure_aggregation.crypto.shamir")
    theirs = flower.create_shares(secret, NEEDED, SHARES)[:NEEDED] if flower else None
    return HotPath(
        name=f"rebuild a 32-byte secret, {NEEDED} of {SHARES} shares, 100 times",
        ours=lambda: [combine(chosen, NEEDED) for _ in range(100)],
        peers={FLOWER: (lambda: [flower.combine_shares(theirs) for _ in range(100)]) if flower else None},
        limit_name="hash of the shares",
        limit=lambda: [hashlib.sha256(b"".join(chosen.values())).digest() for _ in range(100)],
        wanted={FLOWER: 50.0},
    )


def flower_mask(keys: MaskKeys, quantized: list[np.ndarray]) -> Run | None:
    """As `_collect_masked_vectors` of Flower's client does from where its words are quantized."""
    arithmetic = peer("flwr.common.secure_aggregation.ndarrays_arithmetic")
    generator = peer("flwr.common.secure_aggregation.secaggplus_utils")
    if arithmetic is None or generator is None:
        return None
    shapes = [one.shape for one in quantized]

    def mask() -> object:
        words = quantized
        for key in keys.plus:
            pad = generator.pseudo_rand_gen(key, MODULUS, shapes)
            words = arithmetic.parameters_addition(words, pad)
        for key in keys.minus:
            pad = generator.pseudo_rand_gen(key, MODULUS, shapes)
            words = arithmetic.parameters_subtraction(words, pad)
        return arithmetic.parameters_mod(words, MODULUS)

    return mask


def flower_prepare(keys: MaskKeys, update: FloatVector) -> Run | None:
    """The same with its quantizing before."""
    arithmetic = peer("flwr.common.secure_aggregation.ndarrays_arithmetic")
    codec = peer("flwr.common.secure_aggregation.quantization")
    if arithmetic is None or codec is None:
        return None

    def prepare() -> object:
        quantized = codec.quantize(arithmetic.parameters_multiply([update], 1.0), 8.0, 1 << 22)
        run = flower_mask(keys, quantized)
        assert run is not None
        return run()

    return prepare


def flower_unmask(needed: int) -> Run | None:
    """As the unmasking stage of Flower's workflow does: every share that came is combined."""
    shamir = peer("flwr.common.secure_aggregation.crypto.shamir")
    symmetric = peer("flwr.common.secure_aggregation.crypto.symmetric_encryption")
    asymmetric = peer("flwr.supercore.primitives.asymmetric")
    arithmetic = peer("flwr.common.secure_aggregation.ndarrays_arithmetic")
    generator = peer("flwr.common.secure_aggregation.secaggplus_utils")
    if not (shamir and symmetric and asymmetric and arithmetic and generator):
        return None
    pairs = [asymmetric.generate_key_pairs() for _ in range(MEMBERS)]
    publics = [asymmetric.public_key_to_bytes(public) for _, public in pairs]
    secrets = [bytes([member]) * 32 for member in range(MEMBERS - 1)]
    secrets.append(asymmetric.private_key_to_bytes(pairs[-1][0]))
    shares = [shamir.create_shares(secret, needed, MEMBERS)[: MEMBERS - 1] for secret in secrets]
    total = [np.zeros(DIMENSION, dtype=np.int64)]
    shapes = [one.shape for one in total]

    def unmask() -> object:
        words = total
        *seeds, private = (shamir.combine_shares(one) for one in shares)
        for seed in seeds:
            words = arithmetic.parameters_subtraction(words, generator.pseudo_rand_gen(seed, MODULUS, shapes))
        for public in publics[:-1]:
            key = symmetric.generate_shared_key(
                asymmetric.bytes_to_private_key(private), asymmetric.bytes_to_public_key(public)
            )
            words = arithmetic.parameters_addition(words, generator.pseudo_rand_gen(key, MODULUS, shapes))
        return arithmetic.parameters_mod(words, MODULUS)

    return unmask
