"""What happens to whom, and when: kills, freezes, cuts, restarts, a second coordinator; all drawn from the seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.sim.parties import Coordinator, Party, Worker

if TYPE_CHECKING:
    from tests.sim.world import World

EFFECTS_MAX = (5, 20, 60)
"""Who is to die does so within so many effects, or so many."""

SHORT_S = (0.5, 8.0)
LONG_S = (17.0, 40.0)
"""Longer than the broker waits for a sign of life."""

CUT_S = (0.1, 5.0)


class Mishaps:
    """Things that go wrong at random times until the trouble is over."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self.next_at = self._later(world.now)
        self._unblock_at: float | None = None
        self._speed_up: dict[str, float] = {}
        self._kinds = {
            self._kill_coordinator: 4,
            self._kill_stage: 3,
            self._kill_worker: 5,
            self._freeze_coordinator: 1,
            self._freeze_stage: 3,
            self._freeze_worker: 1,
            self._second_coordinator: 1,
            self._cut: 2,
            self._split_stages: 2,
            self._restart_broker: 2,
            self._block_broker: 1,
            self._slow_client: 2,
            self._vanish: 1,
        }

    def tick(self, now: float) -> None:
        """Let happen what is due."""
        if self._unblock_at is not None and now >= self._unblock_at:
            self._unblock_at = None
            self._world.broker.unblock()
        if now < self.next_at or self._world.calm:
            return
        self.next_at = self._later(now)
        (mishap,) = self._chance.choices(list(self._kinds), weights=list(self._kinds.values()))
        mishap()

    def end(self) -> None:
        """The trouble is over: what was taken is given back, apart from workers that have gone for good."""
        world = self._world
        if self._unblock_at is not None:
            self._unblock_at = None
            world.broker.unblock()
        world.slowness.clear()
        for party in world.parties:
            party.doom = None
            if isinstance(party, Worker) and party.down_until == float("inf") and self._chance.random() < 0.6:
                # Somebody has mended that machine; the others are gone for good.
                party.down_until = world.now

    def _later(self, now: float) -> float:
        return now + self._chance.expovariate(1.0 / self._world.scenario.mishap_every_s)

    def _one(self, kind: str) -> Party | None:
        able = [party for party in self._world.parties if party.kind == kind and party.alive and not party.frozen]
        return self._chance.choice(able) if able else None

    # ── kills ──

    def _doom(self, kind: str) -> Party | None:
        party = self._one(kind)
        if party is not None:
            party.doom = self._chance.randint(1, self._chance.choice(EFFECTS_MAX))
        return party

    def _kill_coordinator(self) -> None:
        self._doom("coordinator")

    def _kill_stage(self) -> None:
        self._doom("stage")

    def _kill_worker(self) -> None:
        party = self._doom("worker")
        if isinstance(party, Worker):
            party.power_cut = self._chance.random() < 0.6

    def _vanish(self) -> None:
        party = self._one("worker")
        if isinstance(party, Worker):
            self._world.tell(f"{party.name} has gone")
            self._world.count("vanished_worker")
            party.power_cut = self._chance.random() < 0.5
            party.end(None if self._chance.random() < 0.2 else self._chance.uniform(8.0, 25.0))

    # ── freezes ──

    def _freeze(self, kind: str, is_long: bool) -> float:
        party = self._one(kind)
        if party is None:
            return 0.0
        seconds = self._chance.uniform(*(LONG_S if is_long else SHORT_S))
        party.freeze(seconds)
        return seconds

    def _freeze_coordinator(self) -> None:
        if self._freeze("coordinator", is_long := self._chance.random() < 0.6) and is_long:
            self._world.count("coordinator_woken_beside_successor")
            self._succeed(self._chance.uniform(0.0, 6.0))

    def _freeze_stage(self) -> None:
        if self._freeze("stage", is_long := self._chance.random() < 0.4) and is_long:
            self._world.count("stage_woken_beside_successor")

    def _freeze_worker(self) -> None:
        if self._freeze("worker", is_long := self._chance.random() < 0.4) and is_long:
            self._world.count("worker_woken_after_heartbeat")

    def _second_coordinator(self) -> None:
        if self._one("coordinator") is not None:
            self._succeed(0.0)
            self._world.count("two_coordinators")

    def _succeed(self, in_s: float) -> None:
        world = self._world
        spare = [party for party in world.parties if isinstance(party, Coordinator) and not party.alive]
        if spare:
            spare[0].down_until = world.now + in_s

    # ── the network and the broker ──

    def _cut(self) -> None:
        able = [party for party in self._world.parties if party.alive and not party.frozen]
        chosen = [party for party in able if self._chance.random() < 0.5]
        self._disconnect(chosen, "network_cut")

    def _split_stages(self) -> None:
        chosen = [party for party in self._world.parties if party.kind == "worker" and party.alive]
        self._disconnect([party for party in chosen if not party.frozen], "stages_split_from_clients")

    def _disconnect(self, parties: list[Party], fault: str) -> None:
        seconds = self._chance.uniform(*CUT_S)
        self._world.tell(f"{fault}: {', '.join(party.name for party in parties)} for {seconds:.1f} s")
        self._world.count(fault)
        for party in parties:
            assert party.transport is not None
            self._world.broker.disconnect(party.transport, seconds)

    def _restart_broker(self) -> None:
        self._world.tell("the broker restarts")
        self._world.count("broker_restart")
        self._world.broker.restart()

    def _block_broker(self) -> None:
        if self._unblock_at is None:
            self._world.count("broker_blocked")
            self._unblock_at = self._world.now + self._chance.uniform(0.5, 6.0)
            self._world.broker.block("memory")

    # ── clients ──

    def _slow_client(self) -> None:
        client = self._chance.choice(sorted(self._world.storages))
        self._world.count("slow_client")
        self._world.slowness[client] = self._chance.choice((1.0, 5.0, 20.0))
