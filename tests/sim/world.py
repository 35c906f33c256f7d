"""One federation in virtual time, from its first entry to its last version, with whatever the seed does to it."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from dataclasses import dataclass

from shared.effects import Note
from shared.transport.memory import MemoryBroker
from tests.builders import make_federation
from tests.sim.coverage import Coverage, watched
from tests.sim.mishaps import Mishaps
from tests.sim.parties import Coordinator, Party, Stage, Worker
from tests.sim.scenario import Scenario, scenario
from tests.sim.witness import Violation, Witness
from worker.storage import MemoryStorage

TURNS_MAX = 60_000
TRACE_MAX = 400
DEADLINE_MEDIANS = 3.0
SLACK_S = 30.0
DEPTHS_EVERY = 16
DEPTH_MAX = 2_000
"""No queue of so few clients ever holds more."""


@dataclass(slots=True)
class Outcome:
    """What came of one seed; `failure` is empty if nothing was violated."""

    seed: int
    failure: str
    digest: str
    version: int
    stopped: str
    seconds: float
    coverage: Coverage
    trace: tuple[str, ...]
    summary: str


class World:
    """Everybody and everything of one seed."""

    def __init__(self, chosen: Scenario) -> None:
        self.scenario = chosen
        self.now = 1.0
        seed = chosen.seed
        self.order, self.training = random.Random(f"order {seed}"), random.Random(f"training {seed}")
        self.keys = make_federation(chosen.clients)
        self.broker = MemoryBroker(lambda: self.now, chosen.faults)
        self.storages = {client: MemoryStorage(client) for client in sorted(self.keys.clients)}
        self.witness = Witness(self.keys, chosen.plan, self.broker, self.storages)
        self.coverage = Coverage()
        self.slowness: dict[str, float] = {}
        self.owner: dict[float, str] = {}
        self.calm = False
        self.calm_at = 0.0
        self.waiting_said_at = -1.0
        self._trace: deque[str] = deque(maxlen=TRACE_MAX)
        self._digest = hashlib.sha256()
        clients = list(self.storages)
        self.parties: list[Party] = [
            Coordinator(self, "coordinator-a"),
            Coordinator(self, "coordinator-b"),
            *(Stage(self, f"stage-{number}") for number in range(chosen.stages)),
            *(
                Worker(self, f"worker-{number}", tuple(clients[number :: chosen.processes]))
                for number in range(chosen.processes)
            ),
        ]
        if not chosen.stand_by:
            self.parties[1].down_until = float("inf")
        self.mishaps = Mishaps(self, random.Random(f"mishaps {seed}"))
        self._turns = 0
        self._progress_at, self._seen_version, self._longest = 0.0, -1, 0.0

    def clock_us(self) -> int:
        """The wall clock of every machine, which all agree."""
        return int(self.now * 1e6)

    # ── what is heard ────────────────────────────────────────────────────────────────────────────────────────────────

    def tell(self, text: str) -> None:
        """One line of the trace."""
        self._trace.append(f"{self.now:9.3f}  {text}")
        self.trace(text)

    def trace(self, text: str) -> None:
        """One event that a repetition of this seed must show as well."""
        self._digest.update(f"{self.now!r} {text}\n".encode())

    def count(self, fault: str, times: int = 1) -> None:
        """A fault has happened."""
        self.coverage.faults[fault] += times

    def on_publish(self, party: Party, key: str, body: bytes) -> None:
        """Something is about to leave a process."""
        self._digest.update(f"{self.now!r} {party.name} {key} ".encode() + body)
        self.witness.published(body, party.unspent() if isinstance(party, Worker) else {})

    def on_note(self, party: Party, note: Note) -> None:
        """A process tells its operator something."""
        if note.level != "debug":
            fields = ", ".join(f"{name}={value}" for name, value in note.fields.items())
            self.tell(f"{party.name}: {note.event} {fields}"[:300])
        if note.event == "waiting_for_clients":
            self.waiting_said_at = self.now
        if note.event == "sums_differ":
            raise Violation("two sums of one group differ")

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> str:
        """Until the run has ended. Returns why it did.

        Raises:
            Violation: something that must hold does not.
        """
        with watched(self.coverage, self.witness.summed):
            for _ in range(TURNS_MAX):
                self._turn()
                if (reason := self._ended()) is not None:
                    return reason
        raise Violation(f"stalled at version {self.witness.version}")

    def _turn(self) -> None:
        if not self.calm and self.now >= self.scenario.trouble_s:
            self._calm_down()
        self.broker.advance(self.now)
        self.mishaps.tick(self.now)
        self._keep_one_coordinator()
        # Whom the system lets run first is chance.
        parties = self.order.sample(self.parties, len(self.parties))
        busy = [party.step() for party in parties]
        self._check()
        if not any(busy):
            self.now = max(self.now, self._next_at())

    def _next_at(self) -> float:
        """When anything happens next."""
        times = [self.now + 5.0]
        due = self.broker.next_event_at()
        if due is not None:
            times.append(due)
        if not self.calm:
            times += [self.mishaps.next_at, self.scenario.trouble_s]
        for party in self.parties:
            if not party.alive:
                assert party.down_until is not None
                times.append(party.down_until)
            elif party.frozen:
                times.append(party.frozen_until if party.cut_off else party.frozen_at + 16.0)
            else:
                times.append(party.next_at())
        return max(min(times), self.now + 0.001)

    def _calm_down(self) -> None:
        self.tell("the trouble is over")
        self.calm, self.calm_at = True, self.now
        self.broker.inject(None)
        self.mishaps.end()
        # Who still stands still, or is on its way back, is waited for.
        times = [party.frozen_until if party.alive else party.down_until or 0.0 for party in self.parties]
        self._progress_at = max([self.now, *(time for time in times if time < float("inf"))])

    def _keep_one_coordinator(self) -> None:
        """Whoever supervises the coordinators starts one when there is none."""
        ours = [party for party in self.parties if isinstance(party, Coordinator)]
        if all(party.down_until == float("inf") for party in ours):
            ours[0].down_until = self.now + 2.0

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────

    def _check(self) -> None:
        witness = self.witness
        witness.read_log()
        if witness.version > self._seen_version:
            self._longest = max(self._longest, self.now - self._progress_at)
            self._seen_version, self._progress_at = witness.version, self.now
            self.tell(f"version {witness.version}")
        for party in self.parties:
            service = getattr(party, "service", None)
            if party.alive and service is not None:
                witness.check_reader(party.name, service.log)
        self._turns += 1
        for queue in self._queues() if self._turns % DEPTHS_EVERY == 0 else ():
            if self.broker.depth(queue) > DEPTH_MAX:
                raise Violation(f"{self.broker.depth(queue)} messages in {queue}")

    def _queues(self) -> list[str]:
        names = self.keys.names
        return [names.offers, names.groups, names.sums, names.dead, *(names.client(one) for one in self.storages)]

    def _ended(self) -> str | None:
        for party in self.parties:
            service = getattr(party, "service", None)
            if isinstance(party, Coordinator) and party.alive and service is not None and service.finished is not None:
                return service.finished.reason or "planned rounds are done"
        if self.calm and self.now > self._progress_at + self._patience_s():
            return self._explain()
        return None

    def _patience_s(self) -> float:
        """The stated deadlines of one version: the round's, which follows how long offers took, and the sums'."""
        round_s = max(self.scenario.plan.round.round_deadline_s, DEADLINE_MEDIANS * self._longest)
        return round_s + self.scenario.plan.round.sums_deadline_s + SLACK_S

    def _explain(self) -> str:
        """No version comes although nothing goes wrong any more: that is right only if too few are there, and said."""
        there = sum(party.able for party in self.parties if isinstance(party, Worker))
        needed = self.scenario.plan.min_offers
        if there >= needed:
            raise Violation(
                f"no version after {self.witness.version} for {self.now - self._progress_at:.0f} s, "
                f"although {there} clients are there and a draw needs {needed}"
            )
        if self.waiting_said_at < 0:
            raise Violation(f"{there} clients are there, a draw needs {needed}, and nobody says so")
        return "too few clients, and it is said"

    @property
    def trace_digest(self) -> str:
        """What a repetition of this seed must give, too."""
        return self._digest.hexdigest()

    @property
    def trace_lines(self) -> tuple[str, ...]:
        """The last things that happened."""
        return tuple(self._trace)


def run_seed(seed: int) -> Outcome:
    """Run one seed; a violation, or an error of the code under test, becomes the outcome's `failure`."""
    chosen = scenario(seed)
    world, failure, stopped = World(chosen), "", ""
    try:
        stopped = world.run()
    except Exception as error:  # noqa: BLE001 - whatever the code under test raises is what we look for
        failure = f"{type(error).__name__}: {error}"
    return _outcome(world, failure, stopped)


def _outcome(world: World, failure: str, stopped: str) -> Outcome:
    coverage, chosen = world.coverage, world.scenario
    coverage.faults.update(world.broker.happened)
    for party in world.parties:
        if party.alive and party.transport is not None:
            coverage.faults["overtaking"] += party.transport.seat.overtakings
    coverage.seeds, coverage.versions = 1, max(0, world.witness.version)
    coverage.seeds_of_five = int(world.witness.version >= 5)
    coverage.stops[stopped or "failed"] += 1
    plan = chosen.plan
    coverage.choices.update(
        (plan.round.mode, plan.codec.selection, f"g={plan.group_size}", f"privacy {plan.privacy.level}")
    )
    return Outcome(
        seed=chosen.seed,
        failure=failure,
        digest=world.trace_digest,
        version=world.witness.version,
        stopped=stopped,
        seconds=world.now,
        coverage=coverage,
        trace=world.trace_lines,
        summary=chosen.summary(),
    )
