"""What may go wrong between a client and the in-process broker, when, and in what order?

Everything is drawn from one seed and happens in virtual time, so a run of a simulation can be repeated exactly. AMQP
keeps the order of one publisher, and of one queue toward one consumer, and so does a `Line`: a delayed message holds up
those behind it. Between lines nothing is ordered: each queue of a broker sends at its own pace.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import LocalProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities, each in [0, 1], and their bounds in seconds of virtual time.

    `delay`: a frame takes up to `delay_max_s` on its way to or from the broker. `duplicate`: a publish is taken twice.
    `lost_confirm`: the connections break behind a publish that was taken, before its confirm is on its way.
    `drop_transient`: a transient message is confirmed and lost. `connection_loss`: a publish or a settlement is
    followed by the loss of its client's connections for up to `outage_max_s`; any number of the frames on their way to
    the broker still arrive, none of those on their way back do.
    """

    seed: int
    delay: float = 0.0
    delay_max_s: float = 1.0
    lost_confirm: float = 0.0
    duplicate: float = 0.0
    drop_transient: float = 0.0
    connection_loss: float = 0.0
    outage_max_s: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what is not a probability or a duration."""
        chances = (self.delay, self.lost_confirm, self.duplicate, self.drop_transient, self.connection_loss)
        if not all(0 <= chance <= 1 for chance in chances) or self.delay_max_s < 0 or self.outage_max_s < 0:
            raise LocalProtocolError("faults are probabilities in [0, 1] and durations of at least zero")

    @property
    def takes_time(self) -> bool:
        """Whether anything is ever late, so that a clock is needed."""
        return self.delay > 0 or self.connection_loss > 0 or self.lost_confirm > 0


class Dice:
    """Draws from `Faults`; without any, nothing ever happens. `happened` counts what did, by the fault's name."""

    def __init__(self, faults: Faults | None, happened: Counter[str]) -> None:
        self._faults = faults or Faults(seed=0)
        self._random = random.Random(self._faults.seed)
        self._happened = happened

    def delay_s(self) -> float:
        """How long one frame is under way."""
        late = self._happens(self._faults.delay, "delay")
        return self._random.uniform(0, self._faults.delay_max_s) if late else 0.0

    def outage_s(self) -> float:
        """How long a lost connection stays away."""
        lossy = self._faults.connection_loss or self._faults.lost_confirm
        return self._random.uniform(0, self._faults.outage_max_s) if lossy else 0.0

    def duplicates(self) -> bool:
        """Whether this publish is taken twice."""
        return self._happens(self._faults.duplicate, "duplicate")

    def drops(self) -> bool:
        """Whether this transient message is lost."""
        return self._happens(self._faults.drop_transient, "drop_transient")

    def disconnects(self) -> bool:
        """Whether the connection breaks now."""
        return self._happens(self._faults.connection_loss, "connection_loss")

    def loses_confirm(self) -> bool:
        """Whether the connection breaks between taking a publish over and confirming it."""
        return self._happens(self._faults.lost_confirm, "lost_confirm")

    def survivors(self, frames: int) -> int:
        """How many of the frames under way to the broker arrive although the connection breaks."""
        return self._random.randint(0, frames)

    def _happens(self, chance: float, fault: str) -> bool:
        # No draw for what cannot happen: turning one fault off leaves the others' sequence alone.
        happens = chance > 0 and self._random.random() < chance
        self._happened[fault] += happens
        return happens


@dataclass(slots=True, eq=False)
class _Frame:
    run: Callable[[], None]
    due: float
    gone: bool = False


class Timetable:
    """What happens later, in virtual time; at one instant in the order in which it was put here."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, _Frame]] = []
        self._order = itertools.count()
        self._now = clock()

    def now(self) -> float:
        """The later of the clock and what has been run already."""
        return max(self._clock(), self._now)

    def at(self, due: float, run: Callable[[], None]) -> _Frame:
        """Run something when `advance` reaches `due`."""
        frame = _Frame(run, due)
        heapq.heappush(self._heap, (due, next(self._order), frame))
        return frame

    def next_at(self) -> float | None:
        """When the next thing happens, or None."""
        while self._heap and self._heap[0][2].gone:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def advance(self, now: float) -> None:
        """Run everything that is due by `now`, also what that leads to."""
        while (due := self.next_at()) is not None and due <= now:
            frame = heapq.heappop(self._heap)[2]
            self._now = max(self._now, due)
            frame.gone = True
            frame.run()
        self._now = max(self._now, now)


class Line:
    """One direction of one connection: frames arrive in order, at once unless the dice delay them."""

    def __init__(self, timetable: Timetable, dice: Callable[[], Dice]) -> None:
        self._timetable = timetable
        self._dice = dice
        self._under_way: deque[_Frame] = deque()

    def send(self, run: Callable[[], None]) -> None:
        """Let `run` happen at the other end."""
        while self._under_way and self._under_way[0].gone:
            self._under_way.popleft()
        now = self._timetable.now()
        due = now + self._dice().delay_s()
        if self._under_way:
            due = max(due, self._under_way[-1].due)
        elif due <= now:
            run()
            return
        self._under_way.append(self._timetable.at(due, run))

    def flush(self) -> None:
        """Let everything under way arrive now."""
        self._end(len(self._under_way))

    def cut(self, *, some_arrive: bool) -> None:
        """The connection breaks: of the frames under way the first few arrive, or none."""
        waiting = sum(not frame.gone for frame in self._under_way)
        self._end(self._dice().survivors(waiting) if some_arrive and waiting else 0)

    def _end(self, arriving: int) -> None:
        frames = [frame for frame in self._under_way if not frame.gone]
        self._under_way.clear()
        for frame in frames:
            frame.gone = True
        for frame in frames[:arriving]:
            frame.run()
