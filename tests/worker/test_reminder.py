"""Only what a client has signed itself makes its state directory look old."""

from __future__ import annotations

import pytest

from shared.errors import StateError
from shared.wire.messages import Reminder, Task
from tests.builders import FEDERATION_ID, make_federation, make_offer, make_status
from worker.reminder import heed
from worker.state import ClientState
from worker.storage import MemoryStorage

CLIENT, OTHER = "client-0", "client-1"
FEDERATION = make_federation(2)


def state_at(counter: int) -> ClientState:
    state = ClientState(MemoryStorage(), client=CLIENT, federation=FEDERATION_ID)
    for _ in range(counter):
        state.next_counter()
    return state


@pytest.mark.parametrize("message", [make_offer(counter=3), make_status(counter=3)])
@pytest.mark.parametrize(("counter", "is_old"), [(2, True), (3, False), (4, False)])
def test_a_counter_that_the_directory_does_not_know_condemns_it(message: object, counter: int, is_old: bool) -> None:
    state = state_at(counter)
    reminder = Reminder(client=CLIENT, frame=FEDERATION.seal_as(CLIENT, message))  # type: ignore[arg-type]
    if is_old:
        with pytest.raises(StateError, match="counter 3"):
            heed(reminder, FEDERATION.opener(), state)
    else:
        assert heed(reminder, FEDERATION.opener(), state) == ()


def test_what_the_client_has_not_signed_counts_for_nothing() -> None:
    state = state_at(1)
    own = FEDERATION.seal_as(CLIENT, make_offer(counter=9))
    task = Task(client=CLIENT, version=9, attempt=0, head=bytes(32), snapshot_offset=0)
    frames = {
        "not_allowed": [FEDERATION.seal_as(OTHER, make_offer(counter=9)), FEDERATION.seal(task)],
        "bad_signature": [own[:-1] + bytes([own[-1] ^ 1])],
        "malformed": [b""],
    }
    for reason, forged in frames.items():
        for frame in forged:
            (note,) = heed(Reminder(client=CLIENT, frame=frame), FEDERATION.opener(), state)
            assert note.fields["reason"] in (reason, "malformed")
