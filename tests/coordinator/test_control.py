"""The operator's commands: which ones count, and what is written and settled for them."""

from __future__ import annotations

import pytest

from coordinator.control import AGE_MAX_US, RunControl
from coordinator.events import ControlArrived, Tick
from shared.effects import Append, Settle
from shared.modellog.chain import GENESIS
from shared.wire.log_messages import DrawEntry, RunEntry
from shared.wire.messages import Control, RunState
from tests.coordinator.builders import Desk, notes, only, receipt

NOW_US = 10**15


def command(run: RunState = RunState.PAUSED, issued_us: int = NOW_US, received_us: int = NOW_US) -> ControlArrived:
    return ControlArrived(Control(run=run, issued_us=issued_us), received_us, receipt())


def test_a_command_becomes_an_entry_and_is_settled_behind_it() -> None:
    desk = Desk()
    machine, event = RunControl(desk.writer), command()

    effects = machine.handle(event, 0.0)
    assert [type(effect) for effect in effects] == [Append, Settle]
    desk.read_back(effects)
    assert (desk.chain.run, desk.chain.controlled_us) == (RunState.PAUSED, NOW_US)
    assert machine.handle(Tick(), 0.0) == ()


def test_commands_wait_for_an_entry_on_its_way_and_are_written_in_their_order() -> None:
    desk = Desk()
    machine = RunControl(desk.writer)
    draw = desk.writer.append(DrawEntry(parent=GENESIS, term=0, version=0, groups=1, offers=1, root=GENESIS))

    assert machine.handle(command(), 0.0) == ()
    assert machine.handle(command(RunState.RUNNING, NOW_US + 1), 0.0) == ()
    (accepted,) = desk.read_back([draw])
    for expected in (RunState.PAUSED, RunState.RUNNING):
        effects = machine.handle(accepted, 0.0)
        (append,) = only(Append, effects)
        assert isinstance(append.sealed.entry, RunEntry)
        assert append.sealed.entry.run is expected
        desk.read_back(effects)
    assert desk.chain.controlled_us == NOW_US + 1


@pytest.mark.parametrize(
    ("issued_us", "reason"),
    [
        (NOW_US, "refused replayed"),
        (NOW_US - 1, "refused replayed"),
        (NOW_US - AGE_MAX_US, "refused replayed"),
        (NOW_US - AGE_MAX_US - 1, "refused stale"),
        (NOW_US + AGE_MAX_US + 1, "refused stale"),
    ],
)
def test_what_is_old_repeated_or_from_the_future_is_refused_and_settled(issued_us: int, reason: str) -> None:
    desk = Desk()
    machine = RunControl(desk.writer)
    desk.read_back(machine.handle(command(), 0.0))

    effects = machine.handle(command(RunState.STOPPING, issued_us), 0.0)
    assert notes(effects) == [reason]
    assert len(only(Settle, effects)) == 1
    assert only(Append, effects) == []


def test_a_repeat_is_refused_while_the_first_still_waits() -> None:
    desk = Desk()
    machine = RunControl(desk.writer)
    desk.writer.append(DrawEntry(parent=GENESIS, term=0, version=0, groups=1, offers=1, root=GENESIS))

    machine.handle(command(), 0.0)
    assert notes(machine.handle(command(), 0.0)) == ["refused replayed"]


@pytest.mark.parametrize("issued_us", [NOW_US, NOW_US - 1])
def test_a_repeat_is_refused_while_the_entry_of_the_first_is_on_its_way(issued_us: int) -> None:
    desk = Desk()
    machine = RunControl(desk.writer)

    written = machine.handle(command(), 0.0)
    effects = machine.handle(command(RunState.STOPPING, issued_us), 0.0)
    assert notes(effects) == ["refused replayed"]
    assert len(only(Settle, effects)) == 1
    (accepted,) = desk.read_back(written)
    # The log would refuse its entry, and that would look like another coordinator's.
    assert machine.handle(accepted, 0.0) == ()
