import io
import os
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from node.home import Home
from node.keystore import Ed25519Signer, KeyFile
from protocol.identity import peer_id_to_text
from tests.cli.fakes import PEER, FakeDaemon, souk

OTHER = Ed25519Signer(b"o" * 32)
OTHER_ID = peer_id_to_text(OTHER.peer_id)


@pytest.fixture
def signer(home: Home) -> Ed25519Signer:
    home.create()
    return KeyFile(home.key_path).create()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    (tmp_path / "other.pem").write_text(OTHER.pem)
    return tmp_path / "other.pem"


def secrets_of(signer: Ed25519Signer) -> list[str]:
    return [signer.seed.hex(), signer.pem.splitlines()[1]]


def test_id_tells_what_the_home_knows_when_no_daemon_runs(home: Home, signer: Ed25519Signer) -> None:
    peer_id = peer_id_to_text(signer.peer_id)
    found = souk("id", "-o", "json").json()
    assert found == {
        "schema": 1,
        "peer_id": peer_id,
        "public_key": signer.peer_id.hex(),
        "addresses": [f"/ip4/0.0.0.0/tcp/11501/p2p/{peer_id}"],
        "running": False,
    }
    assert "will listen" in souk("id").out


def test_id_tells_the_daemons_addresses_when_one_runs(daemon: FakeDaemon, home: Home) -> None:
    address = f"/ip4/192.0.2.1/tcp/11501/p2p/{PEER}"
    daemon.answer("GET /api/v1/status", {"peer_id": PEER, "addresses": [address]})
    with home.locked():
        found = souk("id", "-o", "json").json()
        assert f"address     {address}" in souk("id").out
    assert found["running"] and found["addresses"] == [address] and len(found["public_key"]) == 64


def test_id_says_what_makes_a_key_when_there_is_none() -> None:
    ran = souk("id")
    assert ran.code == 1 and "souk init makes one" in ran.err


@pytest.mark.parametrize("line", [["id"], ["key", "show"]])
@pytest.mark.parametrize("form", ["table", "json"])
def test_private_key_is_in_no_view_of_the_node(
    home: Home, signer: Ed25519Signer, line: list[str], form: str
) -> None:
    ran = souk(*line, "-o", form)
    assert ran.code == 0 and signer.peer_id.hex() in ran.out
    assert not any(secret in ran.out + ran.err for secret in secrets_of(signer))


def test_key_shows_its_file_and_mode(home: Home, signer: Ed25519Signer) -> None:
    found = souk("key", "show", "-o", "json").json()
    assert (found["file"], found["mode"]) == (str(home.key_path), "0600")
    home.key_path.chmod(0o644)
    ran = souk("key", "show")
    assert ran.code == 1 and f"chmod 600 {home.key_path}" in ran.err


def test_exported_key_is_private_and_comes_back_in_another_home(
    home: Home, signer: Ed25519Signer, tmp_path: Path
) -> None:
    target = tmp_path / "kept.pem"
    assert souk("key", "export", str(target)).code == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert load_pem_private_key(target.read_bytes(), None).private_bytes_raw() == signer.seed  # type: ignore[union-attr]
    away = Home(tmp_path / "away")
    ran = souk("--home", str(away.path), "key", "import", str(target))
    assert ran.code == 0 and KeyFile(away.key_path).read().seed == signer.seed
    assert not any(secret in ran.out + ran.err for secret in secrets_of(signer))


def test_export_writes_to_standard_output_and_replaces_nothing(signer: Ed25519Signer, tmp_path: Path) -> None:
    assert souk("key", "export", "-").out == signer.pem
    assert souk("key", "export", "-", "-o", "json").json() == {
        "schema": 1,
        "peer_id": peer_id_to_text(signer.peer_id),
        "pem": signer.pem,
    }
    target = tmp_path / "there"
    target.write_text("mine")
    ran = souk("key", "export", str(target))
    assert ran.code == 9 and "--force" in ran.err and target.read_text() == "mine"
    assert souk("key", "export", str(target), "--force").code == 0 and target.read_text() == signer.pem


