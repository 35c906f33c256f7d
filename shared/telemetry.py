"""What operators see: structured log lines, and one counter per kind of event.

A peer that sends rubbish must not be able to fill a disk: a refusal is counted every time, but explained
once per sender and reason.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Literal, TextIO

import structlog

from shared.effects import Note

EXPLAINED_MAX = 10_000

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def configure_logging(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Set structlog up for this process: one line per event, to standard error unless `stream` is given."""
    # Everything that pika reports as an error is an event of the transport, which is written below.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(default=_readable)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=(stream or sys.stderr).isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


class Telemetry:
    """Writes notes and counts them. `counts` is by event, and by `refused.<reason>` for refusals."""

    def __init__(self, listen: Callable[[Note], None] | None = None, **context: object) -> None:
        """
        Args:
            listen: takes the notes instead of the log.
            context: fields of every log line.
        """
        self._log = structlog.get_logger().bind(**context)
        self._listen = listen
        self._explained: set[tuple[object, object]] = set()
        self.counts: Counter[str] = Counter()

    def note(self, note: Note) -> None:
        """Count an event and write it, unless it is a refusal that has been explained before."""
        self.counts[note.event] += 1
        if note.event == "refused":
            self.counts[f"refused.{note.fields.get('reason')}"] += 1
            key = (note.fields.get("sender"), note.fields.get("reason"))
            if key in self._explained or len(self._explained) >= EXPLAINED_MAX:
                return
            self._explained.add(key)
        if self._listen is not None:
            self._listen(note)
        else:
            getattr(self._log, note.level)(note.event, **note.fields)


def _readable(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return repr(value)
