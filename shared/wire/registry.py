"""Which type does a frame of this kind hold? The decoder's table."""

from __future__ import annotations

from shared.wire.group_messages import (
    Agreement,
    Arrived,
    GivenUp,
    GroupJob,
    Participants,
    Reveal,
    Roster,
    Shares,
    Sum,
    Unmask,
    Words,
)
from shared.wire.journal_messages import Record
from shared.wire.log_messages import (
    ChangeEntry,
    DirectoryEntry,
    DrawEntry,
    Mark,
    Piece,
    RunEntry,
    SnapshotEntry,
    TermEntry,
    VoidEntry,
)
from shared.wire.messages import Candidacy, Control, Kind, Message, Offer, Reminder, Status, Task

MESSAGE_TYPES: dict[Kind, type[Message]] = {
    t.kind: t
    for t in (
        Offer,
        Status,
        Shares,
        Words,
        Agreement,
        Reveal,
        Task,
        Reminder,
        Roster,
        Participants,
        Arrived,
        Unmask,
        GroupJob,
        Sum,
        GivenUp,
        Piece,
        Mark,
        TermEntry,
        SnapshotEntry,
        DrawEntry,
        ChangeEntry,
        VoidEntry,
        RunEntry,
        DirectoryEntry,
        Record,
        Control,
        Candidacy,
    )
}
"""Every message type by its kind: the decoder's table."""
