"""Every promise of the threat model names a test, and these tests are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "shared" / "docs" / "threat-model.md"


def test_every_promise_names_tests_that_exist() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    promised = text[text.index("## What is promised") : text.index("## What is not promised")]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    existing = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }

    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= existing, row
