"""Does a user's mistake end in one clear line that names the field and the remedy, and in exit code 2?"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from deploy.cli import main
from deploy.federation_keys import FederationKeys, make_federation_keys
from tests.integration.federation import COMMAND, environment

Comitia = Callable[..., str]
Spoil = Callable[[FederationKeys, Path], None]


@pytest.fixture
def keys(tmp_path: Path) -> FederationKeys:
    """A federation of four clients in `federation`, where the settings look for it."""
    return make_federation_keys(tmp_path / "federation", "mistaken", 4)


@pytest.fixture
def comitia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Comitia]:
    """Runs the command, expects exit code 2 and one line, and returns the line."""

    def run(*arguments: str, **settings: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["comitia", *arguments])
        for name, value in environment(**settings).items():
            if name.startswith("COMITIA_"):
                monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 2, printed
        (line,) = printed.err.splitlines()
        return line

    yield run
    structlog.reset_defaults()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which nobody listens: it is ours while the test lasts, so nobody else takes it."""
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        yield ours.getsockname()[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"borker_urls": "amqp://localhost"}, r"COMITIA_BORKER_URLS: unknown .* did you mean COMITIA_BROKER_URLS\?"),
        ({"seats": "many"}, r"setting\.seats: Input should be a valid integer"),
        ({"broker_heartbeat_s": 0}, r"setting\.broker_heartbeat_s: Input should be greater than or equal to 1"),
        ({"round": {"rounds": 0}}, r"setting\.round\.rounds: Input should be greater than or equal to 1"),
        ({"round": {"ruonds": 5}}, r"setting\.round\.ruonds: Extra inputs are not permitted"),
        ({"round": "not json"}, r'setting: .*field "round".*JSON'),
        ({"workload": "no.such:Thing"}, r"workload: no\.such:Thing needs the module 'no', .* install it or start from"),
        ({"workload": "digits.Digits"}, r"workload: 'digits\.Digits' is neither built in \(digits, .*\) nor"),
        ({"workload_options": {"alpha": 1}}, r"workload_options: digits accepts partition, clients, seed"),
        ({"aggregation": {"trim": 1, "quorum": 2}}, r"2·trim >= quorum .*lower trim or raise quorum"),
        ({"aggregation": {"trim": 2}}, r"aggregation\.trim=2.* need 20 clients .*4 are enrolled: enroll more"),
        ({"codec": {"bits": 16, "density": 1, "selection": "dense"}, "workload": "tests.integration.workloads:Wide",
          "workload_options": {"dimension": 30_000_000}}, r"codec\.bits=16: .*use 32"),
        ({"training": {"optimizer": {"name": "Sgd"}}}, r"training\.optimizer: .*no optimizer 'Sgd'; it has .*SGD"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_settings(
    comitia: Comitia, keys: FederationKeys, closed_port: int, settings: dict[str, object], said: str
) -> None:
    command = ("worker", "run") if "seats" in settings else ("coordinator",)
    line = comitia(*command, broker_urls=f"amqp://127.0.0.1:{closed_port}", broker_start_timeout_s=0.2, **settings)
    assert re.match(rf"comitia: (plan.*: )?{said}", line), line


def test_an_unknown_key_or_a_syntax_error_in_a_file(comitia: Comitia, keys: FederationKeys, tmp_path: Path) -> None:
    config = tmp_path / "comitia.toml"
    config.write_text("[round]\nrounds = 3\n[agregation]\ntrim = 0\n")
    assert "setting.agregation: Extra inputs are not permitted" in comitia("coordinator", "--config", str(config))
    config.write_text("rounds = = 3\n")
    assert f"config: {config} is not TOML" in comitia("coordinator", "--config", str(config))
    assert "config: there is no file" in comitia("coordinator", "--config", str(tmp_path / "none.toml"))


def test_an_env_file_that_is_not_text(comitia: Comitia, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("COMITIA_SITE=Köln".encode("latin-1"))
    assert comitia("plan", "--clients", "20").startswith("comitia: .env: cannot be read: ")


@pytest.mark.parametrize("command", ["up", "down", "status", "demo"])
def test_a_place_that_cannot_be_used(comitia: Comitia, tmp_path: Path, closed_port: int, command: str) -> None:
    (tmp_path / ".comitia").write_text("a file, where a directory is needed")
    url = f"amqp://127.0.0.1:{closed_port}"
    line = comitia(command, **({"broker_urls": url} if command in ("up", "demo") else {}))
    assert re.search(r"\.comitia/.*: Not a directory; choose another place, or make it usable for this user", line)


def spoil_directory(keys: FederationKeys, _tmp_path: Path) -> None:
    content = bytearray(keys.directory_file.read_bytes())
    content[len(content) // 2] ^= 1
    keys.directory_file.write_bytes(content)


def remove_directory(keys: FederationKeys, _tmp_path: Path) -> None:
    keys.directory_file.unlink()


def exchange_coordinator_key(keys: FederationKeys, tmp_path: Path) -> None:
    other = make_federation_keys(tmp_path / "other", "other", 1)
    keys.coordinator_key_file.write_bytes(other.coordinator_key_file.read_bytes())


def exchange_client_key(keys: FederationKeys, _tmp_path: Path) -> None:
    one, two = (keys.client_key_directory / f"client-00{number}.key" for number in (1, 2))
    one.write_bytes(two.read_bytes())


@pytest.mark.parametrize(
    ("command", "spoil", "said"),
    [
        ("coordinator", spoil_directory, r"federation/directory\.signed: .*not signed"),
        ("coordinator", remove_directory, r"federation/directory\.signed: cannot be read"),
        ("coordinator", exchange_coordinator_key, r"federation/coordinator\.key is not the coordinator's key that"),
        ("worker run --client client-001", exchange_client_key, r"clients/client-001\.key"),
        ("worker run", spoil_directory, r"federation/directory\.signed: .*not signed"),
    ],
)
def test_keys_that_do_not_fit(
    comitia: Comitia, keys: FederationKeys, tmp_path: Path, command: str, spoil: Spoil, said: str
) -> None:
    spoil(keys, tmp_path)
    assert re.search(said, comitia(*command.split()))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        # Options without a command are those of `worker run`.
        ("worker --seats 4 --client-ids 1-9", r"client_ids: '1-9' names client-005, which is not enrolled"),
        ("worker run --client-ids 1-9", r"client_ids: '1-9' names client-005, which is not enrolled"),
        ("worker --seats 0", r"setting\.seats: Input should be greater than or equal to 1"),
        ("worker --seats 4 --client client-001", r"client: .*leave out --client-ids and --seats"),
    ],
)
def test_clients_that_cannot_be_shared_out(comitia: Comitia, keys: FederationKeys, command: str, said: str) -> None:
    assert re.search(said, comitia(*command.split()))


@pytest.mark.parametrize("command", ["coordinator", "worker run"])
def test_a_broker_that_cannot_be_reached(
    comitia: Comitia, keys: FederationKeys, closed_port: int, command: str
) -> None:
    url = f"amqp://user:s3cr3t-word@127.0.0.1:{closed_port}"
    alone = {"group_size": 1, "aggregation": {"rule": "mean", "trim": 0}} if command == "coordinator" else {}
    line = comitia(*command.split(), broker_urls=url, broker_start_timeout_s=0.2, **alone)
    assert re.search(rf"127\.0\.0\.1:{closed_port}.*check that RabbitMQ runs", line)
    assert "s3cr3t-word" not in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--report none/report.json", r"report: there is no directory .*/none"),
        ("--plot none/plot.png", r"plot: there is no directory .*/none"),
        ("--report .", r"report: .* is a directory"),
        ("--plot curves.txt", r"plot: curves\.txt must end in one of \.png, \.pdf, \.svg"),
        ("--broker http://localhost", r"broker: neither auto nor memory nor a URL like amqp://"),
        ("--broker memory --clients 0", r"clients: must be 1 to"),
        ("--broker memory --processes 0", r"processes: must be 1 or more"),
        ("--broker memory --drop-at words", r"drop-at has no effect without drop"),
        (
            "--broker memory --drop 2 --drop-at lunch",
            r"drop-at: must be one of training, offer, shares, words, agreement",
        ),
        ("--broker memory --drop 20", r"drop: must be 0 to 19"),
        ("--broker memory --trim 10", r"aggregation\.trim=10.* need 84 clients"),
        ("--broker memory --robust mean --trim 1", r"aggregation\.trim=1 has no effect with the rule 'mean'"),
        ("--broker memory --robust krum", r"aggregation\.rule: Input should be .*'mean'"),
        ("--broker memory --rounds 0", r"rounds"),
        ("--broker memory --density 0", r"density"),
        ("--broker memory --density nan", r"density"),
        ("--broker memory --seed -1", r"seed"),
        ("--broker memory --partition pie", r"partition"),
        ("--broker memory --workload no.such:Thing", r"workload: no\.such:Thing needs the module 'no'"),
    ],
)
def test_a_mistake_in_the_options_of_the_demo(comitia: Comitia, options: str, said: str) -> None:
    assert re.search(said, comitia("demo", *options.split()))


def test_a_run_that_cannot_begin_shows_no_table_and_keeps_an_old_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("of yesterday")
    done = subprocess.run(
        [*COMMAND, "simulate", "--density", "2", "--report", str(report)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert report.read_text() == "of yesterday"


def test_a_mistake_behind_a_url_ends_at_once_and_alike(tmp_path: Path, closed_port: int) -> None:
    """Nothing is left to a coordinator process that would have to be read in a log."""
    done = subprocess.run(
        [*COMMAND, "demo", "--broker", f"amqp://127.0.0.1:{closed_port}", "--trim", "10"],
        cwd=tmp_path,
        env=environment(broker_start_timeout_s=0.5),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(r"aggregation\.trim=10.* need 84 clients", done.stderr)


def test_a_demo_on_a_broker_that_cannot_be_reached_says_so_in_one_line(tmp_path: Path, closed_port: int) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--broker", f"amqp://user:s3cr3t-word@127.0.0.1:{closed_port}"],
        cwd=tmp_path,
        env=environment(broker_start_timeout_s=0.5),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(rf"127\.0\.0\.1:{closed_port}.*check that RabbitMQ runs", done.stderr)
    assert "s3cr3t-word" not in done.stdout + done.stderr
