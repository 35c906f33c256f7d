"""Any t shares rebuild a secret, and t - 1 say nothing about it."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.crypto import shamir
from shared.crypto.shamir import PRIME, SHARE_BYTES, check_share, combine, randomness_bytes, split
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "shamir.json").read_text(encoding="utf-8"))


def numbered(shares: tuple[bytes, ...]) -> dict[int, bytes]:
    return dict(enumerate(shares, start=1))


def is_probably_prime(number: int, rounds: int) -> bool:
    """Miller and Rabin's test; a composite passes each round with probability 1/4 at most."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    bases = random.Random(0)
    for _ in range(rounds):
        power = pow(bases.randrange(2, number - 1), odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_smallest_that_holds_every_secret() -> None:
    assert is_probably_prime(PRIME, rounds=64)
    assert not any(is_probably_prime(number, rounds=4) for number in range(2**256 + 1, PRIME, 2))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['threshold']}-of-{case['count']}")
def test_golden_vectors(case: dict[str, object]) -> None:
    secret, threshold = bytes.fromhex(str(case["secret"])), int(str(case["threshold"]))

    shares = split(secret, threshold, int(str(case["count"])), bytes.fromhex(str(case["randomness"])))

    assert [share.hex() for share in shares] == case["shares"]
    last = dict(list(numbered(shares).items())[-threshold:])
    assert combine(last, threshold) == secret


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.data())
def test_every_subset_of_t_rebuilds_the_secret(secret: bytes, count: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, count))
    size = randomness_bytes(threshold)
    shares = split(secret, threshold, count, data.draw(st.binary(min_size=size, max_size=size)))

    for subset in itertools.permutations(numbered(shares).items(), threshold):
        assert combine(dict(subset), threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32], ids=["zeros", "ones"])
def test_the_largest_group_and_the_extreme_secrets(secret: bytes) -> None:
    randomness = random.Random(1).randbytes(randomness_bytes(40))

    shares = numbered(split(secret, 40, 64, randomness))

    assert combine({x: shares[x] for x in range(64, 24, -1)}, 40) == secret


def test_fewer_shares_are_equally_likely_for_every_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    # All secrets and all polynomials of a field of 7: any two of the shares of 3-of-4 take each pair of values once.
    monkeypatch.setattr(shamir, "PRIME", 7)
    for pair in itertools.combinations(range(4), 2):
        for secret in range(7):
            seen = Counter()
            for first, second in itertools.product(range(7), repeat=2):
                shares = split(secret.to_bytes(32, "big"), 3, 4, first.to_bytes(48, "big") + second.to_bytes(48, "big"))
                seen[shares[pair[0]], shares[pair[1]]] += 1
            assert set(seen.values()) == {1}
            assert len(seen) == 49


def test_shares_that_are_none_are_refused() -> None:
    shares = numbered(split(bytes(range(32)), 2, 3, bytes(range(48))))
    largest = (PRIME - 1).to_bytes(SHARE_BYTES, "big")
    check_share(largest)

    for wrong, reason in (
        (b"", RefusalReason.WRONG_SIZE),
        (shares[1][:-1], RefusalReason.WRONG_SIZE),
        (shares[1] + b"\0", RefusalReason.WRONG_SIZE),
        (PRIME.to_bytes(SHARE_BYTES, "big"), RefusalReason.OUT_OF_RANGE),
        (b"\xff" * SHARE_BYTES, RefusalReason.OUT_OF_RANGE),
    ):
        for refuse in (check_share, lambda share: combine({1: shares[1], 2: share}, 2)):
            with pytest.raises(RemoteProtocolError) as refusal:
                refuse(wrong)
            assert refusal.value.reason is reason


def test_shares_of_something_longer_than_a_secret_are_refused() -> None:
    # The constant polynomial 2**256: a field element, but no 32 bytes.
    share = (2**256).to_bytes(SHARE_BYTES, "big")

    with pytest.raises(RemoteProtocolError) as refusal:
        combine({1: share, 5: share}, 2)
    assert refusal.value.reason is RefusalReason.OUT_OF_RANGE


def test_a_share_of_another_member_does_not_rebuild_the_secret() -> None:
    secret = bytes(range(32))
    shares = numbered(split(secret, 2, 3, bytes(range(48))))

    assert combine({1: shares[1], 3: shares[3]}, 2) == secret
    assert combine({1: shares[1], 3: shares[2]}, 2) != secret


@pytest.mark.parametrize("xs", [(), (1,), (1, 2, 3), (0, 1), (1, PRIME + 1)])
def test_exactly_t_shares_of_members_are_combined(xs: tuple[int, ...]) -> None:
    shares = numbered(split(bytes(32), 2, 3, bytes(48)))

    with pytest.raises(LocalProtocolError):
        combine(dict.fromkeys(xs, shares[1]), 2)


@pytest.mark.parametrize(
    ("secret", "threshold", "count", "randomness"),
    [(31, 2, 3, 48), (33, 2, 3, 48), (32, 0, 3, 0), (32, 4, 3, 144), (32, 2, 3, 47), (32, 2, 3, 96)],
)
def test_sizes_that_do_not_fit_stop_the_process(secret: int, threshold: int, count: int, randomness: int) -> None:
    with pytest.raises(LocalProtocolError):
        split(bytes(secret), threshold, count, bytes(randomness))
