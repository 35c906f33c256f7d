"""The local stack: what it takes from whom, how processes are kept running, and that nothing of it stays behind."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from deploy.brokers.broker import BrokerKind
from deploy.brokers.private_node import find_programs
from deploy.cli import app
from deploy.log_lines import parse_note
from deploy.stack import control, preparing
from deploy.stack.files import (
    BrokerChoice,
    Origin,
    Present,
    ProcessPresent,
    StackFiles,
    Wanted,
    read_record,
    write_record,
)
from deploy.stack.kept import PAUSE_S, PAUSE_S_MAX, STEADY_S, Kept
from deploy.stack.lock import acquire, held
from deploy.stack.logs import read_logs, render
from deploy.stack.overview import Progress, overview, read_progress
from deploy.stack.preparing import choose, prepare
from shared.errors import BrokerUnavailable, ComitiaError, SettingsError
from worker.memory import read_client
from worker.replicas import live_replicas


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def files(tmp_path: Path) -> StackFiles:
    """The files of a stack that was never started."""
    files = StackFiles(tmp_path / "stack")
    files.make()
    files.begin()
    return files


# --- keeping a process running ---------------------------------------------------------------------------------------


class FakeProcess:
    """A process that ends when the test says so."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.asked = False

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def ask_to_stop(self) -> None:
        self.asked = True

    def stop(self) -> None:
        self.exit_code = 143


class Bench:
    """A kept process, the fakes it has started, and its log."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.started: list[FakeProcess] = []
        self.kept = Kept("worker-1", self._start, log, "worker_started")

    def _start(self) -> FakeProcess:
        self.log.touch()
        self.started.append(FakeProcess())
        return self.started[-1]

    def say(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A kept process that was started at time 0."""
    bench = Bench(tmp_path / "worker-1.log")
    bench.kept.start(0.0)
    return bench


def test_a_process_is_running_once_its_log_says_so(bench: Bench) -> None:
    bench.say('{"event": "process_started", "pid": 17}\n{"event": "worker_')
    bench.kept.step(1.0)
    assert bench.kept.present() == ProcessPresent(name="worker-1", state="starting", pid=17)

    bench.say('started"}\n')
    bench.kept.step(2.0)

    assert bench.kept.state == "running"


def test_what_an_earlier_start_logged_does_not_count(bench: Bench) -> None:
    bench.say('{"event": "worker_started"}\n')
    bench.started[0].exit_code = 1
    bench.kept.step(0.0)

    bench.kept.step(PAUSE_S)
    bench.kept.step(PAUSE_S)

    assert (bench.kept.state, len(bench.started)) == ("starting", 2)


def test_a_process_that_fails_is_started_again_after_pauses_that_double(bench: Bench) -> None:
    now, pauses = 0.0, []
    for _ in range(8):
        bench.say("comitia: broker: no luck\n")
        bench.started[-1].exit_code = 2
        bench.kept.step(now)
        assert bench.kept.present().last_words == "exit code 2: broker: no luck"
        failed_at, count = now, len(bench.started)
        while len(bench.started) == count:
            now += PAUSE_S / 2
            bench.kept.step(now)
        pauses.append(now - failed_at)

    assert pauses == [min(PAUSE_S_MAX, PAUSE_S * 2**n) for n in range(8)]


def test_after_a_steady_time_the_pause_is_short_again(bench: Bench) -> None:
    bench.started[0].exit_code = 1
    bench.kept.step(0.0)
    bench.kept.step(PAUSE_S)
    bench.started[1].exit_code = 1
    bench.kept.step(PAUSE_S + STEADY_S)

    bench.kept.step(2 * PAUSE_S + STEADY_S)

    assert len(bench.started) == 3


@pytest.mark.parametrize(("code", "asked"), [(0, False), (143, True), (1, True)])
def test_a_process_that_is_done_or_was_asked_to_stop_is_left_alone(bench: Bench, code: int, asked: bool) -> None:
    if asked:
        bench.kept.ask_to_stop()
    bench.started[0].exit_code = code

    bench.kept.step(1.0)
    bench.kept.step(1000.0)

    assert (bench.kept.state, bench.started[0].asked, len(bench.started)) == ("ended", asked, 1)


def test_a_process_that_waits_for_its_restart_can_be_stopped(bench: Bench) -> None:
    bench.started[0].exit_code = 1
    bench.kept.step(0.0)

    bench.kept.ask_to_stop()
    bench.kept.step(1000.0)

    assert (bench.kept.state, len(bench.started)) == ("ended", 1)


# --- the lock --------------------------------------------------------------------------------------------------------


