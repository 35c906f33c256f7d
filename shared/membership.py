"""Which directory counts now? The newest that the enrolment key has signed; a process never goes back to an older one.

It begins with a file and takes over newer ones from the model log, whoever wrote them there: the coordinator passes a
directory on, and can neither make nor change one.
"""

from __future__ import annotations

import os
from pathlib import Path

from shared.crypto.signing import VerifyingKey, load_verifying_key
from shared.directory import DIRECTORY_BYTES_MAX, DIRECTORY_FILE, ENROLMENT_PUBLIC_FILE, Directory, open_directory
from shared.disk import sync_directory
from shared.errors import DirectoryError


class Membership:
    """The directory of one process, with the bytes that were signed."""

    def __init__(self, signed: bytes, enrolment: VerifyingKey) -> None:
        """
        Args:
            signed: a directory file's content.
            enrolment: the key that signs this federation's directories.

        Raises:
            DirectoryError: as `open_directory`.
        """
        self.enrolment = enrolment
        self.signed = signed
        self.directory = open_directory(signed, enrolment)

    def read(self, signed: bytes) -> Directory:
        """Open another directory of the same federation, of any number.

        Raises:
            DirectoryError: not signed by the enrolment key, or of another federation or coordinator.
        """
        if signed == self.signed:
            return self.directory
        other = open_directory(signed, self.enrolment)
        ours = self.directory
        if (other.federation, other.federation_id) != (ours.federation, ours.federation_id):
            raise DirectoryError(f"the directory is of federation {other.federation_id}, ours is {ours.federation_id}")
        if other.coordinator_key != ours.coordinator_key:
            raise DirectoryError("the directory names another coordinator's key than the one that we follow")
        return other

    def adopt(self, signed: bytes) -> bool:
        """Take a directory over if it is newer; returns whether it is.

        Raises:
            DirectoryError: as `read`.
        """
        other = self.read(signed)
        if other.number <= self.directory.number:
            return False
        self.signed, self.directory = signed, other
        return True


def load_membership(folder: Path) -> Membership:
    """What the directory file in a federation directory says; every error names it.

    Raises:
        DirectoryError: it, or the enrolment key, is missing or not verified.
    """
    path, public = folder / DIRECTORY_FILE, folder / ENROLMENT_PUBLIC_FILE
    if not public.exists():
        raise DirectoryError(f"{public}: is not there; `comitia keys init` makes it, --federation-dir finds it")
    enrolment = load_verifying_key(public)
    try:
        return Membership(read_signed(path), enrolment)
    except DirectoryError as error:
        raise DirectoryError(f"{path}: {error}") from error


def read_signed(path: Path) -> bytes:
    """The bytes of a directory file, and one more than there may be if it is too large.

    Raises:
        DirectoryError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(DIRECTORY_BYTES_MAX + 1)
    except OSError as error:
        raise DirectoryError(f"cannot be read: {error.strerror}") from error


def keep_newest(path: Path, members: Membership) -> None:
    """Put the directory of a process in a file's place, in one step and durably, unless a newer one is there.

    Raises:
        DirectoryError: it cannot be written, or what is there does not verify.
    """
    # Worker processes of one site may share the place, and read the log at different speeds.
    if path.exists() and members.read(read_signed(path)).number >= members.directory.number:
        return
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(members.signed)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be written: {error.strerror}") from error
