"""Which of the directories that come is written to the log, and when."""

from __future__ import annotations

import pytest

from coordinator.enrolment import Enrolment
from coordinator.events import DirectoryArrived, TookOffice
from shared.directory import sign_directory
from shared.modellog.chain import GENESIS
from shared.wire.log_messages import DrawEntry, VoidEntry
from tests.builders import ENROLMENT
from tests.coordinator.builders import Desk, notes


@pytest.mark.parametrize("numbers", [(4, 3), (3, 4), (4, 4)])
def test_of_two_directories_that_wait_for_the_end_of_a_draw_the_newer_is_written(numbers: tuple[int, int]) -> None:
    desk = Desk()
    enrolment = Enrolment(desk.writer, desk.log.members)
    assert enrolment.handle(TookOffice(), 0.0) == ()
    draw = desk.append(DrawEntry(parent=GENESIS, term=0, version=0, groups=1, offers=1, root=bytes(32)))
    told: list[str] = []
    for number in numbers:
        directory = desk.log.directory.model_copy(update={"number": number})
        told += notes(enrolment.handle(DirectoryArrived(sign_directory(directory, ENROLMENT)), 0.0))
    closed = desk.append(VoidEntry(parent=GENESIS, term=0, draw=draw.accepted.digest, reason="test"))
    desk.read_back(enrolment.handle(closed, 0.0))

    assert desk.chain.directory_number == 4
    assert told == (["directory_refused"] if numbers == (4, 3) else [])
