"""What stands in the coordinator's journal: pieces and marks as in the model log, and the records that name them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from shared.wire.messages import PIECES_MAX, Hash, Kind, Message


class Record(Message):
    """What the coordinator knows besides the model log once `entry` stands in it; of no account if it never does.

    `state` names the pieces of the encoded state, `optimizer` those of the server optimizer's: None if that is what the
    record before it says. The pieces stand in front of the record.
    """

    kind: ClassVar[Kind] = Kind.RECORD

    entry: Hash
    state: Annotated[tuple[Hash, ...], Field(min_length=1, max_length=PIECES_MAX)]
    optimizer: Annotated[tuple[Hash, ...], Field(max_length=PIECES_MAX)] | None
