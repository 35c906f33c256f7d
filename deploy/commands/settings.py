"""`comitia settings`: every setting of every process, as a file of environment variables with the defaults.

The text is made from the settings classes alone, so it cannot say anything else than the code does.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import typer
from pydantic import BaseModel

from coordinator.settings import CoordinatorSettings
from shared.settings import ENV_PREFIX, ProcessSettings
from worker.settings import WorkerSettings

WIDTH = 120
HEADING = """\
Settings of Comitia's processes, as environment variables. Copy what you need to .env, which every command reads; the
environment wins over it. What stands here are the defaults; a line without a value is not set (None, in the texts
below). Unknown names and values out of bounds are refused. `--config FILE.toml` takes the same names in lower
case, without the prefix.

Made by `comitia settings`.
"""
OWNERS: tuple[tuple[str, type[ProcessSettings]], ...] = (
    ("coordinator", CoordinatorSettings),
    ("worker", WorkerSettings),
)

_PROCESSES = {kind for _, kind in OWNERS}

Schema = Mapping[str, Any]


def settings() -> None:
    """Print every setting with its default, meaning and bounds, as a .env file."""
    typer.echo(example(), nl=False)


def example() -> str:
    """The content of `.env.example`."""
    fields = [set(kind.model_fields) for _, kind in OWNERS]
    parts = [_comment(HEADING)]
    for title, names in (
        ("every process", fields[0] & fields[1]),
        ("coordinator", fields[0] - fields[1]),
        ("worker", fields[1] - fields[0]),
    ):
        parts.append(f"# ── {title} {'─' * (WIDTH - len(title) - 6)}\n")
        kind = WorkerSettings if title == "worker" else CoordinatorSettings
        parts += ["".join(_setting(kind, name)) for name in kind.model_fields if name in names]
    return "\n".join(parts)


def _setting(kind: type[ProcessSettings], name: str) -> Iterator[str]:
    yield _comment(_description(name))
    field = kind.model_fields[name]
    yield from _field(kind, name, f"{ENV_PREFIX}{name}".upper(), field.get_default(call_default_factory=True))


def _field(owner: type[BaseModel], name: str, variable: str, default: Any) -> Iterator[str]:
    """The lines of one field; those of its fields, if it is a model."""
    model = _model_in(owner.model_fields[name].annotation)
    if model is not None:
        if owner in _PROCESSES:
            yield _comment(inspect.getdoc(model) or "")
        # A part that is not set has defaults of its own, for who sets some of it.
        part = model() if default is None else default
        for inner in model.model_fields:
            yield from _field(model, inner, f"{variable}__{inner}".upper(), getattr(part, inner))
        return
    bounds = _bounds(owner.model_json_schema()["properties"][name])
    if bounds:
        yield f"# {bounds}\n"
    yield f"#{variable}={_as_text(default)}\n"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model class that a field holds, possibly as one of several kinds; None if it holds none."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _description(name: str) -> str:
    """What a setting means; where the processes see it differently, what it means to each."""
    said = {owner: kind.model_fields[name].description or "" for owner, kind in OWNERS if name in kind.model_fields}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "\n".join(f"{owner}: {text}" for owner, text in said.items())


def _bounds(place: Schema) -> str:
    """Kind, allowed values and bounds of one value."""
    options = [one for one in place.get("anyOf", [place]) if one.get("type") != "null"]
    return " or ".join(filter(None, map(_bounds_of_one, options)))


def _bounds_of_one(place: Schema) -> str:
    if "enum" in place:
        return "one of: " + ", ".join(map(str, place["enum"]))
    signs: Sequence[tuple[str, str]] = (
        ("exclusiveMinimum", ">"),
        ("minimum", ">="),
        ("maximum", "<="),
        ("exclusiveMaximum", "<"),
    )
    limits = " and ".join(f"{sign} {place[key]:g}" for key, sign in signs if key in place)
    kind = {"integer": "a whole number", "number": "a number", "array": "a JSON list", "object": "a JSON object"}.get(
        place.get("type", ""), "true or false" if place.get("type") == "boolean" else ""
    )
    return " ".join(filter(None, (kind, limits)))


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def _comment(text: str) -> str:
    return "".join(_comment_lines(text.strip().splitlines()))


def _comment_lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        for part in textwrap.wrap(line, WIDTH - 2) or [""]:
            yield f"# {part}".rstrip() + "\n"
