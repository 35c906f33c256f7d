"""Where does the randomness of privacy come from? A stream cipher with a fresh key of the operating system.

    source = SecureSource.fresh()           or SecureSource(key), which repeats itself, for tests
    source.random(out=uniform)              uniform numbers of [0, 1), as rounding takes them
    source.normals(noise)                   standard normals into float64 or float32
    source.sample(count, rate)              who is in a Poisson sample
    source.integers(count, bound)           uniform integers below a bound

Guarantee: nobody without the key can tell the words from uniform ones (`shared.crypto.prg`); a statistical generator
can be rebuilt from its output, and then the noise be subtracted. A stream takes a new key out of itself after 1 GiB.

What floating point leaves open. The normals are not exact: they lie on a grid of doubles, and x + noise cannot take
every value for every x, which has been used to tell neighbors apart from the low bits (Mironov 2012). Against it:

* Each normal is half the sum of four, drawn from eight 64-bit words. Finding the words behind a value, which breaks a
  single draw, takes a search over four (Holohan and Braghin 2021; Opacus' secure mode does the same).
* Uniforms of the radius keep 64 bits near zero, so tails reach 9.5 standard deviations per draw, where 32-bit words
  end at 6.7.
* Whoever adds noise should do so in double precision and release a coarser rounding of the sum: words of 16 or 32 bits
  after stochastic rounding show no low bits. The library does both.

What remains is a relative error of about 2^-50 in the probability of a rounded value, which no accountant here counts.
Integer noise (`shared.privacy.skellam`) does not have the problem.

Reference: I. Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012; N. Holohan,
S. Braghin, "Secure Random Sampling in Differential Privacy", ESORICS 2021; G. Box, M. Muller, "A Note on the Generation
of Random Normal Deviates", 1958.
"""

from __future__ import annotations

import math
import secrets
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.crypto.prg import KEY_BYTES, Keystream
from shared.errors import LocalProtocolError

Doubles: TypeAlias = npt.NDArray[np.float64]
Longs: TypeAlias = npt.NDArray[np.uint64]
Floats: TypeAlias = npt.NDArray[np.float64] | npt.NDArray[np.float32]

_REKEY_BYTES = 2**30
_BLOCK = 8 * 1024
"""Elements handled at a time: the handful of float64 blocks that a normal needs fit the second-level cache."""

_SUMMANDS = 4
_SIN = [(-1.0) ** n / math.factorial(2 * n + 1) for n in range(8)]
_COS = [(-1.0) ** n / math.factorial(2 * n) for n in range(9)]
"""Taylor coefficients: on [-pi/4, pi/4] the sums are exact to 1e-16. numpy has no fast sine of doubles."""


class SecureSource:
    """One stream of cryptographic randomness; it is a `shared.codec.quantize.UniformSource`. For one thread."""

    __slots__ = ("_left", "_stream")

    def __init__(self, key: bytes) -> None:
        """Start the stream of a key (32 bytes), which must be used nowhere else.

        Raises:
            LocalProtocolError: the key has another size.
        """
        self._stream = Keystream(key)
        self._left = _REKEY_BYTES

    @classmethod
    def fresh(cls) -> SecureSource:
        """Start a stream with a key that the operating system has just drawn."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def words(self, count: int) -> Longs:
        """Return (count,) uniform uint64."""
        out = np.empty(count, dtype="<u8")
        self._fill(out)
        return out

    def random(self, *, out: Doubles) -> Doubles:
        """Fill `out`, contiguous float64 of any shape, with uniform multiples of 2^-53 in [0, 1), and return it."""
        flat = _flat(out)
        for start in range(0, len(flat), _BLOCK):
            part = flat[start : start + _BLOCK]
            np.multiply(self.words(len(part)) >> 11, 2.0**-53, out=part)
        return out

    def normals(self, out: Floats) -> None:
        """Fill `out`, contiguous float64 or float32 of any shape, with independent standard normals."""
        flat = _flat(out)
        for start in range(0, len(flat), 2 * _BLOCK):
            part = flat[start : start + 2 * _BLOCK]
            half = (len(part) + 1) // 2
            cosines, sines = np.zeros(half), np.zeros(half)
            for _ in range(_SUMMANDS):
                self._add_normals(cosines, sines)
            part[:half] = cosines / math.sqrt(_SUMMANDS)
            part[half:] = sines[: len(part) - half] / math.sqrt(_SUMMANDS)

    def sample(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        """Return (count,) bool: each true with probability `rate` (up to 2^-53), independently. All true for rate 1.

        Raises:
            LocalProtocolError: the rate is not a probability.
        """
        if not 0.0 <= rate <= 1.0:
            raise LocalProtocolError(f"a sampling rate lies between 0 and 1, not at {rate}")
        return np.less(self.random(out=np.empty(count)), rate)

    def integers(self, count: int, bound: int) -> npt.NDArray[np.int64]:
        """Return (count,) int64, uniform below `bound` without bias: words in the last, incomplete run are redrawn.

        Raises:
            LocalProtocolError: the bound is not in [1, 2^63].
        """
        if not 1 <= bound <= 2**63:
            raise LocalProtocolError(f"no integers are uniform below {bound}")
        highest = 2**64 - 2**64 % bound - 1
        out = self.words(count)
        while (redrawn := np.flatnonzero(out > np.uint64(highest))).size:
            out[redrawn] = self.words(redrawn.size)
        return (out % np.uint64(bound)).astype(np.int64)

    def _add_normals(self, cosines: Doubles, sines: Doubles) -> None:
        """Add two independent standard normals per element: radius times cosine and sine of a uniform angle."""
        count = len(cosines)
        words = self.words(2 * count)
        radius = (words[:count] + 0.5) * 2.0**-64
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        quarter = words[count:].view("<i8") * (math.pi / 4.0 * 2.0**-63)
        square = quarter * quarter
        sine = _horner(_SIN, square)
        sine *= quarter
        cosine = _horner(_COS, square)
        # Twice the double angle: sin 2x = 2 sin x cos x, cos 2x = 1 - 2 sin² x.
        sine, cosine = _doubled(*_doubled(sine, cosine))
        cosine *= radius
        sine *= radius
        cosines += cosine
        sines += sine

    def _fill(self, out: Longs) -> None:
        """Take the next words, and a new key before each GiB."""
        for start in range(0, len(out), _REKEY_BYTES // 8):
            part = out[start : start + _REKEY_BYTES // 8]
            if part.nbytes > self._left:
                key = np.empty(KEY_BYTES // 4, dtype="<u4")
                self._stream.fill(key)
                self._stream, self._left = Keystream(key.tobytes()), _REKEY_BYTES
            self._left -= part.nbytes
            self._stream.fill(part.view("<u4"))


def _flat(out: npt.NDArray[Any]) -> Any:
    """View an array as one vector.

    Raises:
        LocalProtocolError: it is not contiguous, so that filling a flat copy would leave it as it is.
    """
    if not out.flags.c_contiguous:
        raise LocalProtocolError("randomness is written into contiguous arrays")
    return out.reshape(-1)


def _horner(coefficients: list[float], x: Doubles) -> Doubles:
    """Return the polynomial with these coefficients, lowest first, at x."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= x
        total += coefficient
    return total


def _doubled(sine: Doubles, cosine: Doubles) -> tuple[Doubles, Doubles]:
    """Return sine and cosine of twice the angle."""
    cosine *= sine
    cosine *= 2.0
    sine *= sine
    sine *= -2.0
    sine += 1.0
    return cosine, sine
