"""The structured log lines of our own processes, as the commands that started them read them."""

from __future__ import annotations

import json
from typing import Any


def parse_note(line: bytes) -> dict[str, Any] | None:
    """A structured log line; None for anything else that a process printed."""
    try:
        note = json.loads(line)
    except ValueError:
        return None
    return note if isinstance(note, dict) and "event" in note else None
