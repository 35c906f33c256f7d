"""`comitia keys` makes what everybody else opens, and never overwrites a key."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.commands.keys import app
from deploy.federation_keys import enroll_clients, load_keys, make_federation_keys
from shared.crypto.signing import load_signing_key, save_signing_key
from shared.errors import ComitiaError, DirectoryError, SettingsError
from worker.keystore import identity_key


def run(*arguments: object) -> str:
    """Run one command; returns what it printed, raises what it raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_init_enroll_revoke_show(tmp_path: Path) -> None:
    out = tmp_path / "keys"
    run("init", "--federation", "test", "--out", out)
    assert load_keys(out).directory.number == 1

    run("enroll", "--dir", out, "--site", "north", "--clients", 2)
    run("enroll", "--dir", out, "--site", "south", "--client", "alice", "--client", "bob", "--broker-user", "CN=south")
    run("enroll", "--dir", out, "--site", "south", "--clients", 1)
    run("revoke", "--dir", out, "--client", "client-002", "--client", "bob")

    keys = load_keys(out)
    assert keys.directory.number == 5
    assert keys.clients == ("alice", "client-001", "client-003")
    assert keys.directory.clients["client-003"].site == "south"
    assert keys.directory.sites["south"].broker_user == "CN=south"
    assert load_signing_key(keys.coordinator_key_file).public == keys.directory.coordinator
    for client in keys.clients:
        identity_key(keys.client_key_directory, client, keys.directory)
    shown = run("show", "--dir", out)
    assert "number 5" in shown
    assert [line.split()[0] for line in shown.splitlines() if "REVOKED" in line] == ["client-002", "bob"]


def test_private_files_are_private(tmp_path: Path) -> None:
    keys = make_federation_keys(tmp_path / "keys", "test", 2)
    private = [keys.enrolment_key_file, keys.coordinator_key_file, *keys.client_key_directory.iterdir()]
    assert {file.stat().st_mode & 0o777 for file in private} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (keys.root, keys.client_key_directory)} == {0o700}
    secret = load_signing_key(keys.enrolment_key_file).to_pem()
    assert secret not in keys.directory_file.read_bytes() + keys.enrolment_public_file.read_bytes()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    keys = make_federation_keys(tmp_path / "keys", "test", 2)
    before = {file: file.read_bytes() for file in keys.root.rglob("*") if file.is_file()}
    refused = [
        ("init", "--federation", "other", "--out", keys.root),
        ("enroll", "--dir", keys.root, "--site", "site-1", "--client", "new", "--client", "client-001"),
        ("enroll", "--dir", keys.root, "--site", "site-1", "--client", "coordinator"),
        ("enroll", "--dir", keys.root, "--site", "site-2", "--client", "new", "--broker-user", "site-1"),
        ("revoke", "--dir", keys.root, "--client", "nobody"),
    ]
    for arguments in refused:
        with pytest.raises(DirectoryError):
            run(*arguments)
    assert {file: file.read_bytes() for file in keys.root.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--site", "s"), "either --client NAME"),
        (("--site", "s", "--client", "a", "--clients", "1"), "either --client NAME"),
        (("--site", "s", "--clients", "0"), "clients: 0 is not between"),
        (("--site", "s", "--client", "A"), "client: 'A' is not a name"),
        (("--site", "s.t", "--client", "a"), r"site: 's\.t' is not a name"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    run("init", "--federation", "test", "--out", tmp_path / "keys")
    with pytest.raises(SettingsError, match=said) as caught:
        run("enroll", "--dir", tmp_path / "keys", *arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_directory_that_is_missing_or_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=r"enrolment\.pub: cannot be read"):
        run("show", "--dir", tmp_path)
    one, two = (make_federation_keys(tmp_path / name, "test", 1) for name in ("one", "two"))
    one.directory_file.write_bytes(two.directory_file.read_bytes())
    with pytest.raises(DirectoryError, match=r"directory\.signed: the directory is not signed"):
        run("show", "--dir", one.root)
    two.enrolment_key_file.write_bytes(one.enrolment_key_file.read_bytes())
    with pytest.raises(DirectoryError, match="is not the private half"):
        run("revoke", "--dir", two.root, "--client", "client-001")


def test_an_enrolment_that_was_cut_short_goes_on_with_the_keys_that_are_there(tmp_path: Path) -> None:
    keys = make_federation_keys(tmp_path / "keys", "test", 1)
    orphan = load_signing_key(keys.coordinator_key_file).from_seed(b"k" * 32)
    save_signing_key(keys.client_key_directory / "late.key", orphan)
    keys = enroll_clients(keys, "site-1", ["late"])
    assert identity_key(keys.client_key_directory, "late", keys.directory).public == orphan.public


def test_the_enrolment_key_can_have_a_passphrase(tmp_path: Path) -> None:
    out, secret = tmp_path / "keys", tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    run("init", "--federation", "test", "--out", out, "--passphrase-file", secret)
    enroll = ("enroll", "--dir", out, "--site", "s", "--client", "a")
    with pytest.raises(DirectoryError, match="encrypted, and no passphrase"):
        run(*enroll)
    run(*enroll, "--passphrase-file", secret)
    assert load_keys(out).clients == ("a",)
    secret.write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        run(*enroll, "--passphrase-file", secret)


def test_a_whole_federation_in_one_call(tmp_path: Path) -> None:
    keys = make_federation_keys(tmp_path / "keys", "test", 7, sites=3)
    assert len(keys.clients) == 7
    sites = [keys.directory.clients[client].site for client in keys.clients]
    assert sites == ["site-1", "site-2", "site-3", "site-1", "site-2", "site-3", "site-1"]
    assert load_keys(keys.root).directory == keys.directory
    with pytest.raises(ComitiaError, match="sites"):
        make_federation_keys(tmp_path / "other", "test", 7, sites=0)


def test_fixed_entropy_gives_the_same_federation_again(tmp_path: Path) -> None:
    made = [
        make_federation_keys(tmp_path / name, "test", 3, entropy=random.Random(seed).randbytes)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0].directory == made[1].directory
    assert made[0].directory.federation_id != made[2].directory.federation_id
