"""Every field of every message is bounded, and a message never changes once it is made."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.wire import group_messages as g
from shared.wire import journal_messages as j
from shared.wire import log_messages as e
from shared.wire import messages as m
from shared.wire.registry import MESSAGE_TYPES
from tests.builders import make_offer, make_status

H = bytes(32)
LINK: dict[str, Any] = {"parent": H, "term": 1}
MEMBER = {"client": "c", "site": "s", "worker": "w", "offer": b"o" * 200}
GROUP = {"index": 0, "members": (MEMBER,), "path": ()}
TO_MEMBER = {"client": "c", "stage": "s", "transcript": H}
END: dict[str, Any] = {"stage": "s", "draw": H, "group": 0, "unheard": ("a",), "blamed": ()}
SNAPSHOT = {
    "version": 0,
    "version_head": H,
    "attempt": 0,
    "weights_sha256": H,
    "clipping_norm": 1.0,
    "plan": b"",
    "directory_number": 1,
    "directory_digest": H,
    "directory": (H,),
    "run": "running",
    "controlled_us": 0,
}

VALID: dict[type[m.Message], dict[str, Any]] = {
    m.Offer: make_offer().model_dump(),
    m.Status: make_status().model_dump(),
    g.Shares: {"transcript": H, "boxes": b"", "commitments": b"", "seed_commitment": H},
    g.Words: {"transcript": H, "participants": b"\1", "part": 0, "parts": 1, "body": b""},
    g.Agreement: {"transcript": H, "participants": b"\7", "arrived": b"\3"},
    g.Reveal: {"transcript": H, "shares": b""},
    m.Reminder: {"client": "c", "frame": b""},
    m.Task: {"client": "c", "version": 0, "attempt": 0, "head": H, "snapshot_offset": 0},
    g.Roster: {"client": "c", "draw": H, "version": 0, "group": GROUP, "groups": 1, "stage": "s"},
    g.Participants: {**TO_MEMBER, "participants": b"\7", "boxes": (b"",), "commitments": (b"",)},
    g.Arrived: {**TO_MEMBER, "participants": b"\7", "arrived": b"\3"},
    g.Unmask: {**TO_MEMBER, "agreements": (b"frame",)},
    g.GroupJob: {"draw": H, "version": 0, "groups": 1, "members": (GROUP,)},
    g.Sum: {**END, "arrived": ("c",), "dropped": ("a",), "part": 0, "parts": 1, "body": b""},
    g.GivenUp: {**END, "reason": ""},
    e.Piece: {"body": b""},
    e.Mark: {"session": bytes(16)},
    e.TermEntry: {**LINK, "session": bytes(16)},
    e.SnapshotEntry: {**LINK, **SNAPSHOT},
    e.DrawEntry: {**LINK, "version": 0, "groups": 1, "offers": 1, "root": H},
    e.ChangeEntry: {
        **LINK,
        "version": 1,
        "draw": H,
        "groups": (0,),
        "weights_sha256": H,
        "clipping_norm": 1.0,
        "coordinates": "all",
    },
    e.VoidEntry: {**LINK, "draw": H, "reason": ""},
    e.RunEntry: {**LINK, "run": "paused", "issued_us": 1, "version": 0},
    e.DirectoryEntry: {**LINK, "number": 1, "digest": H},
    j.Record: {"entry": H, "state": (H,), "optimizer": None},
    m.Control: {"run": "stopping", "issued_us": 1},
    m.Candidacy: {"session": bytes(16)},
}

HASH = (b"", bytes(31), bytes(33), "0" * 32, None)
NONCE = (b"", bytes(15), bytes(17))
COUNTER = (-1, 2**63, 1.0, True, "1", None)
VERSION = (-1, 2**48, 1.5)
NAME = ("", "A", "a.b", "a" * 64, "a\n", "-a", b"a", 1)
INDEX = (-1, m.GROUPS_MAX)
COUNT = (0, m.GROUPS_MAX + 1)
BODY = (bytes(m.PIECE_BYTES_MAX + 1), "text", None)
NORM = (0.0, -1.0, float("nan"), float("inf"), "1")
TEXT = ("x" * 501, b"x", None)
RUN = ("pause", 1, None)
PART = (-1, m.PIECES_MAX)
PARTS = (0, m.PIECES_MAX + 1)
PLACES = (b"", bytes(m.MEMBERS_MAX // 8 + 1), 7, None)
NAMES = (("A",), ("a", 1), ["a"], "a")
ADDRESSED: dict[str, tuple[Any, ...]] = {"client": NAME, "stage": NAME, "transcript": HASH}
ENDED: dict[str, tuple[Any, ...]] = {
    "stage": NAME,
    "draw": HASH,
    "group": INDEX,
    "unheard": NAMES,
    "blamed": NAMES,
}
HASHES = ((bytes(31),), [H], H)

REFUSED: dict[type[m.Message], dict[str, tuple[Any, ...]]] = {
    m.Offer: {
        "attempt": COUNTER,
        "trained_version": VERSION,
        "trained_head": HASH,
        "counter": COUNTER,
        "nonce": NONCE,
        "worker": NAME,
        "keys": ({"sealing": H}, {"sealing": H, "masking": bytes(31)}, {"sealing": H, "masking": H, "more": H}, H),
    },
    m.Status: {
        "sequence": COUNTER,
        "counter": COUNTER,
        "state": ("asleep", 1, None),
        "version": VERSION,
        "worker": NAME,
        "log_position": ("behind", 1),
        "reason": TEXT,
    },
    g.Shares: {
        "transcript": HASH,
        "boxes": (bytes(m.MEMBERS_MAX * g.SHARE_BOX_BYTES + 1), (b"",), None),
        "commitments": (bytes(m.MEMBERS_MAX * g.COMMITMENTS_BYTES + 1), None),
        "seed_commitment": HASH,
    },
    g.Words: {"transcript": HASH, "participants": PLACES, "part": PART, "parts": PARTS, "body": BODY},
    g.Agreement: {"transcript": HASH, "participants": PLACES, "arrived": PLACES},
    g.Reveal: {"transcript": HASH, "shares": (bytes(m.MEMBERS_MAX * g.SHARE_BYTES + 1), (b"",), None)},
    m.Reminder: {"client": NAME, "frame": (bytes((4 << 10) + 1), "", None)},
    m.Task: {
        "client": NAME,
        "version": VERSION,
        "attempt": COUNTER,
        "head": HASH,
        "snapshot_offset": COUNTER,
        "drawn": COUNTER,
    },
    g.Roster: {
        "client": NAME,
        "draw": HASH,
        "version": VERSION,
        "group": (
            {**GROUP, "members": ()},
            {**GROUP, "members": (MEMBER,) * (m.MEMBERS_MAX + 1)},
            {**GROUP, "members": ({**MEMBER, "offer": bytes(m.OFFER_BYTES_MAX + 1)},)},
            {**GROUP, "path": (H,) * 33},
            {**GROUP, "more": 1},
        ),
        "groups": COUNT,
        "stage": NAME,
    },
    g.Participants: {
        **ADDRESSED,
        "participants": PLACES,
        "boxes": ((bytes(g.SHARE_BOX_BYTES + 1),), (b"",) * (m.MEMBERS_MAX + 1), [b""]),
        "commitments": ((bytes(g.COMMITMENTS_BYTES + 1),), (b"",) * (m.MEMBERS_MAX + 1), [b""]),
    },
    g.Arrived: {**ADDRESSED, "participants": PLACES, "arrived": PLACES},
    g.Unmask: {
        **ADDRESSED,
        "agreements": ((bytes(m.OFFER_BYTES_MAX + 1),), (b"",) * (m.MEMBERS_MAX + 1), [b""]),
    },
    g.GroupJob: {
        "draw": HASH,
        "version": VERSION,
        "groups": COUNT,
        "members": (
            (),
            (GROUP,) * 1025,
            ({**GROUP, "members": (MEMBER,) * (m.MEMBERS_MAX + 1)},),
            ({**GROUP, "index": -1},),
        ),
    },
    g.Sum: {**ENDED, "arrived": NAMES, "dropped": NAMES, "part": PART, "parts": PARTS, "body": BODY},
    g.GivenUp: {**ENDED, "reason": TEXT},
    e.Piece: {"body": BODY},
    e.Mark: {"session": NONCE},
    e.TermEntry: {
        "parent": HASH,
        "term": COUNTER,
        "body": BODY,
        "pieces": (*HASHES, (H,) * (m.PIECES_MAX + 1)),
        "session": NONCE,
    },
    e.SnapshotEntry: {
        "version": VERSION,
        "version_head": HASH,
        "earlier_heads": (*HASHES, (H,) * (e.HEADS_MAX + 1)),
        "attempt": COUNTER,
        "weights_sha256": HASH,
        "clipping_norm": NORM,
        "plan": (bytes(m.PLAN_BYTES_MAX + 1), "text"),
        "directory_number": COUNTER,
        "directory_digest": HASH,
        "directory": (*HASHES, (), (H,) * (m.DIRECTORY_PIECES_MAX + 1)),
        "run": RUN,
        "controlled_us": COUNTER,
    },
    e.DrawEntry: {"version": VERSION, "groups": COUNT, "offers": (0, 2**32), "root": HASH},
    e.ChangeEntry: {
        "version": VERSION,
        "draw": HASH,
        "groups": ((), (-1,), (m.GROUPS_MAX,), (0,) * (m.GROUPS_MAX + 1), [0]),
        "weights_sha256": HASH,
        "clipping_norm": NORM,
        "coordinates": ("some", 1),
    },
    e.VoidEntry: {"draw": HASH, "reason": TEXT},
    e.RunEntry: {"run": RUN, "issued_us": COUNTER, "version": VERSION},
    e.DirectoryEntry: {"number": (0, 2**48, 1.0), "digest": HASH},
    j.Record: {
        "entry": HASH,
        "state": (*HASHES, (), (H,) * (m.PIECES_MAX + 1)),
        "optimizer": (*HASHES, (H,) * (m.PIECES_MAX + 1)),
    },
    m.Control: {"run": RUN, "issued_us": COUNTER},
    m.Candidacy: {"session": NONCE},
}
CASES = [
    pytest.param(message_type, field, value, id=f"{message_type.__name__}.{field}-{number}")
    for message_type, fields in REFUSED.items()
    for field, values in fields.items()
    for number, value in enumerate(values)
]


OPTIONAL = {t: {name for name, info in t.model_fields.items() if not info.is_required()} for t in VALID}


def concrete_types(root: type[BaseModel] = m.Message) -> set[type[BaseModel]]:
    found = {kind for child in root.__subclasses__() for kind in concrete_types(child)}
    return found if "kind" not in vars(root) else found | {root}


def test_the_decoder_knows_every_type_and_numbers_never_change() -> None:
    # A number that is given again, or moves, would let old bytes be read as something else.
    assert set(MESSAGE_TYPES.values()) == concrete_types()
    assert {int(kind): message_type.__name__ for kind, message_type in MESSAGE_TYPES.items()} == {
        1: "Offer",
        2: "Status",
        3: "Words",
        4: "Shares",
        5: "Agreement",
        6: "Reveal",
        16: "Task",
        17: "Roster",
        18: "GroupJob",
        19: "Participants",
        20: "Arrived",
        21: "Unmask",
        22: "Sum",
        23: "GivenUp",
        24: "Reminder",
        32: "Piece",
        33: "Mark",
        34: "TermEntry",
        35: "SnapshotEntry",
        36: "DrawEntry",
        37: "ChangeEntry",
        38: "VoidEntry",
        39: "RunEntry",
        40: "DirectoryEntry",
        41: "Record",
        48: "Control",
        49: "Candidacy",
    }


def test_clients_sign_what_goes_up_and_nothing_else() -> None:
    signed_by_clients = {t for t in MESSAGE_TYPES.values() if t.signed_by is m.Role.CLIENT}

    assert signed_by_clients == {m.Offer, m.Status, g.Shares, g.Words, g.Agreement, g.Reveal}


@pytest.mark.parametrize("message_type", VALID)
def test_the_cases_below_differ_from_a_valid_message_in_one_field(message_type: type[m.Message]) -> None:
    message_type.model_validate(VALID[message_type])
    own = set(message_type.model_fields) - (set(e.Entry.model_fields) if issubclass(message_type, e.Entry) else set())

    assert own <= set(REFUSED[message_type])


@pytest.mark.parametrize(("message_type", "field", "value"), CASES)
def test_a_value_outside_its_bound_is_refused(message_type: type[m.Message], field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refusal:
        message_type.model_validate({**VALID[message_type], field: value})

    assert {error["loc"][0] for error in refusal.value.errors()} == {field}


@pytest.mark.parametrize("message_type", VALID)
def test_unknown_missing_and_changed_fields_are_refused(message_type: type[m.Message]) -> None:
    fields = VALID[message_type]
    with pytest.raises(ValidationError):
        message_type.model_validate({**fields, "more": 1})
    for name in fields.keys() - OPTIONAL[message_type]:
        with pytest.raises(ValidationError):
            message_type.model_validate({key: value for key, value in fields.items() if key != name})
    with pytest.raises(ValidationError):
        setattr(message_type.model_validate(fields), next(iter(fields)), next(iter(fields.values())))


def test_what_may_be_left_out_of_a_message_is_known() -> None:
    entries = {"body", "pieces"}
    optional = {m.Offer: {"keys"}, m.Status: {"reason"}, m.Task: {"drawn"}, e.SnapshotEntry: {"earlier_heads"}}

    for message_type, names in OPTIONAL.items():
        linked = entries if issubclass(message_type, e.Entry) else set()
        assert names == linked | optional.get(message_type, set())


def test_a_group_is_committed_to_by_its_clients_and_the_digests_of_their_offers() -> None:
    group = g.Group.model_validate({**GROUP, "members": (MEMBER, {**MEMBER, "client": "d", "offer": b"another"})})

    expected = (("c", hashlib.sha256(b"o" * 200).digest()), ("d", hashlib.sha256(b"another").digest()))
    assert group.leaf == expected


def test_closed_states_are_states() -> None:
    open_states = {m.ClientState.IDLE, m.ClientState.TRAINING, m.ClientState.OFFERED, m.ClientState.IN_GROUP}

    assert set(m.ClientState) - open_states == m.CLOSED_STATES
