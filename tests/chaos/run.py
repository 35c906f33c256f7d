"""One federation while everything around it is killed, then what is left of it; and one that nobody disturbs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.output import Evaluator
from shared.modellog.reader import LogReader
from shared.workloads.loading import load_workload
from tests.chaos.broker_node import BrokerNode, broker_node
from tests.chaos.cast import CLIENTS, RECORD_PRIVACY, Cast, Size, ledgers, settings, wait_for_versions
from tests.chaos.checks import LedgerWatch, check_log, check_spending, tap_words, words_that_left
from tests.chaos.vandal import Vandal
from tests.integration.federation import LiveFederation

WORKLOAD = "digits"
ROUNDS_MAX = 5_000
START_S = 300.0
KILLS_PER_MINUTE = 8
AFTERWARDS = 2
AFTERWARDS_S = 90.0


@dataclass
class Outcome:
    """What came of a run; `figures` are printed, `unexpected` lists processes that ended by themselves."""

    kills: int
    deeds: dict[str, int]
    versions: int
    accuracy: float
    figures: dict[str, object] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


def run_chaos(
    root: Path,
    seconds: float,
    seed: int,
    say: Callable[[str], None],
    *,
    private: bool = False,
    size: Size | None = None,
) -> Outcome:
    """Let a federation learn for so long while a vandal is about; then check what must hold.

    Raises:
        AssertionError: it does not hold.
        TimeoutError: no versions come although nobody disturbs any more.
    """
    (root / "broker").mkdir(parents=True)
    with broker_node(root / "broker") as node:
        federation = make_federation(root / "disturbed", node, ROUNDS_MAX, private)
        cast, watch = Cast(federation, size or Size()), LedgerWatch()
        vandal = Vandal(cast, random.Random(seed), say)
        try:
            cast.start(node, lambda: tap_words(federation))
            wait_for_versions(cast, 1, START_S)
            kills = round(KILLS_PER_MINUTE * seconds / 60)
            vandal.rampage(seconds, kills, lambda: watch.look(ledgers(federation.root, federation.clients)))
            recovered_s = wait_for_versions(cast, AFTERWARDS, AFTERWARDS_S)
            federation.end()
            watch.look(ledgers(federation.root, federation.clients))
            return judge(federation, vandal, watch, recovered_s)
        finally:
            federation.end()


def run_undisturbed(root: Path, versions: int, private: bool) -> float:
    """The accuracy of a run of as many versions that nobody disturbs."""
    (root / "broker-2").mkdir(parents=True)
    with broker_node(root / "broker-2") as node:
        federation = make_federation(root / "undisturbed", node, versions, private)
        try:
            federation.start_stage()
            coordinator = federation.start_coordinator()
            federation.start_workers(1)
            assert coordinator.wait(3600.0) == 0, coordinator.tail()
            return accuracy_of(federation.read_log()[0])
        finally:
            federation.end()


def make_federation(root: Path, node: BrokerNode, rounds: int, private: bool) -> LiveFederation:
    """A federation of the cast's settings; only the number of rounds differs."""
    root.mkdir()
    privacy = RECORD_PRIVACY if private else None
    return LiveFederation(root, node.url, WORKLOAD, CLIENTS, settings(rounds, privacy))


def judge(federation: LiveFederation, vandal: Vandal, watch: LedgerWatch, recovered_s: float) -> Outcome:
    """Check what is left, and report it."""
    reader, entries = federation.read_log()
    words = words_that_left(federation)
    figures: dict[str, object] = {**check_log(entries), **check_spending(watch.spent(), words)}
    assert reader.chain is not None
    assert figures["versions"] == reader.chain.version
    return Outcome(
        kills=vandal.kills,
        deeds={f"{deed} {kind}": count for (deed, kind), count in sorted(vandal.deeds.items())},
        versions=reader.chain.version,
        accuracy=accuracy_of(reader),
        figures={**figures, "ledger_looks": watch.looks, "seconds_to_recover": round(recovered_s, 1)},
        unexpected=vandal.unexpected,
    )


def accuracy_of(reader: LogReader) -> float:
    """The accuracy of the newest version on the held-out data."""
    assert reader.plan is not None
    assert reader.chain is not None
    workload = load_workload(reader.plan.workload, reader.plan.workload_options)
    evaluation = Evaluator(workload).evaluate(reader.chain.version, reader.weights)
    assert evaluation is not None
    assert evaluation.accuracy is not None
    return evaluation.accuracy


def progress(began: float) -> str:
    """How long it has been, for lines of progress."""
    return f"{time.monotonic() - began:6.1f} s"
