"""The directory opens only if the enrolment key signed exactly this, and names only who belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.signing import Purpose, SigningKey, VerifyingKey
from shared.directory import (
    DIRECTORY_BYTES_MAX,
    Directory,
    load_directory,
    open_directory,
    sign_directory,
    with_clients,
    without_clients,
)
from shared.errors import DirectoryError, RefusalReason, RemoteProtocolError


def key(number: int) -> SigningKey:
    return SigningKey.from_seed(number.to_bytes(32, "big"))


ENROLMENT, COORDINATOR_KEY = key(1), key(2)
EMPTY = Directory(
    federation="test",
    federation_id=UUID(int=5),
    number=1,
    coordinator_key=COORDINATOR_KEY.public.raw.hex(),
)


def enrolled(count: int = 3) -> Directory:
    return with_clients(EMPTY, "north", "user-north", {f"client-{i}": key(10 + i).public for i in range(count)})


def signed_json(change: dict[str, Any]) -> bytes:
    """A directory file with changed fields, properly signed: what a mistaken or hostile enroller could hand out."""
    body = json.dumps(json.loads(enrolled().encode()) | change, sort_keys=True, separators=(",", ":")).encode()
    return b"comitia-directory 1 " + ENROLMENT.sign(Purpose.DIRECTORY, body).hex().encode() + b"\n" + body


def test_what_was_signed_opens_equal() -> None:
    directory = without_clients(enrolled(), ["client-1"])
    opened = open_directory(sign_directory(directory, ENROLMENT), ENROLMENT.public)
    assert opened == directory
    assert opened.digest() == directory.digest()
    assert opened.number == 3
    assert opened.coordinator == COORDINATOR_KEY.public


def test_file_format_is_a_header_line_and_canonical_json() -> None:
    header, body = sign_directory(EMPTY, ENROLMENT).split(b"\n")
    assert body == (
        b'{"clients":{},"coordinator_key":"' + COORDINATOR_KEY.public.raw.hex().encode() + b'","federation":"test",'
        b'"federation_id":"00000000-0000-0000-0000-000000000005","number":1,"revoked":[],"sites":{}}'
    )
    assert header.startswith(b"comitia-directory 1 ")
    ENROLMENT.public.verify(Purpose.DIRECTORY, bytes.fromhex(header.split()[2].decode()), body)


def test_the_order_of_enrolment_does_not_change_the_bytes() -> None:
    entries = {f"client-{i}": key(10 + i).public for i in range(5)}
    turned = dict(reversed(entries.items()))
    assert with_clients(EMPTY, "s", "u", entries).encode() == with_clients(EMPTY, "s", "u", turned).encode()


@given(bit=st.integers(min_value=0))
def test_any_changed_bit_is_refused(bit: int) -> None:
    content = bytearray(sign_directory(enrolled(1), ENROLMENT))
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DirectoryError) as caught:
        open_directory(bytes(content), ENROLMENT.public)
    assert "\n" not in str(caught.value)


@given(content=st.binary(max_size=300))
def test_garbage_is_refused(content: bytes) -> None:
    for data in (content, b"comitia-directory 1 " + content, b"comitia-directory 1 " + b"00" * 64 + b"\n" + content):
        with pytest.raises(DirectoryError):
            open_directory(data, ENROLMENT.public)


def test_another_signer_and_an_oversized_file_are_refused() -> None:
    with pytest.raises(DirectoryError, match="not signed by the enrolment key"):
        open_directory(sign_directory(EMPTY, key(3)), ENROLMENT.public)
    with pytest.raises(DirectoryError, match="passes the limit"):
        open_directory(bytes(DIRECTORY_BYTES_MAX + 1), ENROLMENT.public)


def test_numbers_never_go_back() -> None:
    content = sign_directory(enrolled(), ENROLMENT)
    assert open_directory(content, ENROLMENT.public, at_least=2).number == 2
    with pytest.raises(DirectoryError, match="number 2, but number 3 was seen"):
        open_directory(content, ENROLMENT.public, at_least=3)


def test_the_coordinator_can_not_be_the_enroller() -> None:
    with pytest.raises(DirectoryError, match="must not be the coordinator's key"):
        sign_directory(EMPTY, COORDINATOR_KEY)
    body = EMPTY.encode()
    signature = COORDINATOR_KEY.sign(Purpose.DIRECTORY, body).hex().encode()
    with pytest.raises(DirectoryError, match="must not be the coordinator's key"):
        open_directory(b"comitia-directory 1 " + signature + b"\n" + body, COORDINATOR_KEY.public)


CLIENT = {"site": "north", "key": key(10).public.raw.hex()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"number": 0}, "number"),
        ({"extra": 1}, "extra"),
        ({"federation": "Bad.Name"}, "federation"),
        ({"coordinator_key": "ab"}, "coordinator_key"),
        ({"sites": {"operator": {"broker_user": "u"}}, "clients": {}, "revoked": []}, "no site may be called"),
        ({"clients": {"coordinator": CLIENT}, "revoked": []}, "no client may be called"),
        ({"clients": {"a": CLIENT | {"site": "south"}}, "revoked": []}, "site of client 'a'"),
        ({"clients": {"a": CLIENT, "b": CLIENT}, "revoked": []}, "one identity key stands for two"),
        ({"clients": {"a": CLIENT | {"key": COORDINATOR_KEY.public.raw.hex()}}}, "one identity key stands for two"),
        ({"clients": {"a.b": CLIENT}}, "clients"),
        ({"revoked": ["nobody"]}, "never enrolled: 'nobody'"),
        ({"revoked": ["client-1", "client-0"]}, "canonical"),
        ({"sites": {"north": {"broker_user": "u"}, "south": {"broker_user": "u"}}}, "share a broker user"),
    ],
)
def test_a_signed_but_unsound_directory_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DirectoryError, match=said) as caught:
        open_directory(signed_json(change), ENROLMENT.public)
    assert "\n" not in str(caught.value)


def test_only_clients_in_good_standing_have_a_key() -> None:
    directory = without_clients(enrolled(), ["client-1"])
    assert directory.client_key("client-0") == key(10).public
    assert directory.active_clients() == ("client-0", "client-2")
    for stranger in ("client-1", "nobody", "coordinator", ""):
        with pytest.raises(RemoteProtocolError) as caught:
            directory.client_key(stranger)
        assert caught.value.reason is RefusalReason.UNKNOWN_SENDER


def test_a_name_is_never_given_twice() -> None:
    revoked = without_clients(enrolled(), ["client-1"])
    for directory in (enrolled(), revoked):
        with pytest.raises(DirectoryError, match="'client-1' is enrolled already"):
            with_clients(directory, "north", "user-north", {"client-1": key(99).public})
    with pytest.raises(DirectoryError, match="is revoked already"):
        without_clients(revoked, ["client-1"])
    with pytest.raises(DirectoryError, match="is not enrolled"):
        without_clients(revoked, ["nobody"])


def test_a_site_keeps_its_broker_user() -> None:
    with pytest.raises(DirectoryError, match="has the broker user 'user-north'"):
        with_clients(enrolled(), "north", "another", {"new": key(99).public})
    with pytest.raises(DirectoryError, match="share a broker user"):
        with_clients(enrolled(), "south", "user-north", {"new": key(99).public})


def test_changing_a_directory_leaves_the_old_one_alone() -> None:
    before = enrolled()
    encoded = before.encode()
    with_clients(before, "south", "u", {"new": key(99).public})
    without_clients(before, ["client-0"])
    assert before.encode() == encoded


def test_ten_thousand_clients_open_without_a_curve_operation_each(monkeypatch: pytest.MonkeyPatch) -> None:
    content = sign_directory(enrolled(10_000), ENROLMENT)
    parsed: list[bytes] = []
    plain = VerifyingKey.__init__

    def counting(self: VerifyingKey, raw: bytes) -> None:
        parsed.append(raw)
        plain(self, raw)

    monkeypatch.setattr(VerifyingKey, "__init__", counting)
    directory = open_directory(content, ENROLMENT.public)
    for _ in range(3):
        directory.client_key("client-77")
    assert len(parsed) == 2, "the coordinator's key and the one that was asked for"


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    file = tmp_path / "directory.signed"
    with pytest.raises(DirectoryError, match=f"{file}: cannot be read"):
        load_directory(file, ENROLMENT.public)
    file.write_bytes(b"garbage")
    with pytest.raises(DirectoryError, match=f"{file}: not a directory"):
        load_directory(file, ENROLMENT.public)
    file.write_bytes(sign_directory(enrolled(), ENROLMENT))
    assert load_directory(file, ENROLMENT.public, at_least=2) == enrolled()
