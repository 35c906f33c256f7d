"""Has somebody put a new directory in the place of ours? A look at the file, whenever the coordinator asks."""

from __future__ import annotations

from pathlib import Path

from coordinator.events import DirectoryArrived
from shared.errors import DirectoryError
from shared.membership import read_signed


class DirectoryFile:
    """Watches a file that is replaced in one step. One that is away, or half written, is looked at again later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._tag()

    def news(self) -> list[DirectoryArrived]:
        """What the file holds, if it is another one than when it was looked at last."""
        tag = self._tag()
        if tag is None or tag == self._seen:
            return []
        try:
            signed = read_signed(self._path)
        except DirectoryError:
            return []
        self._seen = tag
        return [DirectoryArrived(signed)]

    def _tag(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
