"""What is said to be on the disk is there with its name: content first, then the directory that names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.crypto.signing import SigningKey, save_signing_key, save_verifying_key
from shared.membership import Membership, keep_newest
from tests.builders import ENROLMENT, make_federation

KEY = SigningKey.from_seed(bytes(32))


def keep_directory(path: Path) -> None:
    keep_newest(path, Membership(make_federation().signed, ENROLMENT.public))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_signing_key(path, KEY),
        lambda path: save_verifying_key(path, KEY.public),
        keep_directory,
    ],
    ids=["private key", "public key", "directory"],
)
def test_the_name_is_synced_behind_the_content(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "file", []

    def watched(file: int) -> None:
        # Whether it is the directory, and whether the name was there by then.
        synced.append((os.path.sameopenfile(file, directory), path.exists()))

    directory = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(os, "fsync", watched)
    write(path)
    os.close(directory)

    assert [is_directory for is_directory, _ in synced] == [False, True]
    assert synced[-1] == (True, True)
