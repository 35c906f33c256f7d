"""Only who has the key opens a sealed message, and only the one that was sealed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.sealing import open_sealed, seal
from shared.errors import LocalProtocolError, RefusalReason, RemoteProtocolError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sealing.json").read_text(encoding="utf-8"))
KEY = bytes(range(32))
HERE, ELSEWHERE = bytes(32), b"\x01" * 32


@pytest.mark.parametrize("case", VECTORS["cases"])
def test_golden_vectors(case: dict[str, str]) -> None:
    key, payload, associated = (bytes.fromhex(case[name]) for name in ("key", "payload", "associated"))

    sealed = seal(key, payload, associated)

    assert sealed.hex() == case["sealed"]
    assert open_sealed(key, sealed, associated) == payload


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100), st.binary(max_size=64))
def test_what_is_sealed_opens(key: bytes, payload: bytes, associated: bytes) -> None:
    sealed = seal(key, payload, associated)

    assert len(sealed) == len(payload) + 16
    assert open_sealed(key, sealed, associated) == payload


def test_nothing_else_opens() -> None:
    sealed = seal(KEY, b"share", HERE)
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    cut = [sealed[:size] for size in range(len(sealed))]

    for key, message, associated in (
        *((KEY, one, HERE) for one in (*changed, *cut, sealed + b"\0")),
        (KEY, sealed, ELSEWHERE),
        (KEY, sealed, b""),
        (ELSEWHERE, sealed, HERE),
    ):
        with pytest.raises(RemoteProtocolError) as refusal:
            open_sealed(key, message, associated)
        assert refusal.value.reason is RefusalReason.BAD_SEAL


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_of_another_size_stop_the_process(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        seal(bytes(size), b"", b"")
    with pytest.raises(LocalProtocolError):
        open_sealed(bytes(size), bytes(16), b"")
