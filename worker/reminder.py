"""What does a client owe to a reminder? The coordinator sends back what the client signed itself, if that is newer.

A state directory that was restored from a backup, or lost and begun anew, does not know what was spent since. Only what
the client signed counts, so that a coordinator cannot make a directory look older than it is; one that is up to date
knows every counter that it ever signed.
"""

from __future__ import annotations

from shared.effects import Note, note
from shared.errors import RefusalReason, RemoteProtocolError
from shared.identity import COORDINATOR
from shared.wire.framing import Opener
from shared.wire.messages import Offer, Reminder, Status
from worker.state import ClientState


def heed(reminder: Reminder, opener: Opener, state: ClientState) -> tuple[Note, ...]:
    """Compare a client's state directory with what a verified reminder to this client holds.

    Raises:
        StateError: the client has signed a counter that its directory does not know; nobody may use it from now on.
    """
    try:
        counter = _counter(reminder, opener)
    except RemoteProtocolError as error:
        return (note("refused", "warning", sender=COORDINATOR, reason=error.reason.value, detail=error.detail),)
    if counter > state.counter:
        state.condemn(counter)
    return ()


def _counter(reminder: Reminder, opener: Opener) -> int:
    opened = opener.open(reminder.frame)
    if opened.sender != reminder.client or not isinstance(opened.message, Offer | Status):
        detail = f"a reminder of {opened.sender}'s {type(opened.message).__name__}"
        raise RemoteProtocolError(RefusalReason.NOT_ALLOWED, detail)
    return opened.message.counter
