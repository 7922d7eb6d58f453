import os
from hashlib import sha256
from pathlib import Path

import pytest

from node.errors import ModelError
from node.models.sources import find_source, open_regular, promised_sha256
from node.models.store import ModelStore
from tests.execution.tiny_model import write_tiny_model

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """The layout that the Hugging Face tools write: links in a snapshot, blobs named by their hash."""
    plain = write_tiny_model(tmp_path / "plain")
    root = tmp_path / "hub" / "models--Some-Org--Tiny-Chat"
    snapshot = root / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for file in plain.iterdir():
        data = file.read_bytes()
        blob = sha256(data).hexdigest() if file.suffix == ".safetensors" else sha256(data).hexdigest()[:40]
        (root / "blobs" / blob).write_bytes(data)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(REVISION)
    return root


def test_cached_model_is_imported_with_its_name_and_revision(cached: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    model = store.add_folder(cached)
    assert model.name == "tiny-chat"
    assert model.about.source == f"huggingface Some-Org/Tiny-Chat at {REVISION}"
    assert not any(path.is_symlink() for path in model.folder.iterdir())
    assert store.add_folder(cached / "snapshots" / REVISION) == model
    # What was downloaded and what lies in a plain folder is one model.
    assert store.add_folder(tmp_path / "plain", "plain") == model


def test_snapshot_is_found_without_refs_when_there_is_one(cached: Path) -> None:
    (cached / "refs" / "main").unlink()
    assert find_source(cached).folder.name == REVISION
    (cached / "snapshots" / "other").mkdir()
    with pytest.raises(ModelError, match=r"one snapshot, got 2; name one of them: .*/snapshots/"):
        find_source(cached)


@pytest.mark.parametrize("revision", ["../../../etc", "..", "", "\xff", "x" * 200])
def test_revision_is_looked_up_and_never_joined_to_a_path(cached: Path, revision: str) -> None:
    (cached / "refs" / "main").write_text(revision, "latin-1")
    assert find_source(cached).folder == cached / "snapshots" / REVISION


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../../outside.json", "tokenizer.json"])
def test_link_is_refused_when_it_leads_out_of_the_cache_or_to_itself(cached: Path, target: str) -> None:
    (cached.parent.parent / "outside.json").write_text("{}")
    link = cached / "snapshots" / REVISION / "tokenizer.json"
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(ModelError, match=r"inside|cannot be read"):
        find_source(cached).files()


def test_link_is_refused_when_it_leads_out_of_a_plain_folder(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    secret = tmp_path / "key"
    secret.write_text("{}")
    (folder / "generation_config.json").symlink_to(secret)
    with pytest.raises(ModelError, match="expected a file inside"):
        ModelStore(tmp_path / "store").add_folder(folder)


def test_import_is_refused_when_a_blob_is_not_what_its_name_promises(cached: Path, tmp_path: Path) -> None:
    weights = (cached / "snapshots" / REVISION / "model.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors: expected sha256 .* as the cache names it"):
        ModelStore(tmp_path / "store").add_folder(cached)


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="plain file"), open_regular(tmp_path / "config.json"):
        pass


def test_only_large_blobs_promise_a_hash(tmp_path: Path) -> None:
    assert promised_sha256(tmp_path / "blobs" / ("a" * 64)) == b"\xaa" * 32
    assert promised_sha256(tmp_path / "blobs" / ("a" * 40)) is None
    assert promised_sha256(tmp_path / ("a" * 64)) is None
