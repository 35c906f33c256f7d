"""Everything is counted, a refusal is explained once per sender and reason, and lines are readable by machines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from shared import telemetry as telemetry_module
from shared.effects import Note, note
from shared.errors import RefusalReason
from shared.telemetry import LogLevel, Telemetry, configure_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def refusal(sender: str, reason: RefusalReason) -> Note:
    return note("refused", "warning", sender=sender, reason=reason, detail="…")


def written(notes: list[Note], level: LogLevel = "info", **context: object) -> list[dict[str, object]]:
    stream = io.StringIO()
    configure_logging("json", level, stream)
    telemetry = Telemetry(**context)
    for one in notes:
        telemetry.note(one)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_refusal_is_counted_every_time_and_explained_once_per_sender_and_reason() -> None:
    told: list[Note] = []
    telemetry = Telemetry(told.append)
    late, forged = RefusalReason.LATE, RefusalReason.BAD_SIGNATURE

    for _ in range(5):
        for sender, reason in (("a", late), ("a", forged), ("b", late)):
            telemetry.note(refusal(sender, reason))

    assert told == [refusal("a", late), refusal("a", forged), refusal("b", late)]
    assert telemetry.counts == {"refused": 15, "refused.late": 10, "refused.bad_signature": 5}


def test_a_flood_of_senders_is_counted_and_soon_not_explained_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_module, "EXPLAINED_MAX", 10)
    told: list[Note] = []
    telemetry = Telemetry(told.append)

    for number in range(100):
        telemetry.note(refusal(f"sender-{number}", RefusalReason.LATE))

    assert len(told) == 10
    assert telemetry.counts["refused"] == 100


def test_other_notes_are_told_every_time() -> None:
    told: list[Note] = []
    telemetry = Telemetry(told.append)
    telemetry.note(note("connected"))
    telemetry.note(note("connected"))

    assert len(told) == 2
    assert telemetry.counts == {"connected": 2}


def test_a_line_is_one_json_object_with_its_context() -> None:
    fields = {"digest": b"\x01\xff", "reason": RefusalReason.LATE, "clients": ("a", "b"), "text": "two\nlines"}

    (line,) = written([note("group_rejected", "warning", **fields)], process="coordinator")

    assert line.pop("timestamp")
    assert line == {
        "event": "group_rejected",
        "level": "warning",
        "process": "coordinator",
        "digest": "01ff",
        "reason": "late",
        "clients": ["a", "b"],
        "text": "two\nlines",
    }


def test_less_important_events_are_left_out() -> None:
    notes = [note("fine", "debug"), note("news", "info"), note("odd", "warning"), note("broken", "error")]

    assert [line["event"] for line in written(notes, "warning")] == ["odd", "broken"]
    assert [line["event"] for line in written(notes, "debug")] == ["fine", "news", "odd", "broken"]


def test_the_console_keeps_one_line_per_event() -> None:
    stream = io.StringIO()
    configure_logging("console", "info", stream)

    Telemetry(process="worker").note(note("refused", "warning", sender="a", reason="late", detail="two\nlines \x1b[2J"))

    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert "refused" in stream.getvalue()