def test_a_lock_is_held_until_the_last_who_inherited_it_has_ended(files: StackFiles) -> None:
    lock = acquire(files.lock)
    assert lock is not None
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    os.close(lock)
    try:
        assert held(files.lock)
        assert acquire(files.lock) is None
        assert control.is_alive(files)
    finally:
        child.kill()
        child.wait()
    assert not control.is_alive(files)


def test_a_process_id_that_was_left_behind_means_nothing(files: StackFiles) -> None:
    for path in (files.lock, files.supervisor):
        path.write_text(f"{os.getpid()}\n")

    assert not control.is_up(files)
    with control.locked(files):
        assert held(files.lock)


def test_a_stack_that_is_up_cannot_be_started(files: StackFiles) -> None:
    supervisor = acquire(files.supervisor)
    assert supervisor is not None
    with (
        control.locked(files),
        pytest.raises(control.StackError, match=rf"up already \(process {os.getpid()}\)"),
        control.locked(files),
    ):
        pass
    os.close(supervisor)


# --- what it needs before it starts ----------------------------------------------------------------------------------


def unavailable(*_: object) -> str:
    raise BrokerUnavailable("no such luck")


def quiet(_line: str) -> None:
    """Nobody listens."""


def test_a_private_node_is_preferred_because_it_keeps_the_model_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "find_programs", lambda: None)
    monkeypatch.setattr(preparing, "find_image", lambda say: "some:image")

    assert choose("auto", quiet)[0].kind is BrokerKind.PRIVATE_NODE


def test_docker_is_taken_where_rabbitmq_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "find_programs", unavailable)
    monkeypatch.setattr(preparing, "find_image", lambda say: "some:image")

    assert choose("auto", quiet)[0] == BrokerChoice(kind=BrokerKind.DOCKER, source="some:image")


def test_without_either_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "find_programs", unavailable)
    monkeypatch.setattr(preparing, "find_image", unavailable)

    with pytest.raises(BrokerUnavailable, match="make broker"):
        choose("auto", quiet)


def test_a_brokers_name_tells_it_from_others_but_not_its_password() -> None:
    choice, name = choose("amqp://user:secret@one/vhost amqps://two:5673", quiet)

    assert name == "one:5672/vhost two:5673/"
    assert "secret" not in repr(choice)


@pytest.mark.parametrize(("requested", "words"), [("memory", "share no memory"), ("rabbit", "a URL like")])
def test_what_is_no_broker_for_processes_is_refused(requested: str, words: str) -> None:
    with pytest.raises(SettingsError, match=rf"^broker: .*{words}"):
        choose(requested, quiet)


URL = "amqp://guest:guest@rabbit.example/"


def test_the_federation_is_found_again(files: StackFiles) -> None:
    first = prepare(files, URL, 4, 3, quiet)
    again = prepare(files, URL, None, None, quiet)

    assert (first.is_new, again.is_new) == (True, False)
    assert again.order == first.order
    assert again.origin.clients == 4
    assert again.order.coordinator_environment["COMITIA_ROUND__ROUNDS"] == "3"
    assert "guest:guest" not in files.origin.read_text()


def test_a_federation_may_go_on_for_more_rounds(files: StackFiles) -> None:
    prepare(files, URL, 4, 3, quiet)
    longer = prepare(files, URL, None, 5, quiet)
    again = prepare(files, URL, None, None, quiet)

    assert not longer.is_new
    assert longer.order == again.order
    assert longer.order.coordinator_environment["COMITIA_ROUND__ROUNDS"] == "5"


@pytest.mark.parametrize(
    ("broker", "clients", "rounds", "field"),
    [
        ("amqp://other.example/", None, None, "broker"),
        (URL, 5, None, "clients"),
        (URL, 0, None, "clients"),
        (URL, None, 0, "rounds"),
    ],
)
def test_a_federation_is_not_continued_as_another(
    files: StackFiles, broker: str, clients: int | None, rounds: int | None, field: str
) -> None:
    prepare(files, URL, 4, 3, quiet)

    with pytest.raises(SettingsError, match=rf"^{field}: "):
        prepare(files, broker, clients, rounds, quiet)


def test_a_federation_whose_log_went_with_its_container_is_made_anew(
    files: StackFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "find_programs", unavailable)
    monkeypatch.setattr(preparing, "find_image", lambda say: "some:image")
    first = prepare(files, "auto", 4, None, quiet)
    (files.state / "client-001").mkdir(parents=True)
    key = (files.federation / "coordinator.key").read_bytes()

    again = prepare(files, "auto", 4, None, quiet)

    assert first.origin.federation == again.origin.federation == "local"
    assert again.is_new
    assert not files.state.exists()
    assert (files.federation / "coordinator.key").read_bytes() != key


