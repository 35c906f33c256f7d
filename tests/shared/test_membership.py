"""A process follows the newest directory that the enrolment key has signed, and never goes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.directory_file import DirectoryFile
from coordinator.events import DirectoryArrived
from shared.directory import Directory, sign_directory, without_clients
from shared.errors import DirectoryError
from shared.membership import Membership, keep_newest, load_membership
from tests.builders import ENROLMENT, make_federation, signing_key

FIRST = make_federation().directory
SECOND = without_clients(FIRST, ["client-0"])
THIRD = without_clients(SECOND, ["client-1"])


def signed(directory: Directory) -> bytes:
    return sign_directory(directory, ENROLMENT)


def members(directory: Directory = FIRST) -> Membership:
    return Membership(signed(directory), ENROLMENT.public)


def test_only_newer_directories_are_adopted() -> None:
    ours = members(SECOND)

    assert not ours.adopt(signed(FIRST))
    assert not ours.adopt(signed(SECOND))
    assert ours.directory == SECOND
    assert ours.adopt(signed(THIRD))
    assert (ours.directory, ours.signed) == (THIRD, signed(THIRD))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (sign_directory(SECOND, signing_key(77)), "not signed by the enrolment key"),
        (signed(SECOND.model_copy(update={"federation": "other"})), "of federation"),
        (signed(SECOND.model_copy(update={"coordinator_key": "ab" * 32})), "another coordinator's key"),
        (b"", "not a directory"),
    ],
)
def test_what_is_not_this_federations_changes_nothing(body: bytes, message: str) -> None:
    ours = members()
    with pytest.raises(DirectoryError, match=message):
        ours.adopt(body)
    assert ours.directory == FIRST


def test_a_kept_directory_is_never_replaced_by_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "state" / "directory.signed"
    for directory, there in ((SECOND, SECOND), (FIRST, SECOND), (THIRD, THIRD), (SECOND, THIRD)):
        keep_newest(path, members(directory))
        assert path.read_bytes() == signed(there)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_news_once_each_time_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "directory.signed"
    path.write_bytes(signed(FIRST))
    file = DirectoryFile(path)
    assert file.news() == []

    aside = tmp_path / "new"
    aside.write_bytes(signed(SECOND))
    aside.replace(path)
    assert file.news() == [DirectoryArrived(signed(SECOND))]
    assert file.news() == []
    path.unlink()
    assert file.news() == []


def test_a_wrong_federation_directory_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=r"enrolment\.pub: is not there; .*`comitia keys init`.*--fed"):
        load_membership(tmp_path / "wrong")
