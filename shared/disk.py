"""When is the name of a new file safe? When its directory is synced; the file's own sync is not enough."""

from __future__ import annotations

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Return once the names in a directory are on the disk.

    Raises:
        OSError: the disk refused.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
