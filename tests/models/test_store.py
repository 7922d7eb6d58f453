import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node.errors import ModelError, ModelKeptError
from node.models.eviction import Decision
from node.models.holding import Holds
from node.models.store import ModelStore
from node.models.stored import MANIFEST_NAME, StoredModel
from tests.execution.tiny_model import write_tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_store_lists_nothing_when_its_folder_is_missing(store: ModelStore) -> None:
    assert store.models() == ()
    assert not store.root.exists()


def test_store_gives_one_model_when_the_same_files_come_twice(store: ModelStore, source: Path) -> None:
    first = store.add_folder(source, "tiny", source="test")
    assert store.add_folder(source, "tiny", source="elsewhere") == first
    assert store.add_folder(source, "another-name") == first
    assert store.models() == (first,)
    assert first.manifest.context_tokens == 512
    assert first.parameters == 260 * 32 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert first.folder.name == first.model_id.hex()
    assert (first.name, first.about.source) == ("tiny", "test")


def test_two_stores_give_the_same_id_to_the_same_files_whatever_they_call_them(
    tmp_path: Path, source: Path
) -> None:
    stores = [ModelStore(tmp_path / name) for name in ("a", "b")]
    ids = {store.add_folder(source, store.root.name, source=store.root.name).model_id for store in stores}
    assert len(ids) == 1


def test_import_leaves_behind_what_is_not_on_the_list(store: ModelStore, source: Path) -> None:
    (source / "modeling_evil.py").write_text("boom")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04")
    model = store.add_folder(source, "tiny")
    assert sorted(path.name for path in model.folder.iterdir()) == [
        "about.json",
        "config.json",
        "manifest.msgpack",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("name", ["../evil", "Upper", "", "a/b", "x" * 65, ".hidden"])
def test_import_is_refused_when_the_name_is_illegal(store: ModelStore, source: Path, name: str) -> None:
    with pytest.raises(ModelError, match="model name"):
        store.add_folder(source, name)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_import_is_refused_and_leaves_nothing_when_a_file_is_missing(
    store: ModelStore, source: Path, missing: str
) -> None:
    (source / missing).unlink()
    with pytest.raises(ModelError, match="expected"):
        store.add_folder(source, "tiny")
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_import_is_refused_when_the_weights_are_a_pickle(store: ModelStore, source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 50)
    with pytest.raises(ModelError, match=r"^model\.safetensors: expected"):
        store.add_folder(source, "tiny")
    assert store.models() == ()


def test_import_is_refused_when_the_configuration_is_not_json(store: ModelStore, source: Path) -> None:
    (source / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="JSON"):
        store.add_folder(source, "tiny")


def test_import_is_refused_when_another_model_has_the_name(store: ModelStore, source: Path) -> None:
    store.add_folder(source, "tiny")
    other = write_tiny_model(source.parent / "other", seed=2)
    with pytest.raises(ModelError, match="another model is called 'tiny'"):
        store.add_folder(other, "tiny")
    assert len(store.models()) == 1


def test_import_sweeps_what_a_dead_import_left(store: ModelStore, source: Path) -> None:
    left = store.root / ".incoming-dead"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert store.models() == ()
    store.add_folder(source, "tiny")
    assert not left.exists()


def test_store_finds_a_model_by_name_and_by_hex(store: ModelStore, source: Path) -> None:
    model = store.add_folder(source, "tiny")
    assert store.find("tiny") == store.find(model.model_id.hex()[:8].upper()) == model
    for wanted in ("tin", model.model_id.hex()[:7], "other"):
        with pytest.raises(ModelError, match="the store has tiny"):
            store.find(wanted)


def test_verify_names_the_file_when_one_byte_changed(store: ModelStore, source: Path) -> None:
    model = store.add_folder(source, "tiny")
    store.verify(model)
    path = model.folder / "model.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors: expected sha256"):
        store.verify(model)


def test_store_leaves_a_damaged_folder_out(store: ModelStore, source: Path) -> None:
    model = store.add_folder(source, "tiny")
    shutil.copytree(model.folder, store.root / ("0" * 64))
    assert store.models() == (model,)
    (model.folder / "tokenizer.json").unlink()
    assert store.models() == ()


