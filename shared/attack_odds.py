"""How likely is it that attackers spoil more groups than the robust rule can bear?"""

from __future__ import annotations

from math import comb

from shared.crypto.draw import cut_groups


def attack_odds(clients: int, group_size: int, attackers: int, trim: int) -> float:
    """Probability that more than `trim` groups of a random draw hold at least one attacker.

    Exact: it counts the ways in which `attackers` of `clients` fall into the draw's groups (a multivariate
    hypergeometric distribution).

    Args:
        clients: how many are drawn.
        group_size: g; left-overs spread over the groups.
        attackers: f, 0 to `clients`.
        trim: groups that may be attacked without harm.
    """
    sizes = [len(group) for group in cut_groups(clients, group_size)]
    # ways[h][a]: in how many ways a attackers hit exactly h of the groups seen so far.
    ways = [[1] + [0] * attackers]
    for size in sizes:
        longer = [[0] * (attackers + 1) for _ in range(len(ways) + 1)]
        for hit, counts in enumerate(ways):
            for placed, count in enumerate(counts):
                if not count:
                    continue
                longer[hit][placed] += count
                for here in range(1, min(size, attackers - placed) + 1):
                    longer[hit + 1][placed + here] += count * comb(size, here)
        ways = longer
    harmless = sum(counts[attackers] for counts in ways[: trim + 1])
    return 1.0 - harmless / comb(clients, attackers)


def odds_table(clients: int, group_size: int, trim: int) -> dict[str, float]:
    """`attack_odds` for 1 to trim + 2 attackers (by their number as text), as far as there are clients."""
    return {
        str(attackers): attack_odds(clients, group_size, attackers, trim)
        for attackers in range(1, min(clients, trim + 2) + 1)
    }
