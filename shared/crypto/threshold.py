"""How many members of a group must answer before its sum is recovered?

`threshold(members, max_colluders, fraction=0.0) -> int`, a function of the plan and the length of the roster alone:
nobody takes t from a message.
"""

from __future__ import annotations

import math
from fractions import Fraction

from shared.errors import PlanError


def threshold(members: int, max_colluders: int, fraction: float = 0.0) -> int:
    """Return t(n): the smallest t with 2t > n + c, t - c >= 2 and t >= fraction * n; 1 for a group of one.

    2t > n + c: two sets of t members have more than c members in common, so at least one honest member, who signs
    only one of two different sets of participants. A coordinator with c members on its side therefore never gets
    answers for two sets. t - c >= 2: at least two honest members answer, so a sum is never one client's own words.

    Args:
        members: n, length of the roster.
        max_colluders: c, how many members may side with the coordinator without harm.
        fraction: least share of the roster that must answer, 0 to 1; noise that the members share out needs it.

    Raises:
        PlanError: no t <= n does it, or a number is out of range.

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017),
    section 6, on active adversaries.
    """
    if members < 1 or max_colluders < 0 or not 0.0 <= fraction <= 1.0:
        raise PlanError(
            f"max_colluders: no threshold for {members} members, {max_colluders} colluders, fraction {fraction}"
        )
    if members == 1 and max_colluders == 0:
        return 1
    # The decimal that was written, not the nearest binary number: 0.56 of 25 members are 14, not 15.
    answering = math.ceil(Fraction(str(fraction)) * members)
    needed = max((members + max_colluders) // 2 + 1, max_colluders + 2, answering)
    if needed > members:
        raise PlanError(
            f"max_colluders: a group of {members} cannot stand {max_colluders} colluders; "
            "allow fewer of them or make groups larger"
        )
    return needed
