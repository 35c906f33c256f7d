"""One draw: all groups of a version at once, its log entry, and the jobs for the summing stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from coordinator.log_writer import LogWriter
from coordinator.scheduler.pool import WaitingOffer
from shared.crypto import merkle
from shared.crypto.draw import cut_groups, draw_order, group_leaf
from shared.modellog.chain import GENESIS
from shared.modellog.entries import SealedEntry
from shared.wire.group_messages import Group, GroupJob, Member
from shared.wire.log_messages import DrawEntry

JOB_MEMBERS = 16
"""A job holds groups of about this many members: small enough to share out, large enough to be one message."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The sealed entry and the groups it commits to."""

    sealed: SealedEntry
    version: int
    groups: tuple[Group, ...]
    offers: tuple[WaitingOffer, ...]

    def jobs(self) -> Iterator[GroupJob]:
        """The groups, cut into jobs."""
        per_job = max(1, JOB_MEMBERS // max(len(group.members) for group in self.groups))
        for start in range(0, len(self.groups), per_job):
            yield GroupJob(
                draw=self.sealed.digest,
                version=self.version,
                groups=len(self.groups),
                members=self.groups[start : start + per_job],
            )


def make_draw(offers: Sequence[WaitingOffer], group_size: int, sites: Mapping[str, str], writer: LogWriter) -> Draw:
    """Cut the offers into random groups (`shared.crypto.draw`) and seal the entry that commits to them."""
    chain = writer.chain
    assert chain is not None
    order = draw_order(chain.version_head, [waiting.digest for waiting in offers])
    rosters = [[offers[order[i]] for i in group] for group in cut_groups(len(offers), group_size)]
    leaves = [
        group_leaf(index, [(waiting.client, waiting.digest) for waiting in roster])
        for index, roster in enumerate(rosters)
    ]
    groups = tuple(
        Group(
            index=index,
            members=tuple(
                Member(client=w.client, site=sites[w.client], worker=w.offer.worker, offer=w.frame) for w in roster
            ),
            path=path,
        )
        for index, (roster, path) in enumerate(zip(rosters, merkle.paths(leaves), strict=True))
    )
    entry = DrawEntry(
        parent=GENESIS,
        term=0,
        version=chain.version,
        groups=len(groups),
        offers=len(offers),
        root=merkle.root(leaves),
    )
    return Draw(writer.seal(entry), chain.version, groups, tuple(offers))
