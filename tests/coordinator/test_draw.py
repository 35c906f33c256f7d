"""A draw: groups that anybody can recompute, an entry that commits to them, jobs that share them out."""

from __future__ import annotations

from coordinator.scheduler.draw import JOB_MEMBERS, Draw, make_draw
from coordinator.scheduler.pool import WaitingOffer
from shared.crypto import merkle
from shared.crypto.draw import cut_groups, draw_order, group_leaf
from shared.effects import Append
from shared.modellog.entries import SealedEntry
from shared.wire.log_messages import DrawEntry
from shared.wire.messages import Kind
from tests.coordinator.builders import Desk


def drawn(desk: Desk, count: int, group_size: int = 1) -> Draw:
    return made(desk, count, group_size)[0]


def made(desk: Desk, count: int, group_size: int = 1) -> tuple[Draw, SealedEntry]:
    events = [desk.offer(client, worker=f"w-{client}") for client in desk.clients[:count]]
    waiting = [WaitingOffer(e.client, e.offer, e.digest, e.frame, e.receipt) for e in events]
    offers = sorted(waiting, key=lambda w: w.digest)
    return make_draw(offers, group_size, desk.sites, desk.writer)


def test_every_offer_is_in_one_group_and_the_order_is_the_public_one() -> None:
    desk = Desk(clients=7)
    draw = drawn(desk, 7, group_size=3)

    digests = [waiting.digest for waiting in draw.offers]
    order = draw_order(desk.chain.version_head, digests)
    expected = [[digests[order[i]] for i in group] for group in cut_groups(7, 3)]
    assert [[member.offer_digest for member in group.members] for group in draw.groups] == expected
    assert [group.index for group in draw.groups] == [0, 1]


def test_members_carry_site_and_worker() -> None:
    desk = Desk(clients=2)

    members = [group.members[0] for group in drawn(desk, 2).groups]
    assert {(m.client, m.site, m.worker) for m in members} == {(c, "site-0", f"w-{c}") for c in desk.clients}


def test_members_bring_their_offers_as_they_were_sealed() -> None:
    desk = Desk(clients=5)
    opener = desk.federation.opener()

    for member in (member for group in drawn(desk, 5, group_size=2).groups for member in group.members):
        opened = opener.open(member.offer)
        assert (opened.sender, opened.message.kind) == (member.client, Kind.OFFER)


def test_the_entry_commits_to_every_group() -> None:
    desk = Desk(clients=5)
    draw, sealed = made(desk, 5)

    entry = sealed.entry
    assert isinstance(entry, DrawEntry)
    assert (entry.version, entry.groups, entry.offers) == (0, 5, 5)
    for group in draw.groups:
        merkle.verify_path(entry.root, group_leaf(group.index, group.leaf), group.index, 5, group.path)
    assert len(desk.read_back([Append(sealed)])) == 1


def test_jobs_hold_every_group_once() -> None:
    desk = Desk(clients=JOB_MEMBERS + 4)
    draw = drawn(desk, JOB_MEMBERS + 4)

    jobs = list(draw.jobs())
    assert [len(job.members) for job in jobs] == [JOB_MEMBERS, 4]
    assert tuple(group for job in jobs for group in job.members) == draw.groups
    assert {(job.draw, job.version, job.groups) for job in jobs} == {(draw.entry, 0, JOB_MEMBERS + 4)}