def test_keys_without_an_origin_are_those_of_a_start_that_was_cut_short(files: StackFiles) -> None:
    prepare(files, URL, 4, None, quiet)
    files.origin.unlink()

    assert prepare(files, URL, 5, None, quiet).is_new


# --- what it shows ---------------------------------------------------------------------------------------------------

STARTED = {"event": "coordinator_started", "federation": "local", "plan": {"round": {"rounds": 30}}}
IN_OFFICE = {"event": "in_office", "version": 7}
ROUND = {"event": "round_finished", "version": 8, "accuracy": 0.9, "loss": 0.25}
WAITING = {"event": "waiting_for_clients", "offers": 1, "needed": 3, "live": 2}
LOST = {"event": "disconnected", "reason": "gone"}
BACK = {"event": "connected", "reconnects": 1}
WAITS = {"event": "standing_by"}
REPLACED = {"event": "replaced", "reason": "another coordinator"}
FINISHED = {"event": "coordinator_stopped", "finished": True}
WORKER = ProcessPresent(name="worker-1", state="running", pid=17, clients=("client-001", "client-002"))


def shown(
    *notes: dict[str, object], processes: tuple[ProcessPresent, ...] = (WORKER,), away: frozenset[str] = frozenset()
) -> str:
    """The overview after these notes, as text with single spaces."""
    progress = Progress()
    for note in notes:
        progress.hear(note)
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(overview(Present(phase="up", broker="a broker", processes=processes), progress, 20, away))
    return re.sub(" +", " ", console.export_text())


@pytest.mark.parametrize(
    ("notes", "processes", "words"),
    [
        ((STARTED, IN_OFFICE), (), "local: waits for clients; `comitia workers N`"),
        ((STARTED, IN_OFFICE), (WORKER,), "local: learning"),
        ((STARTED, IN_OFFICE, WAITING), (WORKER,), "waits: 1 offers, 3 needed, 2 clients live"),
        ((STARTED, IN_OFFICE, WAITING, ROUND), (WORKER,), "local: learning"),
        ((STARTED, IN_OFFICE, LOST | {"reason": "[/b] gone"}), (WORKER,), "broker lost: [/b] gone"),
        ((STARTED, IN_OFFICE, LOST), (WORKER,), "broker lost: gone"),
        ((STARTED, IN_OFFICE, LOST, BACK), (WORKER,), "local: learning"),
        ((STARTED, IN_OFFICE, FINISHED), (), "local: finished"),
        ((STARTED, WAITS), (WORKER,), "local: stands by: another coordinator is in office"),
        ((STARTED, IN_OFFICE, REPLACED, WAITS), (WORKER,), "local: stands by"),
        ((STARTED, WAITS, IN_OFFICE), (WORKER,), "local: learning"),
    ],
)
def test_status_tells_what_the_federation_does(
    notes: tuple[dict[str, object], ...], processes: tuple[ProcessPresent, ...], words: str
) -> None:
    assert words in shown(*notes, processes=processes)


def test_status_tells_how_far_it_is_and_who_serves_whom() -> None:
    failed = ProcessPresent(name="worker-2", state="restarting", last_words="exit code 2: no luck", clients=("x",))

    text = shown(STARTED, IN_OFFICE, ROUND, processes=(WORKER, failed))

    for words in ("version 8 of 30", "90.00%", "0.2500", "2 of 20 served", "a broker"):
        assert words in text
    assert "worker-1 17 running 2 1, 2 \n" in text
    assert "worker-2 - restarting: exit code 2: no luck 1 x \n" in text


def test_status_tells_who_is_away() -> None:
    assert "away" not in shown(STARTED, IN_OFFICE)
    text = shown(STARTED, IN_OFFICE, away=frozenset({"client-004", "client-005", "client-006", "ward-b"}))
    assert "away 4-6, ward-b; `comitia worker rejoin` brings them back" in text


def test_log_lines_are_merged_by_time_and_followed_into_new_files(tmp_path: Path) -> None:
    def write(name: str, *seconds: int) -> None:
        with (tmp_path / f"{name}.log").open("a") as log:
            for second in seconds:
                log.write(json.dumps({"event": f"e{second}", "timestamp": f"2026-01-01T00:00:0{second}Z"}) + "\n")

    write("a", 1, 2, 4)
    write("b", 3)
    steps = iter([lambda: write("c", 5), lambda: write("a", 6)])

    def follow() -> bool:
        step = next(steps, None)
        if step is not None:
            step()
        return step is not None

    events = [line.split()[-1] for line in read_logs(tmp_path, 2, follow)]

    assert events == ["e2", "e3", "e4", "e5", "e6"]