def test_dry_run_of_an_import_makes_no_home(home: Home, other: Path) -> None:
    ran = souk("key", "import", str(other), "--dry-run", "-o", "json")
    assert (ran.code, ran.json()["peer_id"], ran.json()["replaced"]) == (0, OTHER_ID, None)
    assert not home.path.exists()


def test_key_of_32_bytes_is_imported_from_standard_input(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(OTHER.seed)))
    ran = souk("key", "import", "-", "-o", "json")
    assert ran.json()["peer_id"] == OTHER_ID and ran.json()["kept"] is None
    assert KeyFile(home.key_path).read().seed == OTHER.seed


def test_key_of_the_home_is_replaced_only_with_force_and_kept(
    home: Home, signer: Ed25519Signer, other: Path
) -> None:
    home.ledger_path.touch()
    mine = peer_id_to_text(signer.peer_id)
    ran = souk("key", "import", str(other))
    assert ran.code == 9 and mine in ran.err and "--force" in ran.err
    tried = souk("key", "import", str(other), "--force", "--dry-run", "-o", "json")
    assert tried.json()["replaced"] == mine and tried.json()["dry_run"]
    assert KeyFile(home.key_path).read().seed == signer.seed
    ran = souk("key", "import", str(other), "--force")
    assert ran.code == 0 and "stays with that key" in ran.err
    assert KeyFile(home.key_path).read().seed == OTHER.seed
    assert KeyFile(home.path / f"key.{mine}").read().seed == signer.seed
    assert souk("key", "import", str(home.path / f"key.{mine}"), "--force").code == 0
    assert KeyFile(home.key_path).read().seed == signer.seed


def test_key_that_cannot_be_read_is_kept_when_another_takes_its_place(home: Home, other: Path) -> None:
    home.create()
    home.key_path.write_bytes(b"half")
    assert souk("key", "import", str(other), "--force").code == 0
    assert (home.path / "key.unreadable").read_bytes() == b"half"


def test_key_that_the_home_has_already_changes_nothing(home: Home, signer: Ed25519Signer) -> None:
    before = home.key_path.stat().st_ino
    ran = souk("key", "import", str(home.key_path))
    assert ran.code == 0 and "already" in ran.err and home.key_path.stat().st_ino == before


@pytest.mark.parametrize("answer", ["n\n", "y\n"])
def test_replacement_is_asked_about_on_a_terminal(
    home: Home, signer: Ed25519Signer, other: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    ran = souk("key", "import", str(other), "--force")
    assert (ran.code, KeyFile(home.key_path).read().seed) == (
        (0, OTHER.seed) if answer == "y\n" else (130, signer.seed)
    )


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--force", "-y"]])
def test_key_is_not_changed_under_a_running_daemon(home: Home, other: Path, more: list[str]) -> None:
    with home.locked():
        ran = souk("key", "import", str(other), *more)
    assert ran.code == 9 and str(os.getpid()) in ran.err and not home.key_path.exists()


def test_import_says_what_it_expected_when_a_file_is_no_key(home: Home, tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 1024)
    sealed = BestAvailableEncryption(b"word")
    cases = {
        b"nonsense": "8 bytes that are neither",
        rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()): "another kind of key",
        OTHER._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed): "under a passphrase",
    }
    for data, said in cases.items():
        (tmp_path / "x").write_bytes(data)
        ran = souk("key", "import", str(tmp_path / "x"))
        assert ran.code == 1 and said in ran.err and "expected an Ed25519 key" in ran.err
    assert souk("key", "import", "/nonexistent").code == 2 and not home.key_path.exists()


def test_help_says_why_a_key_is_not_rotated() -> None:
    assert souk("key", "rotate").code == 2
    assert "A new key is a new node" in souk("key", "--help").out
