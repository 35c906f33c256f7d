"""What the demonstration says in words of the coordinator's notes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from deploy.demo.display import Display
from deploy.demo.report import Run


@pytest.mark.parametrize(
    ("event", "fields", "words"),
    [
        ("accuracy_alarm", {"text": "accuracy has fallen"}, "ALARM: accuracy has fallen"),
        ("clipping_norm_alarm", {"text": "updates have become long"}, "ALARM: updates have become long"),
        ("stopped_early", {"version": 9, "reason": "no better version"}, "stopped early: no better version"),
        ("rate_lowered", {"version": 7, "factor": 0.25}, "plateau at version 7: server's learning rate times 0.25"),
        (
            "dense_entries",
            {"optimizer": "Adam", "bytes": 38_400, "bytes_of_round": 3_840},
            "the server's Adam moves every coordinate: change entries hold the whole model, 38.4 kB instead of 3.8 kB",
        ),
    ],
)
def test_what_an_operator_may_want_to_know_is_said_in_words(event: str, fields: dict[str, Any], words: str) -> None:
    output = io.StringIO()
    with Display(Console(file=output, width=200), Run("memory", ""), rounds=3, clients=2) as display:
        display.hear(event, fields)
    assert words in output.getvalue()