def test_a_log_line_is_readable() -> None:
    note = {"process": "worker", "event": "late", "level": "warning", "timestamp": "2026-01-01T12:34:56.789Z"}
    line = json.dumps(note | {"client": "client-001", "share": 0.123456, "plan": {"a": 1}, "all": ["x", "y"]})

    assert (
        render("worker-1", line.encode())
        == "worker-1     12:34:56 warning: late client=client-001 share=0.1235 all=x,y"
    )
    assert render("worker-1", b"comitia: no luck") == "worker-1     comitia: no luck"


# --- real processes --------------------------------------------------------------------------------------------------


ONE_BY_ONE = {"COMITIA_GROUP_SIZE": "1", "COMITIA_POLICY": '{"allow_groups_of_one": true}'}
"""Four clients make no groups of four that trimming could choose between."""


class Stack:
    """The command line in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = StackFiles(directory / ".comitia" / "stack")

    def up(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`comitia up`, in a process of its own as the supervisor must outlive it."""
        return subprocess.run(
            [sys.executable, "-m", "deploy", "up", *arguments],
            cwd=self.directory,
            env=os.environ | ONE_BY_ONE | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """Any other command; returns what it printed."""
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return re.sub(" +", " ", result.output)

    @property
    def progress(self) -> Progress:
        return read_progress(self.files.log("coordinator"))

    @property
    def version(self) -> int:
        return self.progress.version or 0

    def rounds(self) -> list[dict[str, Any]]:
        """What the coordinator has logged of its rounds."""
        notes = map(parse_note, self.files.log("coordinator").read_bytes().splitlines())
        return [note for note in notes if note is not None and note["event"] == "round_finished"]

    def notes(self, event: str) -> list[dict[str, Any]]:
        """What all processes have logged of one kind."""
        lines = [line for log in self.files.logs.glob("*.log") for line in log.read_bytes().splitlines()]
        return [note for note in map(parse_note, lines) if note is not None and note["event"] == event]

    def workers(self) -> dict[str, ProcessPresent]:
        """The workers as they are."""
        return {one.name: one for one in self.present.processes if one.name != "coordinator"}

    @property
    def present(self) -> Present:
        return control.present(self.files)

    def processes(self) -> list[psutil.Process]:
        """Everything that the supervisor has started, and itself."""
        supervisor = psutil.Process(int(self.files.supervisor.read_text()))
        return [supervisor, *supervisor.children(recursive=True)]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A directory without a stack; what a test leaves up is stopped."""
    monkeypatch.chdir(tmp_path)
    stack = Stack(tmp_path)
    yield stack
    control.stop(stack.files)


def test_workers_come_and_go_and_die_and_no_update_is_lost(stack: Stack, rabbitmq_url: str) -> None:
    # Given two workers that share out four clients, and a federation that learns
    assert stack.up("--broker", rabbitmq_url, "--clients", "4", "--rounds", "100000").returncode == 0
    assert "2 workers, 4 clients served" in stack.run("workers", "2")
    assert eventually(lambda: stack.version >= 3)
    first = stack.workers()
    assert sorted(len(one.clients) for one in first.values()) == [2, 2]

    # When their number goes up and down again, those that stay go on with other clients
    assert "4 workers, 4 clients served" in stack.run("scale", "4")
    assert [len(one.clients) for one in stack.workers().values()] == [1, 1, 1, 1]
    assert "3 workers, 4 clients served" in stack.run("scale", "3")
    before = stack.version
    assert eventually(lambda: stack.version >= before + 2)
    assert {name: stack.workers()[name].pid for name in first} == {name: one.pid for name, one in first.items()}

    # Then no version went without a client, and none has trained in vain
    rounds = stack.rounds()
    assert [one["version"] for one in rounds] == list(range(1, len(rounds) + 1))
    assert {one["clients_counted"] for one in rounds} == {4}
    assert stack.notes("late") == []

    # And when one is killed, its clients are served by the others, and count again
    victim = max(stack.workers().values(), key=lambda one: len(one.clients))
    assert victim.pid is not None
    psutil.Process(victim.pid).kill()
    assert eventually(lambda: set(victim.clients) <= set(served_by_others(stack, victim.pid)))
    before = stack.version
    assert eventually(lambda: stack.version >= before + 3 and stack.rounds()[-1]["clients_counted"] == 4)
    assert "4 of 4 served" in stack.run("status")
    stack.run("down")
    for client in range(1, 5):
        spent = read_client(stack.files.state / f"client-{client:03d}").spent
        assert len({mark.update for mark in spent}) == len(spent)
        # The kill may void a draw, and its version is then tried again: until then, one update went into each.
        assert len({(mark.version, mark.attempt) for mark in spent}) == len(spent)
        assert [mark.version for mark in spent if mark.version < len(rounds)] == list(range(len(rounds)))


def served_by_others(stack: Stack, pid: int | None) -> list[str]:
    """Whom all replicas but that of one process serve."""
    return [client for one in live_replicas(stack.files.state) if one.pid != pid for client in one.clients]


def test_a_stack_learns_and_is_scaled_and_leaves_nothing(stack: Stack, rabbitmq_url: str) -> None:
    # Given a stack that is up: it cannot be started twice, and waits for workers
    started = stack.up("--broker", rabbitmq_url, "--clients", "4", "--rounds", "100000")
    assert started.returncode == 0, started.stderr
    assert "version 0 of 100000" in started.stdout
    assert "waits for clients" in stack.run("status")
    with pytest.raises(control.StackError, match="up already"):
        stack.run("up")

    # When workers start, and their number changes while it learns
    assert "2 workers, 4 clients served" in stack.run("workers", "2")
    with pytest.raises(control.StackError, match="2 workers already"):
        stack.run("workers", "3")
    with pytest.raises(SettingsError, match=r"^workers: "):
        stack.run("scale", "5")
    assert eventually(lambda: stack.version >= 3)
    assert "1 worker, 4 clients served" in stack.run("scale", "1")
    before = stack.version

    # Then all clients go on in the one that is left
    assert eventually(lambda: stack.version >= before + 3)
    rounds = stack.rounds()
    assert [one["version"] for one in rounds] == list(range(1, len(rounds) + 1))
    assert rounds[-1]["clients_counted"] == 4
    assert "round_finished" in stack.run("logs", "--no-follow")

    # And when the stack goes down, nothing is left but what it has learnt
    everything = stack.processes()
    assert "the stack is down" in stack.run("down")
    assert eventually(lambda: all(map(gone, everything)))
    assert "was not up" in stack.run("down")
    with pytest.raises(control.StackError, match="not up"):
        stack.run("status")
    assert stack.files.federation.exists()
    assert "is gone" in stack.run("down", "--purge")
    assert not stack.files.root.exists()


def test_nothing_survives_a_killed_supervisor_and_the_federation_goes_on(stack: Stack) -> None:
    # Given a stack on a broker of its own, whose federation has finished
    try:
        find_programs()
    except BrokerUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    assert stack.up("--clients", "4", "--rounds", "3").returncode == 0
    stack.run("workers", "1")
    assert eventually(lambda: "local: finished" in stack.run("status"))

    # When the supervisor is killed
    everything = stack.processes()
    assert len(everything) > 5
    everything[0].kill()

    # Then everything ends by itself, and it is known that nothing is up
    assert eventually(lambda: not control.is_alive(stack.files) and all(map(gone, everything)))
    with pytest.raises(control.StackError, match="not up"):
        stack.run("status")

    # And the same federation comes up again, with what it has learnt
    again = stack.up()
    assert again.returncode == 0, again.stderr
    assert "version 3 of 3" in again.stdout
    assert "finished" in again.stdout


def test_a_stack_that_cannot_start_says_why_and_leaves_nothing(stack: Stack, rabbitmq_url: str) -> None:
    # Given a plan that needs more clients than there are
    failed = stack.up("--broker", rabbitmq_url, "--clients", "4", COMITIA_AGGREGATION='{"trim": 5}')

    # Then its own message comes through, and nothing is up
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "11 clients" in failed.stderr
    assert not control.is_alive(stack.files)
    assert read_record(stack.files.origin, Origin) is None


@pytest.mark.parametrize("arguments", [("workers", "2"), ("scale", "2"), ("status",), ("logs",)])
def test_commands_without_a_stack_name_the_one_that_starts_it(stack: Stack, arguments: tuple[str, ...]) -> None:
    with pytest.raises(ComitiaError, match="comitia up") as caught:
        stack.run(*arguments)

    assert caught.value.exit_code == 2


def test_a_record_of_another_version_is_as_good_as_none(files: StackFiles) -> None:
    write_record(files.wanted, Present(phase="up"))

    assert read_record(files.wanted, Wanted) is None
