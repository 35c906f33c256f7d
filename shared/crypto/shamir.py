"""How is a 32-byte secret cut into shares of which any t rebuild it, and t - 1 say nothing?

    split(secret, threshold, count, randomness) -> shares        share i - 1 is the polynomial at x = i
    combine({x: share, ...}, threshold) -> secret                exactly t shares

A secret is one element of the prime field of 2**256 + 297, the smallest that holds all 32-byte strings: no chunks, no
padding. A share is the polynomial's value in 33 bytes, big endian; its x is not in it, because everybody knows it from
the roster (position + 1) and a share that named its own x could name another's.

Python's integers do not take the same time for all values. That is acceptable here: secrets serve one group once, so
nobody can have the same secret split or rebuilt twice to average a timing out, and what is rebuilt becomes known to the
coordinator anyway. Do not use it for long-lived keys.

Reference: A. Shamir, "How to Share a Secret", Communications of the ACM 22 (1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33

_COEFFICIENT_BYTES = 48
"""Reduced mod p, 384 random bits are within 2**-127 of a uniform field element."""


def randomness_bytes(threshold: int) -> int:
    """Return how many random bytes `split` needs: 48 per coefficient."""
    return _COEFFICIENT_BYTES * (threshold - 1)


def split(secret: bytes, threshold: int, count: int, randomness: bytes) -> tuple[bytes, ...]:
    """Cut `secret` into `count` shares (33 bytes each) of which any `threshold` rebuild it.

    Args:
        secret: 32 bytes.
        threshold: t, 1 to `count`.
        count: n; the shares are the values at x = 1 … n.
        randomness: `randomness_bytes(threshold)` fresh bytes of a cryptographic generator, used for nothing else.

    Guarantee: the distribution of any t - 1 shares is the same for every secret, up to 2**-127 per coefficient.

    Raises:
        LocalProtocolError: a size is wrong.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count or len(randomness) != randomness_bytes(threshold):
        raise LocalProtocolError(
            f"cannot split {len(secret)} bytes {threshold} of {count} with {len(randomness)} random bytes"
        )
    coefficients = [int.from_bytes(secret, "big")]
    for start in range(0, len(randomness), _COEFFICIENT_BYTES):
        coefficients.append(int.from_bytes(randomness[start : start + _COEFFICIENT_BYTES], "big") % PRIME)
    return tuple(_evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, count + 1))


def check_share(share: bytes) -> None:
    """Return if `share` is 33 bytes that stand for a field element.

    Raises:
        RemoteProtocolError: it has another size (`WRONG_SIZE`), or is not below the prime (`OUT_OF_RANGE`).
    """
    _decode(share)


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Rebuild the secret (32 bytes) from exactly `threshold` shares.

    More shares would cost more and prove nothing: a wrong share is found by its hash, before it gets here.

    Args:
        shares: for each x (position in the roster + 1) its share.
        threshold: t.

    Raises:
        RemoteProtocolError: a share is not one (see `check_share`), or they rebuild more than 32 bytes
            (`OUT_OF_RANGE`): who dealt them lied.
        LocalProtocolError: not `threshold` shares, or an x that no member has.
    """
    if len(shares) != threshold or not shares or not all(1 <= x < PRIME for x in shares):
        raise LocalProtocolError(f"cannot rebuild a secret of threshold {threshold} from shares {sorted(shares)}")
    values = [_decode(share) for share in shares.values()]
    secret = sum(value * weight for value, weight in zip(values, _weights(list(shares)), strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, "the shares rebuild no 32-byte secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _decode(share: bytes) -> int:
    if len(share) != SHARE_BYTES:
        raise RemoteProtocolError(RefusalReason.WRONG_SIZE, f"a share of {len(share)} bytes instead of {SHARE_BYTES}")
    value = int.from_bytes(share, "big")
    if value >= PRIME:
        raise RemoteProtocolError(RefusalReason.OUT_OF_RANGE, "a share is not below the prime")
    return value


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    """The polynomial at x, by Horner's rule; the constant term comes first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _weights(xs: Sequence[int]) -> list[int]:
    """Lagrange's weights at zero: prod over j != i of x_j / (x_j - x_i).

    Positions are small, so products of them and of their differences are exact integers, reduced once; all
    denominators are inverted by one inversion (Montgomery's trick), which is the costly step.
    """
    numerators, denominators = [], []
    for x in xs:
        above = below = 1
        for other in xs:
            if other != x:
                above *= other
                below *= other - x
        numerators.append(above % PRIME)
        denominators.append(below % PRIME)
    products = [1]
    for denominator in denominators:
        products.append(products[-1] * denominator % PRIME)
    inverse = pow(products[-1], -1, PRIME)
    weights = [0] * len(xs)
    for at in range(len(xs) - 1, -1, -1):
        weights[at] = numerators[at] * inverse % PRIME * products[at] % PRIME
        inverse = inverse * denominators[at] % PRIME
    return weights
