"""`make bench`: every benchmark, over a real RabbitMQ."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from deploy.brokers import BrokerKind, choose_broker
from tests.bench.codec import bench_codec
from tests.bench.robust import bench_robust
from tests.bench.rounds import bench_rounds


def main() -> None:
    """Run all, print tables."""
    console = Console()
    requested = sys.argv[1] if len(sys.argv) > 1 else "auto"
    with choose_broker(requested, Path(".comitia") / "broker", say=console.print) as broker:
        console.print(broker.reason)
        if broker.kind is BrokerKind.MEMORY:
            sys.exit("bench: rounds are measured over RabbitMQ only")
        bench_codec(console)
        bench_robust(console)
        bench_rounds(broker, console)


if __name__ == "__main__":
    main()