def test_remove_leaves_nothing_of_the_model(store: ModelStore, source: Path) -> None:
    store.remove(store.add_folder(source, "tiny"))
    assert store.models() == ()
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_import_reads_the_context_from_the_configuration(store: ModelStore, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": "many"}))
    with pytest.raises(ModelError, match="max_position_embeddings"):
        store.add_folder(source, "tiny")


def test_import_replaces_a_model_whose_weights_were_damaged(store: ModelStore, source: Path) -> None:
    model = store.add_folder(source, "tiny")
    path = model.folder / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert store.add_folder(source, "tiny") == model
    model.verify()


def test_verify_names_the_chunk_that_changed(store: ModelStore, source: Path) -> None:
    model = store.add_folder(source, "tiny")
    (model.folder / "config.json").chmod(0o644)
    (model.folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="different from chunk 0 on"):
        model.verify()


def test_files_of_a_model_are_read_only(store: ModelStore, source: Path) -> None:
    model = store.add_folder(source, "tiny")
    assert {(model.folder / file.name).stat().st_mode & 0o777 for file in model.manifest.files} == {0o444}


def test_one_model_comes_of_imports_at_once(store: ModelStore, source: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: store.add_folder(source, f"tiny-{number}"), range(4)))
    assert len(set(found)) == 1 and store.models() == (found[0],)
    assert sorted(path.name for path in store.root.iterdir()) == sorted([".lock", found[0].model_id.hex()])


FULL_DISK = """
import resource, sys
from pathlib import Path
from node.errors import ModelError
from node.models.store import ModelStore

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    ModelStore(Path(sys.argv[1])).add_folder(Path(sys.argv[2]), "tiny")
except ModelError as exc:
    print(exc)
"""


@pytest.mark.slow
def test_nothing_is_left_when_the_disk_takes_no_more(store: ModelStore, source: Path) -> None:
    line = [sys.executable, "-c", FULL_DISK, str(store.root), str(source), "20000"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "model.safetensors: cannot be written: [Errno 27] File too large\n"
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def bounded(store: ModelStore, source: Path, models: float) -> tuple[ModelStore, list[Decision], StoredModel]:
    """Return the store with room for so many models, what it decides, and its first model."""
    first = store.add_folder(source, "first")
    os.utime(first.folder / MANIFEST_NAME, (1, 1))
    told: list[Decision] = []
    quota = int(first.manifest.size_bytes * models)
    return ModelStore(store.root, quota_bytes=quota, on_decision=told.append), told, store.find("first")


def test_import_makes_room_by_removing_what_was_used_longest_ago(store: ModelStore, source: Path) -> None:
    small, told, _ = bounded(store, source, 2.5)
    for number in (2, 3):
        small.add_folder(write_tiny_model(source.parent / f"{number}", seed=number), f"model-{number}")
    assert [model.name for model in small.models()] == ["model-2", "model-3"]
    assert [(found.name, found.removed) for found in told] == [
        ("first", False),
        ("first", True),
        ("model-2", False),
    ]


@pytest.mark.parametrize("kept_by", ["pin", "daemon"])
def test_import_is_refused_and_says_why_when_what_is_there_has_to_stay(
    store: ModelStore, source: Path, kept_by: str
) -> None:
    small, told, first = bounded(store, source, 1.5)
    holds = Holds(store.root)
    if kept_by == "pin":
        first = small.pin(first, True)
    else:
        holds.take([first.model_id])
    with pytest.raises(ModelError, match=rf"models\.quota_gb allows .*first: .*{kept_by}"):
        small.add_folder(write_tiny_model(source.parent / "2", seed=2), "second")
    with pytest.raises(ModelKeptError, match=r"lets it go|unload it first"):
        small.remove(first)
    assert [model.name for model in small.models()] == ["first"] and not told
    holds.release_all()
    small.remove(small.pin(first, False))
    assert small.models() == ()


def test_store_is_brought_down_to_its_quota_when_asked(store: ModelStore, source: Path) -> None:
    store.add_folder(write_tiny_model(source.parent / "2", seed=2), "second")
    small, told, _ = bounded(store, source, 1.5)
    assert [found.removed for found in small.plan_room()] == [True, False]
    assert tuple(told) == () and small.make_room() == tuple(told)
    assert [model.name for model in small.models()] == ["second"]
    assert store.plan_room(1 << 60) == ()  # no quota, no plan
