"""How do members' words become a group's sum?

Words are integers mod 2**b, so addition is exact, and the order of arrival changes nothing. In a group of one the
sum is the words.
"""

from __future__ import annotations

import numpy as np

from shared.codec.quantize import Words
from shared.errors import LocalProtocolError


def add_words(total: Words, words: Words) -> None:
    """Add `words` to `total` mod 2**b, in place.

    Args:
        total: (length,) unsigned, writable.
        words: the same shape and dtype.

    Raises:
        LocalProtocolError: shapes or dtypes differ.
    """
    if total.shape != words.shape or total.dtype != words.dtype:
        raise LocalProtocolError(
            f"cannot add {words.dtype} words of shape {words.shape} to {total.dtype} {total.shape}"
        )
    np.add(total, words, out=total)
