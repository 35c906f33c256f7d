"""The first signal asks a loop to end, the second one ends it, and afterwards signals are what they were."""

from __future__ import annotations

import contextlib
import signal

import pytest

from shared.stopping import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)])
def test_the_second_signal_interrupts(first: signal.Signals, second: signal.Signals) -> None:
    with StopSignal():
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)


def test_the_handlers_of_before_come_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    with contextlib.suppress(ValueError), StopSignal():
        assert signal.getsignal(signal.SIGTERM) not in before
        raise ValueError

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
