"""A worker uses only keys that are private and that the directory names."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.federation_keys import FederationKeys, make_federation_keys, revoke_clients
from shared.crypto.signing import SigningKey, save_signing_key
from shared.errors import DirectoryError
from worker.keystore import clients_with_keys, identity_key, key_file


@pytest.fixture
def keys(tmp_path: Path) -> FederationKeys:
    return make_federation_keys(tmp_path / "keys", "test", 3)


def test_the_key_is_the_one_the_directory_names(keys: FederationKeys) -> None:
    key = identity_key(keys.client_key_directory, "client-002", keys.directory)
    assert key.public == keys.directory.client_key("client-002")


def test_only_clients_with_keys_and_in_good_standing_can_be_served(keys: FederationKeys) -> None:
    keys = revoke_clients(keys, ["client-001"])
    save_signing_key(key_file(keys.client_key_directory, "stranger"), SigningKey.from_seed(bytes(32)))
    key_file(keys.client_key_directory, "client-003").unlink()
    assert clients_with_keys(keys.client_key_directory, keys.directory) == ("client-002",)
    for client, said in (
        ("client-001", "is revoked"),
        ("stranger", "is not enrolled"),
        ("client-003", "cannot be read"),
    ):
        with pytest.raises(DirectoryError, match=said):
            identity_key(keys.client_key_directory, client, keys.directory)


def test_another_key_under_the_clients_name_is_refused(keys: FederationKeys) -> None:
    file = key_file(keys.client_key_directory, "client-001")
    file.unlink()
    save_signing_key(file, SigningKey.from_seed(bytes(32)))
    with pytest.raises(DirectoryError, match=r"names .* for client 'client-001'"):
        identity_key(keys.client_key_directory, "client-001", keys.directory)


def test_keys_open_to_others_are_refused_with_the_remedy(keys: FederationKeys) -> None:
    file = key_file(keys.client_key_directory, "client-001")
    file.chmod(0o644)
    with pytest.raises(DirectoryError, match=f"chmod 600 {file}"):
        identity_key(keys.client_key_directory, "client-001", keys.directory)
    keys.client_key_directory.chmod(0o777)
    for look in (
        lambda: identity_key(keys.client_key_directory, "client-002", keys.directory),
        lambda: clients_with_keys(keys.client_key_directory, keys.directory),
    ):
        with pytest.raises(DirectoryError, match=f"chmod go-w {keys.client_key_directory}"):
            look()


def test_a_missing_key_directory_is_named(keys: FederationKeys, tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=str(tmp_path / "absent")):
        clients_with_keys(tmp_path / "absent", keys.directory)
