"""Which entries of the log count: the hash chain and its one rule of acceptance.

Every reader of a federation applies this rule to the same stream and so comes to the same head: an entry is
accepted only if its parent is the head, its term is the current one, and it fits what the chain allows next. Whatever
else stands in the stream (a retried publish, a half-written entry, the words of a coordinator that was replaced) is
skipped. The chain knows nothing of weights; `shared.modellog.reader` does.

    entry      fits if                                                  then
    ─────────  ───────────────────────────────────────────────────────  ─────────────────────────────────
    snapshot   (no chain yet) all its pieces are there                  the chain begins here
    snapshot   version, heads and weights are the present ones          head moves
    term       its term is the next one                                 head moves; the old term is fenced
    draw       version is the present one, no draw is open              the draw is open
    change     version is the next one, draw is the open one,           version moves, the draw is closed
               its groups belong to it
    void       draw is the open one                                     the draw is closed, attempt moves
    directory  its number is above the present one, no draw is open,    the directory is in force
               the enrolment key has signed its body
    run        version is the present one, issued after the last one    the run is paused, goes on, or is to end

A pause holds until an entry ends it, whoever is in office. A stop is for one session: the next term runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shared.errors import RefusalReason
from shared.wire.log_messages import (
    ChangeEntry,
    DirectoryEntry,
    DrawEntry,
    Entry,
    RunEntry,
    SnapshotEntry,
    TermEntry,
    VoidEntry,
)
from shared.wire.messages import RunState

GENESIS = bytes(32)
"""The parent of a federation's first entry."""


@dataclass(frozen=True, slots=True)
class OpenDraw:
    """The draw that the chain waits to see closed; `root` is the Merkle root over its groups."""

    entry: bytes
    groups: int
    root: bytes


@dataclass(frozen=True, slots=True)
class ChainState:
    """Where a reader stands. Immutable: an entry gives a new state, a refused one gives none.

    `version_head` is the hash of the entry that made `version`; `attempt` counts the void draws of this version.
    `controlled_us` is the time of the operator's last command: no older one counts again. `earlier_heads` are those of
    the versions before, oldest first: as many as an update may be stale (`staleness_max`), or as there were.
    """

    head: bytes
    term: int
    version: int
    version_head: bytes
    attempt: int
    weights_sha256: bytes
    clipping_norm: float
    directory_number: int = 0
    directory_digest: bytes = b""
    run: RunState = RunState.RUNNING
    controlled_us: int = 0
    draw: OpenDraw | None = None
    session: bytes = field(default=b"", repr=False)
    staleness_max: int = 0
    earlier_heads: tuple[bytes, ...] = ()

    def head_of(self, version: int) -> bytes | None:
        """The hash of the entry that made a version; None if an update of it is too stale, or there is none yet."""
        staleness = self.version - version
        if staleness == 0:
            return self.version_head
        return self.earlier_heads[-staleness] if 0 < staleness <= len(self.earlier_heads) else None


def begin(entry: SnapshotEntry, digest: bytes, staleness_max: int = 0) -> ChainState:
    """The state of a reader whose first entry is this snapshot."""
    return ChainState(
        head=digest,
        term=entry.term,
        version=entry.version,
        # The first snapshot of a federation makes version 0; it cannot name its own hash.
        version_head=digest if entry.version_head == GENESIS else entry.version_head,
        attempt=entry.attempt,
        weights_sha256=entry.weights_sha256,
        clipping_norm=entry.clipping_norm,
        directory_number=entry.directory_number,
        directory_digest=entry.directory_digest,
        run=entry.run,
        controlled_us=entry.controlled_us,
        staleness_max=staleness_max,
        earlier_heads=entry.earlier_heads,
    )


def judge(state: ChainState, entry: Entry) -> RefusalReason | None:
    """Why `entry` is not the next link of the chain, or None if it is."""
    if entry.parent != state.head:
        return RefusalReason.WRONG_PARENT
    next_term = state.term + 1 if isinstance(entry, TermEntry) else state.term
    if entry.term != next_term:
        return RefusalReason.WRONG_TERM
    return None if _FITS[type(entry)](state, entry) else RefusalReason.NOT_ALLOWED


def advance(state: ChainState, entry: Entry, digest: bytes) -> ChainState:
    """The state after an entry that `judge` let pass; `digest` is the SHA-256 of its frame (32 bytes)."""
    match entry:
        case TermEntry():
            run = RunState.RUNNING if state.run is RunState.STOPPING else state.run
            return replace(state, head=digest, term=entry.term, session=entry.session, run=run)
        case DrawEntry():
            return replace(state, head=digest, draw=OpenDraw(digest, entry.groups, entry.root))
        case ChangeEntry():
            heads = (*state.earlier_heads, state.version_head)
            return replace(
                state,
                head=digest,
                earlier_heads=heads[max(0, len(heads) - state.staleness_max) :],
                version=entry.version,
                version_head=digest,
                attempt=0,
                weights_sha256=entry.weights_sha256,
                clipping_norm=entry.clipping_norm,
                draw=None,
            )
        case VoidEntry():
            return replace(state, head=digest, draw=None, attempt=state.attempt + 1)
        case DirectoryEntry():
            return replace(state, head=digest, directory_number=entry.number, directory_digest=entry.digest)
        case RunEntry():
            return replace(state, head=digest, run=entry.run, controlled_us=entry.issued_us)
        case _:
            return replace(state, head=digest)


def _term_fits(state: ChainState, entry: TermEntry) -> bool:
    return True


def _snapshot_fits(state: ChainState, entry: SnapshotEntry) -> bool:
    return (
        state.draw is None
        and entry.version == state.version
        and entry.version_head == state.version_head
        and entry.earlier_heads == state.earlier_heads
        and entry.attempt == state.attempt
        and entry.weights_sha256 == state.weights_sha256
        and entry.clipping_norm == state.clipping_norm
        and entry.directory_number == state.directory_number
        and entry.directory_digest == state.directory_digest
        and entry.run is state.run
        and entry.controlled_us == state.controlled_us
    )


def _draw_fits(state: ChainState, entry: DrawEntry) -> bool:
    return state.draw is None and entry.version == state.version


def _change_fits(state: ChainState, entry: ChangeEntry) -> bool:
    return (
        state.draw is not None
        and entry.draw == state.draw.entry
        and entry.version == state.version + 1
        and len(set(entry.groups)) == len(entry.groups)
        and max(entry.groups) < state.draw.groups
    )


def _void_fits(state: ChainState, entry: VoidEntry) -> bool:
    return state.draw is not None and entry.draw == state.draw.entry


def _directory_fits(state: ChainState, entry: DirectoryEntry) -> bool:
    return state.draw is None and entry.number > state.directory_number


def _run_fits(state: ChainState, entry: RunEntry) -> bool:
    return entry.version == state.version and entry.issued_us > state.controlled_us


_FITS: dict[type[Entry], Callable[..., bool]] = {
    TermEntry: _term_fits,
    SnapshotEntry: _snapshot_fits,
    DrawEntry: _draw_fits,
    ChangeEntry: _change_fits,
    VoidEntry: _void_fits,
    RunEntry: _run_fits,
    DirectoryEntry: _directory_fits,
}
