"""Where settings come from, and the ones that every process has.

Each process reads one frozen settings object, once, at its start: command line, environment (`COMITIA_…`, nested
fields with `__`), `.env`, and a TOML file, in this order. Unknown keys are refused. What coordinator and workers must
share travels in the signed plan and never here.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError as SourceError

from shared.errors import SettingsError
from shared.plan import describe_errors
from shared.telemetry import LogFormat, LogLevel
from shared.transport.broker_settings import BrokerSettings

ENV_PREFIX = "COMITIA_"
RESERVED_VARIABLES = frozenset({"COMITIA_TEST_BROKER", "COMITIA_TEST_BROKER_URL", "COMITIA_TEST_DROPOUTS"})
"""Variables of the test suite, which share our prefix."""


class ProcessSettings(BaseSettings):
    """What coordinator and worker processes have in common."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    broker_urls: Annotated[
        SecretStr, Field(description="AMQP URLs of the broker's nodes, tried in turn, separated by spaces.")
    ] = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    broker_heartbeat_s: Annotated[int, Field(ge=1, le=600, description="AMQP heartbeat (seconds).")] = 8
    broker_start_timeout_s: Annotated[
        float, Field(gt=0, description="How long to try to reach a broker at start (seconds).")
    ] = 30.0
    broker_tls_ca: Annotated[Path | None, Field(description="CA certificates (PEM) for amqps URLs.")] = None
    broker_tls_certificate: Annotated[
        Path | None, Field(description="Client certificate (PEM); the process then identifies itself by it.")
    ] = None
    broker_tls_key: Annotated[Path | None, Field(description="Key (PEM) of the client certificate.")] = None
    federation_dir: Annotated[
        Path, Field(description="Directory with directory.signed, enrolment.pub and the keys (see `comitia keys`).")
    ] = Path("federation")
    log_format: Annotated[LogFormat, Field(description="How log lines look: for people or for machines.")] = "console"
    log_level: Annotated[LogLevel, Field(description="The least important events that are written.")] = "info"

    @property
    def broker(self) -> BrokerSettings:
        """The broker's part, as the transport takes it."""
        return BrokerSettings(
            urls=tuple(self.broker_urls.get_secret_value().split()),
            heartbeat_s=self.broker_heartbeat_s,
            start_timeout_s=self.broker_start_timeout_s,
            tls_ca=self.broker_tls_ca,
            tls_certificate=self.broker_tls_certificate,
            tls_key=self.broker_tls_key,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment (`.env` has been read into it), then the TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, config: Path | None = None, **given: Any) -> Self:
        """Read the settings; `given` (from the command line) wins, None means not given.

        Raises:
            SettingsError: unknown, missing or out of bounds; one line that names each field.
        """
        if config is not None and not config.is_file():
            raise SettingsError(f"config: there is no file {config}")
        with_file = type(cls.__name__, (cls,), {"model_config": SettingsConfigDict(toml_file=config)})
        try:
            settings: Self = with_file(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise SettingsError(describe_errors(error, "setting")) from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"config: {config} is not TOML: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"config: {config} cannot be read: {error}") from error
        except SourceError as error:
            # It names the field and the source, and leaves the value out.
            raise SettingsError(f"setting: {error}; lists and tables are written as JSON") from error
        return settings


def refuse_unknown_variables(environment: Mapping[str, str], known: Iterable[type[ProcessSettings]]) -> None:
    """Look for misspelled settings in the environment.

    Args:
        environment: names and values.
        known: the settings of all kinds of process: they may share one environment.

    Raises:
        SettingsError: a `COMITIA_` variable that no process knows.
    """
    names = {f"{ENV_PREFIX}{field}".upper() for settings in known for field in settings.model_fields}
    for variable in sorted(environment):
        # pydantic-settings does not mind the case.
        name = variable.upper()
        if name.startswith(ENV_PREFIX) and name.split("__")[0] not in names | RESERVED_VARIABLES:
            close = difflib.get_close_matches(name, names, n=1)
            raise SettingsError(f"{variable}: unknown setting" + (f"; did you mean {close[0]}?" if close else ""))
