import os
from pathlib import Path

import pytest

from node.errors import KeyFileError
from node.keystore import Ed25519Signer, KeyFile
from protocol.identity import check_key_untrusted, verify_untrusted


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "key")


def test_key_file_gives_the_same_key_when_read_again(key_file: KeyFile) -> None:
    made = key_file.create()
    assert key_file.read().peer_id == made.peer_id
    assert key_file.read_or_create().seed == made.seed
    assert key_file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key_file.path.parent.iterdir()] == ["key"]


def test_key_file_is_never_replaced_when_there_is_one(key_file: KeyFile) -> None:
    seed = key_file.create().seed
    with pytest.raises(KeyFileError, match="exists"):
        key_file.create()
    assert key_file.read().seed == seed


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_key_file_is_refused_when_open_to_others(key_file: KeyFile, mode: int) -> None:
    key_file.create()
    key_file.path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}, expected 0600"):
        key_file.read()


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_key_file_is_refused_when_it_is_not_32_bytes(key_file: KeyFile, size: int) -> None:
    key_file.path.write_bytes(b"k" * size)
    key_file.path.chmod(0o600)
    with pytest.raises(KeyFileError, match="not a key"):
        key_file.read()


def test_key_file_is_refused_when_it_is_a_link(key_file: KeyFile) -> None:
    other = KeyFile(key_file.path.with_name("other"))
    other.create()
    key_file.path.symlink_to(other.path)
    with pytest.raises(KeyFileError, match="cannot be opened"):
        key_file.read_or_create()
    other.path.unlink()
    with pytest.raises(KeyFileError):
        key_file.read_or_create()


def test_key_file_is_refused_when_it_is_no_regular_file(key_file: KeyFile) -> None:
    key_file.path.mkdir()
    with pytest.raises(KeyFileError, match="not a regular file"):
        key_file.read()
    key_file.path.rmdir()
    os.mkfifo(key_file.path)
    with pytest.raises(KeyFileError, match="not a regular file"):
        key_file.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_key_file_is_refused_when_it_belongs_to_another_user(key_file: KeyFile) -> None:
    key_file.create()
    os.chown(key_file.path, 12_345, -1)
    with pytest.raises(KeyFileError, match="belongs to user 12345"):
        key_file.read()


def test_missing_key_names_the_command_when_read(key_file: KeyFile) -> None:
    with pytest.raises(KeyFileError, match="souk init"):
        key_file.read()


def test_signer_signs_what_the_protocol_accepts_and_hides_its_seed() -> None:
    # RFC 8032, section 7.1, test 1.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signer = Ed25519Signer(seed)
    assert signer.peer_id.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert check_key_untrusted(signer.peer_id) == signer.peer_id
    verify_untrusted(signer.peer_id, b"x", signer.sign(b"x"))
    assert seed.hex() not in repr(signer)
