"""How are numbers of bytes, and odds, shown to people?"""

from __future__ import annotations

from collections.abc import Mapping


def size_text(count: float) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def saving_text(sent: float, dense: float) -> str:
    """How the bytes that are sent compare with those of a dense update; a small model's frames outweigh its values."""
    return f"{dense / sent:.1f} times fewer" if sent <= dense else f"{sent / dense:.1f} times as many"


def attacked_text(trim: int) -> str:
    """What the odds are about: that more groups are attacked than the rule trims."""
    return f"more than {trim} {'group' if trim == 1 else 'groups'} attacked"


def odds_text(odds: Mapping[str, float]) -> str:
    """Odds by the number of attackers, as `shared.attack_odds.odds_table` has them."""
    return ", ".join(f"{odd:.1%} with {count} attacker{'' if count == '1' else 's'}" for count, odd in odds.items())
