"""Can a demo be paused, resumed and stopped from another terminal, with the command that it prints?"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.log_lines import parse_note
from tests.integration.federation import COMMAND, WAIT_S, environment, wait_until

STILL_S = 1.0


class Demo:
    """A demo in the background, of more rounds than anybody waits for."""

    def __init__(self, url: str, directory: Path) -> None:
        self.directory = directory
        self.report = directory / "report.json"
        self.output = directory / "printed"
        options = f"--broker {url} --clients 4 --group-size 1 --processes 1 --rounds 10000 --report {self.report}"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "demo", *options.split()],
                cwd=directory,
                env={**environment(), "COLUMNS": "200"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def printed(self) -> str:
        return self.output.read_text()

    def steering(self) -> list[str]:
        """The options of the command that the demo prints."""
        head = "from another terminal: "
        line = wait_until(lambda: [one for one in self.printed().splitlines() if one.startswith(head)], head)[0]
        words = shlex.split(line.removeprefix(head).partition("  (")[0])
        assert words[:2] == ["comitia", "pause"]
        return words[2:]

    def version(self) -> int:
        """The newest version that the coordinator has finished."""
        (log,) = self.directory.glob(".comitia/demo/*/coordinator.log")
        notes = [parse_note(line) for line in log.read_bytes().splitlines()]
        return max((note["version"] for note in notes if note and note["event"] == "round_finished"), default=0)


@pytest.fixture
def demo(rabbitmq_url: str, tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(rabbitmq_url, tmp_path)
    yield demo
    if demo.process.poll() is None:
        demo.process.terminate()
    demo.process.wait(WAIT_S)


def steer(command: str, options: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    # Another terminal: another directory, none of the demo's variables.
    elsewhere = directory / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        [*COMMAND, command, *options], cwd=elsewhere, env=environment(), capture_output=True, text=True, check=False
    )


def test_a_demo_is_paused_resumed_and_stopped_from_another_terminal(demo: Demo, tmp_path: Path) -> None:
    options = demo.steering()
    wait_until(lambda: demo.version() >= 2 or demo.process.poll() is not None, "version 2")

    paused = steer("pause", options, tmp_path)
    assert paused.returncode == 0, paused.stderr + demo.printed()
    said = re.fullmatch(r"paused at version (\d+); .*\n", paused.stdout)
    assert said, paused.stdout
    # The round that was under way goes on, however long that takes; no other begins.
    last = int(said[1]) + 1
    time.sleep(STILL_S)
    assert demo.version() <= last
    wait_until(lambda: "paused by the operator at version " in demo.printed(), "the word of it")

    assert steer("resume", options, tmp_path).returncode == 0
    wait_until(lambda: demo.version() > last, "another version")
    stopped = steer("stop", options, tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert demo.process.wait(WAIT_S) == 0, demo.printed()

    report = json.loads(demo.report.read_text())
    assert report["final"]["stopped_early"] == "stopped by the operator"
    assert report["final"]["pauses"] == 1
    assert report["final"]["model_version"] == demo.version() == len(report["rounds"])
    (model,) = tmp_path.glob(".comitia/demo/*/output/final.safetensors")
    assert model.stat().st_size > 0
    secrets = next(iter(tmp_path.glob(".comitia/demo/*/operator.toml")))
    assert os.stat(secrets).st_mode & 0o077 == 0

    # And when nobody is there any more
    gone = steer("pause", [*options, "--timeout", "1"], tmp_path)
    assert gone.returncode == 1
    assert "no coordinator has obeyed" in gone.stderr
