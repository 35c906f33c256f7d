"""One draw: all groups of a version at once, its log entry, and the jobs for the summing stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.log_writer import LogWriter
from shared.crypto import merkle
from shared.crypto.draw import cut_groups, draw_order, group_leaf
from shared.directory import Directory
from shared.modellog.chain import GENESIS, ChainState
from shared.modellog.entries import SealedEntry
from shared.wire.group_messages import Group, GroupJob, Member
from shared.wire.log_messages import DrawEntry
from shared.wire.messages import Offer

JOB_MEMBERS = 16
"""A job holds groups of about this many members: small enough to share out, large enough to be one message."""


class SignedOffer(Protocol):
    """What a draw needs of an offer: `frame` as the client signed it, `digest` its SHA-256."""

    @property
    def client(self) -> str:
        """Who offers."""

    @property
    def offer(self) -> Offer:
        """What the frame says."""

    @property
    def digest(self) -> bytes:
        """32 bytes."""

    @property
    def frame(self) -> bytes:
        """The signed bytes."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The groups that the log entry `entry` (its hash) commits to, and the offers in them."""

    entry: bytes
    version: int
    groups: tuple[Group, ...]
    offers: tuple[SignedOffer, ...]

    @property
    def clients(self) -> tuple[str, ...]:
        """Whose offers they are."""
        return tuple(signed.client for signed in self.offers)

    def jobs(self) -> Iterator[GroupJob]:
        """The groups, cut into jobs."""
        per_job = max(1, JOB_MEMBERS // max(len(group.members) for group in self.groups))
        for start in range(0, len(self.groups), per_job):
            yield GroupJob(
                draw=self.entry,
                version=self.version,
                groups=len(self.groups),
                members=self.groups[start : start + per_job],
            )


def make_draw(
    offers: Sequence[SignedOffer], group_size: int, sites: Mapping[str, str], writer: LogWriter
) -> tuple[Draw, SealedEntry]:
    """Cut the offers into random groups (`shared.crypto.draw`) and seal the entry that commits to them."""
    chain = writer.chain
    assert chain is not None
    groups, root = _cut(offers, group_size, sites, chain)
    entry = DrawEntry(
        parent=GENESIS,
        term=0,
        version=chain.version,
        groups=len(groups),
        offers=len(offers),
        root=root,
    )
    sealed = writer.seal(entry)
    return Draw(sealed.digest, chain.version, groups, tuple(offers)), sealed


def sites_of(directory: Directory) -> dict[str, str]:
    """Every enrolled client's site."""
    return {client: entry.site for client, entry in directory.clients.items()}


def open_draw_of(
    offers: Sequence[SignedOffer], group_size: int, sites: Mapping[str, str], chain: ChainState
) -> Draw | None:
    """The chain's open draw if it was made of these offers; None if it was not, or none is open."""
    if chain.draw is None or not offers or not sites.keys() >= {signed.client for signed in offers}:
        return None
    groups, root = _cut(offers, group_size, sites, chain)
    same = (root, len(groups)) == (chain.draw.root, chain.draw.groups)
    return Draw(chain.draw.entry, chain.version, groups, tuple(offers)) if same else None


def _cut(
    offers: Sequence[SignedOffer], group_size: int, sites: Mapping[str, str], chain: ChainState
) -> tuple[tuple[Group, ...], bytes]:
    """The groups, and the Merkle root over them."""
    order = draw_order(chain.version_head, [signed.digest for signed in offers])
    rosters = [[offers[order[i]] for i in group] for group in cut_groups(len(offers), group_size)]
    leaves = [
        group_leaf(index, [(signed.client, signed.digest) for signed in roster]) for index, roster in enumerate(rosters)
    ]
    groups = tuple(
        Group(
            index=index,
            members=tuple(
                Member(client=one.client, site=sites[one.client], worker=one.offer.worker, offer=one.frame)
                for one in roster
            ),
            path=path,
        )
        for index, (roster, path) in enumerate(zip(rosters, merkle.paths(leaves), strict=True))
    )
    return groups, merkle.root(leaves)
