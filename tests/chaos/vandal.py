"""What is done to whom, and when: one seed decides. Everybody comes back after a while."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.cast import HEARTBEAT_S, Cast, Part

# Of every kind of process, how often it is chosen.
CHANCES = {"coordinator": 4, "stage": 3, "worker": 4, "broker": 1}
DEEDS = {"kill": 7, "freeze": 2, "restart": 1}
PAUSE_S = (1.0, 5.0)
AWAY_S = (0.0, 2.0)
FROZEN_S = (0.5, 4.0 * HEARTBEAT_S)
STEP_S = 0.2


@dataclass
class Vandal:
    """Does its deeds, one after the other, while those who were hit come back at their time."""

    cast: Cast
    chance: random.Random
    say: Callable[[str], None]
    deeds: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    _due: list[tuple[float, str, Part]] = field(default_factory=list)

    def rampage(self, seconds: float, kills: int, watch: Callable[[], None]) -> None:
        """Go on for so long and for so many kills, but at most for twice as long, then let everybody come back.

        `watch` is called all the time.
        """
        began = next_deed = time.monotonic()
        while (now := time.monotonic()) < began + seconds or (self.kills < kills and now < began + 2 * seconds):
            self._bring_back(now)
            self._notice_ends()
            if now >= next_deed:
                self._do_one(now)
                next_deed = time.monotonic() + self.chance.uniform(*PAUSE_S)
            watch()
            time.sleep(STEP_S)
        self._bring_back(float("inf"))

    @property
    def kills(self) -> int:
        """How many processes were killed with -9."""
        return sum(count for (deed, _), count in self.deeds.items() if deed == "kill")

    def _do_one(self, now: float) -> None:
        away = [part for _, _, part in self._due]
        # The kind first: a broker is not killed more often because everybody else is still starting.
        (kind,) = self.chance.choices(list(CHANCES), list(CHANCES.values()))
        here = [part for part in self.cast.parts if part.kind == kind and part not in away and part.at_work()]
        if not here:
            return
        part = self.chance.choice(here)
        (deed,) = self.chance.choices(list(DEEDS), list(DEEDS.values()))
        if deed == "restart" and kind == "broker":
            deed = "kill"
        self.deeds[deed, kind] += 1
        self.say(f"{deed} {kind}")
        match deed:
            case "freeze":
                part.signal(signal.SIGSTOP)
                self._due.append((now + self.chance.uniform(*FROZEN_S), "wake", part))
            case _:
                part.signal(signal.SIGKILL if deed == "kill" else signal.SIGTERM)
                self._due.append((now + self.chance.uniform(*AWAY_S), "start", part))

    def _bring_back(self, now: float) -> None:
        due = [one for one in self._due if one[0] <= now]
        self._due = [one for one in self._due if one[0] > now]
        for _, how, part in due:
            if how == "wake":
                part.signal(signal.SIGCONT)
            else:
                part.start()

    def _notice_ends(self) -> None:
        away = [part for _, _, part in self._due]
        for part in self.cast.parts:
            if part not in away and not part.alive():
                process = getattr(part, "process", None)
                self.unexpected.append(f"{part.kind} ended by itself\n{process.tail() if process else ''}")
                self.say(f"a {part.kind} ended by itself")
                part.start()
