"""Every message type, field by field, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from shared.crypto.keys import public_of
from shared.wire import group_messages as g
from shared.wire import journal_messages as j
from shared.wire import log_messages as e
from shared.wire import messages as m

hashes = st.binary(min_size=32, max_size=32)
nonces = st.binary(min_size=16, max_size=16)
bodies = st.binary(max_size=200)
counters = st.integers(0, 2**63 - 1)
versions = st.integers(0, 2**48 - 1)
indices = st.integers(0, m.GROUPS_MAX - 1)
counts = st.integers(1, m.GROUPS_MAX)
names = st.from_regex(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?", fullmatch=True)
texts = st.text(max_size=500)
norms = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
coordinates = st.sampled_from(["round", "all"])

member_sets = st.binary(min_size=1, max_size=m.MEMBERS_MAX // 8)
one_time_keys = hashes.map(public_of)
keys = st.builds(m.PublicKeys, sealing=one_time_keys, masking=one_time_keys)
members = st.builds(g.Member, client=names, site=names, worker=names, offer=bodies)
groups = st.builds(
    g.Group,
    index=indices,
    members=st.lists(members, min_size=1, max_size=3).map(tuple),
    path=st.lists(hashes, max_size=4).map(tuple),
)
name_lists = st.lists(names, max_size=3).map(tuple)
addressed = {"client": names, "stage": names}
end = {"stage": names, "draw": hashes, "group": indices, "unheard": name_lists, "blamed": name_lists}
link = {
    "parent": hashes,
    "term": counters,
    "body": bodies,
    "pieces": st.lists(hashes, max_size=3).map(tuple),
}

MESSAGES: dict[m.Kind, st.SearchStrategy[m.Message]] = {
    m.Kind.OFFER: st.builds(
        m.Offer,
        attempt=counters,
        trained_version=versions,
        trained_head=hashes,
        counter=counters,
        nonce=nonces,
        worker=names,
        keys=st.none() | keys,
    ),
    m.Kind.STATUS: st.builds(
        m.Status,
        sequence=counters,
        counter=counters,
        state=st.sampled_from(m.ClientState),
        version=versions,
        worker=names,
        log_position=st.sampled_from(["absent", "following"]),
        reason=texts,
    ),
    m.Kind.SHARES: st.builds(g.Shares, transcript=hashes, boxes=bodies, commitments=bodies, seed_commitment=hashes),
    m.Kind.WORDS: st.builds(
        g.Words,
        transcript=hashes,
        participants=member_sets,
        part=st.integers(0, m.PIECES_MAX - 1),
        parts=st.integers(1, m.PIECES_MAX),
        body=bodies,
    ),
    m.Kind.AGREEMENT: st.builds(g.Agreement, transcript=hashes, participants=member_sets, arrived=member_sets),
    m.Kind.REVEAL: st.builds(g.Reveal, transcript=hashes, shares=bodies),
    m.Kind.REMINDER: st.builds(m.Reminder, client=names, frame=st.binary(max_size=100)),
    m.Kind.TASK: st.builds(
        m.Task, client=names, version=versions, attempt=counters, head=hashes, snapshot_offset=counters
    ),
    m.Kind.ROSTER: st.builds(
        g.Roster, client=names, draw=hashes, version=versions, group=groups, groups=counts, stage=names
    ),
    m.Kind.PARTICIPANTS: st.builds(
        g.Participants,
        **addressed,
        transcript=hashes,
        participants=member_sets,
        boxes=st.lists(st.binary(max_size=g.SHARE_BOX_BYTES), max_size=3).map(tuple),
        commitments=st.lists(st.binary(max_size=g.COMMITMENTS_BYTES), max_size=3).map(tuple),
    ),
    m.Kind.ARRIVED: st.builds(g.Arrived, **addressed, transcript=hashes, participants=member_sets, arrived=member_sets),
    m.Kind.UNMASK: st.builds(
        g.Unmask, **addressed, transcript=hashes, agreements=st.lists(bodies, max_size=3).map(tuple)
    ),
    m.Kind.SUM: st.builds(
        g.Sum,
        **end,
        arrived=name_lists,
        dropped=name_lists,
        part=st.integers(0, m.PIECES_MAX - 1),
        parts=st.integers(1, m.PIECES_MAX),
        body=bodies,
    ),
    m.Kind.GIVEN_UP: st.builds(g.GivenUp, **end, reason=texts),
    m.Kind.GROUP_JOB: st.builds(
        g.GroupJob,
        draw=hashes,
        version=versions,
        groups=counts,
        members=st.lists(groups, min_size=1, max_size=3).map(tuple),
    ),
    m.Kind.PIECE: st.builds(e.Piece, body=bodies),
    m.Kind.MARK: st.builds(e.Mark, session=nonces),
    m.Kind.TERM: st.builds(e.TermEntry, session=nonces, **link),
    m.Kind.SNAPSHOT: st.builds(
        e.SnapshotEntry,
        version=versions,
        version_head=hashes,
        attempt=counters,
        weights_sha256=hashes,
        clipping_norm=norms,
        plan=bodies,
        directory_number=counters,
        directory_digest=hashes,
        directory=st.lists(hashes, min_size=1, max_size=3).map(tuple),
        run=st.sampled_from(m.RunState),
        controlled_us=counters,
        **link,
    ),
    m.Kind.DRAW: st.builds(
        e.DrawEntry, version=versions, groups=counts, offers=st.integers(1, 2**32 - 1), root=hashes, **link
    ),
    m.Kind.CHANGE: st.builds(
        e.ChangeEntry,
        version=versions,
        draw=hashes,
        groups=st.lists(indices, min_size=1, max_size=5).map(tuple),
        weights_sha256=hashes,
        clipping_norm=norms,
        coordinates=coordinates,
        **link,
    ),
    m.Kind.VOID: st.builds(e.VoidEntry, draw=hashes, reason=texts, **link),
    m.Kind.RUN: st.builds(e.RunEntry, run=st.sampled_from(m.RunState), issued_us=counters, version=versions, **link),
    m.Kind.DIRECTORY: st.builds(e.DirectoryEntry, number=st.integers(1, 2**48 - 1), digest=hashes, **link),
    m.Kind.RECORD: st.builds(
        j.Record,
        entry=hashes,
        state=st.lists(hashes, min_size=1, max_size=3).map(tuple),
        optimizer=st.none() | st.lists(hashes, max_size=3).map(tuple),
    ),
    m.Kind.CONTROL: st.builds(m.Control, run=st.sampled_from(m.RunState), issued_us=counters),
    m.Kind.CANDIDACY: st.builds(m.Candidacy, session=nonces),
}
