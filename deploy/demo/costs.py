"""What does a simulated version cost? Seconds, memory, messages and bytes by party, and where the time goes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator

from deploy.demo.meter import OF_UPDATE, Received
from deploy.demo.sampler import Sampler
from shared.effects import Note, note
from shared.modellog.chain import ChainState

_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""What the operating system counts the resident memory in."""


class Costs:
    """Follows one simulation. Its seconds are those of the machine it runs on, not of the virtual clock."""

    def __init__(self, clients: int, *, secure: bool, journal_bytes: Callable[[], int]) -> None:
        """
        Args:
            clients: of the federation.
            secure: whether its groups are of more than one.
            journal_bytes: what the coordinator has written to its journal so far; it reads it only when it starts.
        """
        self.sampler = Sampler()
        self.at_coordinator = Received()
        self.at_workers = Received()
        self._coordinator_steps = 0
        self.worker_steps = 0
        self._clients = clients
        self._journal_bytes = journal_bytes
        self._expected = clients * (len(OF_UPDATE) if secure else 2)
        self._version = 0
        self._told = 0.0
        self._seconds_keys = 0.0
        self._began = self._begin()

    def keys_made(self) -> None:
        """The identities are there; what follows is the first version's."""
        self._seconds_keys = time.perf_counter() - self._began[0]
        self._began = self._begin()

    def _begin(self) -> tuple[float, float, Received, Received, int, int, int]:
        counted = self.at_coordinator.copy(), self.at_workers.copy()
        steps = self._coordinator_steps, self.worker_steps
        return time.perf_counter(), time.process_time(), *counted, *steps, self._journal_bytes()

    def progress(self) -> Iterator[Note]:
        """How far the version under way is, if it is a hundredth further than when it was said last."""
        done = self.at_coordinator.update_messages() - self._began[2].update_messages()
        share = min(1.0, done / self._expected)
        if share >= self._told + 0.01:
            self._told = share
            yield note("version_progress", "debug", version=self._version, share=share)

    def coordinator_stepped(self, chain: ChainState | None) -> Iterator[Note]:
        """Count a step; if it has read a new version back, say what that took since the one before.

        The first version's figures include the start of all processes.
        """
        self._coordinator_steps += 1
        if chain is not None and chain.version > self._version:
            yield self._finished(chain.version)

    def _finished(self, version: int) -> Note:
        wall, cpu, coordinator, workers, coordinator_steps, worker_steps, journal_bytes = self._began
        up, down = self.at_coordinator.since(coordinator), self.at_workers.since(workers)
        fields: dict[str, object] = {
            "version": version,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "coordinator_steps": self._coordinator_steps - coordinator_steps,
            "worker_steps": self.worker_steps - worker_steps,
            "messages_to_coordinator": up.messages.total(),
            "messages_to_workers": down.messages.total(),
            "deliveries_to_coordinator": up.deliveries,
            "deliveries_to_workers": down.deliveries,
            "bytes_to_coordinator": up.bytes,
            "bytes_between_roles": up.own_bytes,
            "bytes_to_workers": down.bytes,
            "bytes_of_log": up.log_bytes,
            "bytes_of_journal": self._journal_bytes() - journal_bytes,
            "messages": {kind.name.lower(): count for kind, count in sorted((up.messages + down.messages).items())},
            "bytes_out_per_client": up.bytes / self._clients,
            "bytes_in_per_client": down.bytes / self._clients,
        }
        self._version, self._told, self._began = version, 0.0, self._begin()
        return Note("version_measured", "debug", fields)

    def summary(self, trained: bool) -> Note:
        """What the run took."""
        return note(
            "simulation_measured",
            "debug",
            trained=trained,
            clients=self._clients,
            seconds_keys=self._seconds_keys,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES,
            time_shares=self.sampler.shares(),
        )
