"""Who is who: the names that travel in messages, queues and logs, and what makes them well formed."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import StringConstraints

# Names become parts of queue names, routing keys, file names and permission patterns: only characters that mean
# themselves in all four are allowed (no dot, which separates routing keys).
_NAME = StringConstraints(strict=True, pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?$")

Name = Annotated[str, _NAME]

ClientId: TypeAlias = str
SiteId: TypeAlias = str
WorkerId: TypeAlias = str
StageId: TypeAlias = str
EntryHash: TypeAlias = bytes
ModelVersion: TypeAlias = int

COORDINATOR = "coordinator"
"""The sender name of every message that the coordinator's key signs; no client may be enrolled under it."""

OPERATOR = "operator"
"""Stands for the federation's operator where a site's name stands in routing keys; no site may be called so."""


def numbered_client(number: int) -> ClientId:
    """What client `number` is called where clients are enrolled by number."""
    return f"client-{number:03d}"
