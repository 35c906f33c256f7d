"""Does the demo survive its broker, and does nothing survive the demo?"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.brokers.broker import Broker
from tests.integration.federation import COMMAND, ROOT, WAIT_S, descendants, wait_until

ROUNDS_MANY = 200
SMALL = ("--workload", "tests.integration.workloads:Small", "--robust", "mean", "--group-size", "1")

StartDemo = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_demo(rabbitmq_url: str, tmp_path: Path) -> Iterator[StartDemo]:
    """Starts a demo in the background, which prints to `out` and `err` and reports to `report.json`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            process = subprocess.Popen(
                # As from a terminal, also where these tests run in the background: there SIGINT is ignored.
                [
                    "env",
                    "--default-signal=INT",
                    *COMMAND,
                    "demo",
                    "--broker",
                    rabbitmq_url,
                    "--report",
                    "report.json",
                    *options,
                ],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def version_of(tmp_path: Path) -> int:
    """The newest version that the demo has shown."""
    shown = re.findall(r"^ +(\d+) .* \d+\.\d\d$", (tmp_path / "out").read_text(), re.MULTILINE)
    return int(shown[-1]) if shown else 0


@pytest.mark.slow
def test_the_run_goes_on_by_itself_when_the_broker_is_restarted(
    restartable_broker: Broker, start_demo: StartDemo, tmp_path: Path
) -> None:
    demo = start_demo(*SMALL, "--rounds", str(ROUNDS_MANY), "--clients", "6", "--processes", "2")
    wait_until(lambda: version_of(tmp_path) >= 10 or demo.poll() is not None, "version 10")

    restartable_broker.restart_app()
    at_restart = version_of(tmp_path)

    assert demo.wait(WAIT_S) == 0, (tmp_path / "err").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert 10 <= at_restart < ROUNDS_MANY
    assert report["broker"]["reconnects"] >= 1
    assert [one["version"] for one in report["rounds"]] == list(range(1, ROUNDS_MANY + 1))
    assert "broker lost:" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_everything_that_the_demo_started_is_gone_when_it_is_stopped(
    start_demo: StartDemo, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    demo = start_demo(*SMALL, "--rounds", "100000", "--clients", "4", "--processes", "2")
    wait_until(lambda: version_of(tmp_path) >= 1 or demo.poll() is not None, "version 1")
    children = descendants(demo)

    demo.send_signal(number)

    assert demo.wait(WAIT_S) == code
    assert len(children) >= 6  # a coordinator and two workers, each behind the process that ties it to the demo
    assert psutil.wait_procs(children, timeout=0)[1] == []
    assert (tmp_path / "err").read_text() == ""
    assert "broker" in json.loads((tmp_path / "report.json").read_text())


def test_what_the_demo_started_ends_also_when_the_demo_is_killed(start_demo: StartDemo, tmp_path: Path) -> None:
    demo = start_demo(*SMALL, "--rounds", "100000", "--clients", "2", "--processes", "1")
    wait_until(lambda: version_of(tmp_path) >= 1 or demo.poll() is not None, "version 1")
    children = descendants(demo)

    demo.kill()

    assert len(children) >= 4
    assert psutil.wait_procs(children, timeout=60)[1] == []
