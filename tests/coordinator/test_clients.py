"""The roll: who takes part, and where a client was when it was last heard of."""

from __future__ import annotations

import pytest

from coordinator.scheduler.clients import BACK_OFF_MAX, SILENT_INTERVALS, Roll
from shared.wire.messages import CLOSED_STATES, REMINDER_BYTES_MAX, ClientState
from tests.builders import make_status

INTERVAL_S = 2.0
OPEN_STATES = sorted(set(ClientState) - CLOSED_STATES)


@pytest.fixture
def roll() -> Roll:
    return Roll(INTERVAL_S)


@pytest.mark.parametrize("state", OPEN_STATES)
def test_an_open_state_joins_once(roll: Roll, state: ClientState) -> None:
    assert roll.status("a", make_status(state, 1), 0.0) is True
    assert roll.status("a", make_status(state, 2), 1.0) is False
    assert roll.live == {"a"}


@pytest.mark.parametrize("state", sorted(CLOSED_STATES))
def test_a_closed_state_leaves_until_it_is_open_again(roll: Roll, state: ClientState) -> None:
    roll.status("a", make_status(sequence=1), 0.0)

    assert roll.status("a", make_status(state, 2), 1.0) is False
    assert roll.live == frozenset()
    assert roll.status("a", make_status(sequence=3), 2.0) is True


@pytest.mark.parametrize("sequence", [4, 5])
def test_a_replayed_status_changes_nothing(roll: Roll, sequence: int) -> None:
    roll.status("a", make_status(sequence=5), 0.0)

    assert roll.status("a", make_status(ClientState.DRAINING, sequence), 100.0) is None
    assert roll.live == {"a"}
    assert roll.silent(100.0) == ["a"]


def test_an_offer_takes_a_client_in_and_words_do_not(roll: Roll) -> None:
    roll.heard("a", 1, "words", 0.0)
    assert roll.live == frozenset()

    assert roll.join("a") is True
    assert roll.join("a") is False
    assert roll.live == {"a"}


def test_a_lost_client_names_its_last_version_and_phase(roll: Roll) -> None:
    roll.status("a", make_status(ClientState.TRAINING, 1, version=3), 0.0)
    assert roll.lose("a") == (3, "training")

    roll.join("a")
    roll.heard("a", 4, "offer", 1.0)
    roll.status("a", make_status(ClientState.OFFERED, 2, version=4), 1.0)
    assert roll.lose("a") == (4, "offer")
    assert roll.lose("a") is None
    assert roll.lose("unknown") is None


def test_silence_is_longer_than_three_intervals(roll: Roll) -> None:
    roll.status("a", make_status(sequence=1), 0.0)
    roll.status("b", make_status(sequence=1), 0.0)
    roll.heard("b", 0, "words", 1.0)
    limit = SILENT_INTERVALS * INTERVAL_S

    assert roll.silent(limit) == []
    assert roll.silent(limit + 0.1) == ["a"]
    roll.lose("a")
    assert roll.silent(limit + 0.1) == []


def test_a_client_that_breaks_the_protocol_is_left_out_longer_each_time(roll: Roll) -> None:
    assert not roll.is_backed_off("a", 0)
    untils = [roll.back_off("a", 10) for _ in range(8)]

    assert untils == [10 + pause for pause in (2, 4, 8, 16, 32, BACK_OFF_MAX, BACK_OFF_MAX, BACK_OFF_MAX)]
    assert roll.is_backed_off("a", 10 + BACK_OFF_MAX - 1)
    assert not roll.is_backed_off("a", 10 + BACK_OFF_MAX)
    assert not roll.is_backed_off("b", 10)


def test_a_new_start_does_not_end_a_back_off(roll: Roll) -> None:
    roll.back_off("a", 0)
    roll.status("a", make_status(ClientState.DRAINING, 1), 0.0)
    roll.status("a", make_status(ClientState.IDLE, 2), 0.0)

    assert roll.live == {"a"}
    assert roll.is_backed_off("a", 1)


# ── what a client has signed ──


def test_who_signs_a_lower_counter_than_before_is_told_the_newest(roll: Roll) -> None:
    assert roll.signed("a", 4, b"four") == b""
    assert roll.signed("a", 4, b"four again") == b""
    assert roll.signed("a", 7, b"seven") == b""
    assert roll.signed("a", 5, b"five") == b"seven"
    assert roll.signed("a", 0, b"none") == b"seven"
    assert roll.signed("b", 1, b"one") == b""
    assert roll.signed("a", 8, bytes(REMINDER_BYTES_MAX + 1)) == b""
    assert roll.signed("a", 6, b"six") == b"seven", "a frame that fits no reminder is not kept"


# ── spent up ──

ENROLLED = ("a", "b", "c", "d", "e")


def say(roll: Roll, clients: str, state: ClientState, sequence: int = 1) -> None:
    for client in clients:
        roll.status(client, make_status(state, sequence), 0.0)


def test_the_run_is_over_when_all_who_are_enrolled_are_too_few_without_the_exhausted(roll: Roll) -> None:
    say(roll, "ab", ClientState.BUDGET_EXHAUSTED)
    assert roll.spent_up(ENROLLED, 3, late=False) == ""
    say(roll, "c", ClientState.BUDGET_EXHAUSTED)
    assert "budget of 3 clients is exhausted, 2 are left and a draw needs 3" in roll.spent_up(ENROLLED, 3, late=False)
    say(roll, "c", ClientState.IDLE, 2)
    assert roll.spent_up(ENROLLED, 3, late=False) == "", "a larger budget brings a client back"


def test_who_was_never_heard_of_is_not_waited_for_for_ever(roll: Roll) -> None:
    say(roll, "ab", ClientState.BUDGET_EXHAUSTED)
    say(roll, "cd", ClientState.IDLE)
    assert roll.spent_up(ENROLLED, 3, late=False) == ""
    assert roll.spent_up(ENROLLED, 3, late=True) != ""


def test_absence_alone_never_ends_a_run(roll: Roll) -> None:
    say(roll, "ab", ClientState.IDLE)
    assert roll.spent_up(ENROLLED, 3, late=True) == ""
    say(roll, "c", ClientState.BUDGET_EXHAUSTED)
    say(roll, "de", ClientState.DRAINING)
    assert roll.spent_up(ENROLLED, 3, late=True) == "", "two that left may come back"
