"""The structured log lines of our own processes, as the commands that started them read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def parse_note(line: bytes) -> dict[str, Any] | None:
    """A structured log line; None for anything else that a process printed."""
    try:
        note = json.loads(line)
    except ValueError:
        return None
    return note if isinstance(note, dict) and "event" in note else None


def waiting_text(fields: Mapping[str, Any]) -> str:
    """What a `waiting_for_clients` note says."""
    backed_off = len(fields.get("backed_off", ()))
    but = f", of which {backed_off} broke the protocol and must wait" if backed_off else ""
    return f"{fields['offers']} offers, {fields['needed']} needed, {fields['live']} clients live{but}"
