"""Settings come from four places in one order; a mistake is one line that names it, and secrets are never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from shared.errors import SettingsError
from shared.settings import ProcessSettings, refuse_unknown_variables

SECRET = "hunter2"
URL = f"amqp://user:{SECRET}@broker:5672/vhost"


class Part(BaseModel, extra="forbid"):
    """A nested part, as a coordinator's has them."""

    size: int = Field(default=1, ge=1)
    mode: str = "a"


class OwnSettings(ProcessSettings):
    """Settings of some process."""

    part: Part = Part()
    names: list[str] = Field(default_factory=list)
    seats: int = Field(default=1, ge=1, le=8)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("COMITIA_"):
            monkeypatch.delenv(name)


def toml(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "comitia.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(config: Path | None = None, **given: object) -> str:
    with pytest.raises(SettingsError) as error:
        OwnSettings.load(config, **given)
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)
    return str(error.value)


# ── where values come from ──


def test_without_anything_there_are_defaults() -> None:
    settings = OwnSettings.load()

    assert settings.broker.urls == ("amqp://guest:guest@127.0.0.1:5672/",)
    assert (settings.broker.heartbeat_s, settings.seats, settings.part) == (8, 1, Part())


def test_command_line_then_environment_then_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toml(tmp_path, "seats = 2\nlog_level = 'debug'\nbroker_heartbeat_s = 3\n")
    monkeypatch.setenv("COMITIA_SEATS", "3")
    monkeypatch.setenv("COMITIA_LOG_LEVEL", "error")

    settings = OwnSettings.load(config, seats=4, log_level=None)

    assert (settings.seats, settings.log_level, settings.broker_heartbeat_s) == (4, "error", 3)


def test_nested_fields_are_merged_from_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITIA_PART__SIZE", "7")

    settings = OwnSettings.load(toml(tmp_path, "[part]\nsize = 5\nmode = 'b'\n"))

    assert settings.part == Part(size=7, mode="b")


def test_a_list_is_json_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITIA_NAMES", '["a", "b"]')

    assert OwnSettings.load().names == ["a", "b"]


def test_several_brokers_are_separated_by_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITIA_BROKER_URLS", f"{URL}  amqps://other/")
    monkeypatch.setenv("COMITIA_BROKER_HEARTBEAT_S", "20")

    broker = OwnSettings.load().broker

    assert broker.urls == (URL, "amqps://other/")
    assert broker.heartbeat_s == 20


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        OwnSettings.load().seats = 2


# ── mistakes ──


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets = 2", "setting.sets: Extra inputs are not permitted"),
        ("seats = 9", "setting.seats: Input should be less than or equal to 8"),
        ("seats = 'many'", "setting.seats: "),
        ("log_level = 'loud'", "setting.log_level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ("[part]\nsize = 0", "setting.part.size: "),
        ("seats =", "config: "),
        (b"\xff\xfe", "config: "),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refusal(toml(tmp_path, text)).startswith(message)


def test_several_mistakes_are_all_named(tmp_path: Path) -> None:
    message = refusal(toml(tmp_path, "seats = 9\nsets = 1\n"))

    assert "setting.seats" in message
    assert "setting.sets" in message


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("COMITIA_SEATS", "nine", "setting.seats: "),
        ("COMITIA_PART__SIZE", "0", "setting.part.size: "),
        ("COMITIA_PART__SISE", "1", "setting.part.sise: "),
        ("COMITIA_PART", "{bad", 'setting: error parsing value for field "part"'),
        ("COMITIA_NAMES", "a,b", 'setting: error parsing value for field "names"'),
    ],
)
def test_a_mistake_in_the_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)

    assert refusal().startswith(message)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml") == f"config: there is no file {tmp_path / 'none.toml'}"


def test_an_unknown_argument_is_refused() -> None:
    assert "setting.seat" in refusal(seat=1)


# ── secrets ──


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITIA_BROKER_URLS", URL)
    settings = OwnSettings.load()

    for shown in (
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        repr(settings.broker),
        str(vars(settings)),
    ):
        assert SECRET not in shown
    assert SECRET in settings.broker.urls[0]


@pytest.mark.parametrize(
    "text", [f"broker_urls = ['{URL}']", f"broker_url = '{URL}'", f"seats = '{URL}'", f"broker_urls = '{URL}"]
)
def test_secrets_are_in_no_message_also_where_they_were_misplaced(tmp_path: Path, text: str) -> None:
    refusal(toml(tmp_path, text))


def test_secrets_are_in_no_message_of_a_malformed_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITIA_BROKER_URLS", f"amqp://user:{SECRET}@broker:port/")
    settings = OwnSettings.load()

    with pytest.raises(SettingsError) as error:
        _ = settings.broker
    assert SECRET not in str(error.value)
    assert "URL 1" in str(error.value)


# ── misspelled variables ──


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("COMITIA_SEETS", "COMITIA_SEETS: unknown setting; did you mean COMITIA_SEATS?"),
        ("comitia_seets", "comitia_seets: unknown setting; did you mean COMITIA_SEATS?"),
        ("COMITIA_BROKER__URLS", "COMITIA_BROKER__URLS: unknown setting; did you mean COMITIA_BROKER_URLS?"),
        ("COMITIA_ZZZZZZZZZ", "COMITIA_ZZZZZZZZZ: unknown setting"),
    ],
)
def test_a_variable_that_nobody_knows_is_refused(variable: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        refuse_unknown_variables({variable: SECRET}, (OwnSettings,))

    assert str(error.value) == message


def test_variables_of_others_are_none_of_ours() -> None:
    environment = {
        "PATH": "/bin",
        "COMITIA_SEATS": "1",
        "comitia_part__size": "1",
        "COMITIA_LOG_LEVEL": "info",
        "COMITIA_TEST_BROKER_URL": "amqp://",
        "COMITIA_TEST_DROPOUTS": "all",
    }
    refuse_unknown_variables(environment, (ProcessSettings, OwnSettings))
