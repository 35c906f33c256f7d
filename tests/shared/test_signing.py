"""Signatures bind key, purpose and message; keys stay private."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.signing import (
    VERIFICATION_CACHE_ENTRIES,
    Purpose,
    SigningKey,
    VerificationCache,
    VerifyingKey,
    load_signing_key,
    load_verifying_key,
    save_signing_key,
    save_verifying_key,
)
from shared.errors import DirectoryError, RefusalReason, RemoteProtocolError

# RFC 8032, section 7.1, test 1.
RFC_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def key(number: int = 1) -> SigningKey:
    return SigningKey.from_seed(number.to_bytes(32, "big"))


def refused(verifying: VerifyingKey | VerificationCache, *arguments: object) -> bool:
    with pytest.raises(RemoteProtocolError) as caught:
        verifying.verify(*arguments)  # type: ignore[arg-type]
    return caught.value.reason is RefusalReason.BAD_SIGNATURE


def test_public_key_is_that_of_rfc_8032() -> None:
    assert SigningKey.from_seed(RFC_SEED).public.raw == RFC_PUBLIC


def test_a_signature_covers_tag_purpose_and_message_and_nothing_else() -> None:
    # Made here with the bare primitive from the format in the module docstring: peers must produce the same bytes.
    bare = Ed25519PrivateKey.from_private_bytes(RFC_SEED)

    signature = SigningKey.from_seed(RFC_SEED).sign(Purpose.DIRECTORY, b"hello")

    assert signature == bare.sign(b"comitia/1/directory\0hello")


@given(message=st.binary(max_size=200), as_view=st.booleans())
def test_what_was_signed_verifies(message: bytes, as_view: bool) -> None:
    given_message = memoryview(message) if as_view else message
    signature = key().sign(Purpose.MESSAGE, given_message)
    assert len(signature) == 64
    key().public.verify(Purpose.MESSAGE, signature, given_message)


@given(message=st.binary(min_size=1, max_size=50), bit=st.integers(min_value=0))
def test_one_changed_bit_is_refused(message: bytes, bit: int) -> None:
    signature = key().sign(Purpose.MESSAGE, message)
    both = bytearray(signature + message)
    bit %= 8 * len(both)
    both[bit // 8] ^= 1 << bit % 8
    assert refused(key().public, Purpose.MESSAGE, bytes(both[:64]), bytes(both[64:]))


def test_another_purpose_or_key_is_refused() -> None:
    signature = key().sign(Purpose.MESSAGE, b"m")
    assert refused(key().public, Purpose.DIRECTORY, signature, b"m")
    assert refused(key(2).public, Purpose.MESSAGE, signature, b"m")


@pytest.mark.parametrize("size", [0, 63, 65])
def test_signatures_of_wrong_size_are_refused(size: int) -> None:
    signature = (key().sign(Purpose.MESSAGE, b"m") + b"x")[:size]
    assert refused(key().public, Purpose.MESSAGE, signature, b"m")
    assert refused(VerificationCache(), key().public, Purpose.MESSAGE, signature, b"m")


def test_a_private_key_shows_only_its_public_half() -> None:
    secret = key(77)
    seed = (77).to_bytes(32, "big").hex()
    assert seed not in f"{secret!r}{secret}"
    assert secret.public.fingerprint in repr(secret)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)


def test_verifying_keys_are_equal_by_their_bytes() -> None:
    assert len({key().public, VerifyingKey(key().public.raw), key(2).public}) == 2
    with pytest.raises(DirectoryError, match="32 bytes, not 31"):
        VerifyingKey(bytes(31))


class Counted(VerifyingKey):
    calls = 0

    def verify(self, purpose: Purpose, signature: bytes, message: bytes | memoryview) -> None:
        Counted.calls += 1
        super().verify(purpose, signature, message)


def test_what_a_process_has_signed_itself_is_not_verified_again_but_nothing_else_passes() -> None:
    cache = VerificationCache()
    own = Counted(key().public.raw)
    signature = key().sign(Purpose.MESSAGE, b"m")
    cache.made(key(), Purpose.MESSAGE, signature, b"m")
    Counted.calls = 0

    cache.verify(own, Purpose.MESSAGE, signature, b"m")

    assert Counted.calls == 0
    assert refused(cache, own, Purpose.MESSAGE, signature, b"n")
    assert refused(cache, own, Purpose.DIRECTORY, signature, b"m")
    assert refused(cache, key(2).public, Purpose.MESSAGE, signature, b"m")


def test_the_cache_saves_the_second_verification_of_exactly_the_same() -> None:
    cache = VerificationCache()
    counted = Counted(key().public.raw)
    signature = key().sign(Purpose.MESSAGE, b"m")
    Counted.calls = 0

    for _ in range(3):
        cache.verify(counted, Purpose.MESSAGE, signature, b"m")

    assert Counted.calls == 1
    assert refused(cache, counted, Purpose.MESSAGE, signature, b"n")
    assert refused(cache, counted, Purpose.DIRECTORY, signature, b"m")
    assert refused(cache, key(2).public, Purpose.MESSAGE, signature, b"m")
    assert refused(cache, counted, Purpose.MESSAGE, bytes(64), b"m")


def test_the_cache_is_bounded_keeps_what_is_used_and_ignores_forgeries() -> None:
    cache = VerificationCache(entries_max=2)
    counted = Counted(key().public.raw)
    signatures = {message: key().sign(Purpose.MESSAGE, message) for message in (b"a", b"b", b"c")}

    def verify(message: bytes) -> int:
        before = Counted.calls
        cache.verify(counted, Purpose.MESSAGE, signatures[message], message)
        return Counted.calls - before

    assert [verify(message) for message in (b"a", b"b", b"a", b"c")] == [1, 1, 0, 1]
    for number in range(10):
        assert refused(cache, counted, Purpose.MESSAGE, bytes([number]) * 64, b"forged")
    assert len(cache) == 2
    assert [verify(message) for message in (b"a", b"c", b"b")] == [0, 0, 1]


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_private_key_survives_its_file(tmp_path: Path, passphrase: bytes | None) -> None:
    file = tmp_path / "a.key"
    save_signing_key(file, key(), passphrase)
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_signing_key(file, passphrase).public == key().public


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "a.key"
    save_signing_key(file, key(1))
    with pytest.raises(DirectoryError, match="never overwritten"):
        save_signing_key(file, key(2))
    assert load_signing_key(file).public == key(1).public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_private_key_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "a.key"
    save_signing_key(file, key())
    file.chmod(mode)
    with pytest.raises(DirectoryError, match=f"run: chmod 600 {file}"):
        load_signing_key(file)


def test_a_passphrase_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.key"
    save_signing_key(file, key(), b"right")
    with pytest.raises(DirectoryError, match="encrypted, and no passphrase was given"):
        load_signing_key(file)
    with pytest.raises(DirectoryError, match="the passphrase does not open it"):
        load_signing_key(file, b"wrong")


def test_files_that_are_no_ed25519_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="cannot be read"):
        load_signing_key(tmp_path / "absent.key")
    with pytest.raises(DirectoryError, match="cannot be read"):
        load_verifying_key(tmp_path / "absent.pub")
    other = X25519PrivateKey.generate()
    contents = {
        "garbage": b"garbage",
        "other": other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "other.pub": other.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "large": bytes(20_000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
        load = load_verifying_key if name.endswith(".pub") else load_signing_key
        with pytest.raises(DirectoryError, match=name):
            load(tmp_path / name)
    with pytest.raises(DirectoryError, match="not a PEM public key"):
        load_verifying_key(tmp_path / "garbage")


def test_a_public_key_survives_its_file(tmp_path: Path) -> None:
    save_verifying_key(tmp_path / "a.pub", key().public)
    assert load_verifying_key(tmp_path / "a.pub") == key().public


def test_who_hears_many_clients_remembers_the_offers_of_all() -> None:
    key, cache = SigningKey.from_seed(bytes(32)), VerificationCache.for_clients(2_000)
    for number in range(2 * VERIFICATION_CACHE_ENTRIES):
        cache.made(key, Purpose.MESSAGE, bytes(64), number.to_bytes(4, "little"))

    assert len(cache) == 8_000 < 2 * VERIFICATION_CACHE_ENTRIES
