import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.models.manifest import (
    CHUNK_BYTES,
    Manifest,
    ModelFile,
    decode_manifest_untrusted,
    encode_manifest,
    is_allowed_name,
    manifest_id,
)
from protocol.encoding import encode
from protocol.errors import RemoteProtocolError

FILES = (
    ModelFile(name="config.json", size=2, sha256=b"c" * 32, chunks=b"c" * 32),
    ModelFile(name="model.safetensors", size=CHUNK_BYTES + 1, sha256=b"m" * 32, chunks=b"m" * 64),
)


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "task": "generate",
        "architecture": "llama",
        "context_tokens": 512,
        "files": FILES,
    }
    return Manifest(**{**fields, **changes})


def test_manifest_round_trips_and_its_id_covers_every_field() -> None:
    data = encode_manifest(manifest())
    assert decode_manifest_untrusted(data) == manifest()
    other_chunk = ModelFile(name="config.json", size=2, sha256=b"c" * 32, chunks=b"d" * 32)
    others = [
        manifest(task="embed"),
        manifest(architecture="other"),
        manifest(context_tokens=1),
        manifest(files=FILES[:1]),
        manifest(files=(other_chunk, FILES[1])),
    ]
    assert len({manifest_id(encode_manifest(other)) for other in (manifest(), *others)}) == 6


@pytest.mark.parametrize(
    ("size", "chunks"), [(0, 1), (1, 0), (CHUNK_BYTES, 2), (CHUNK_BYTES + 1, 1), (1 << 53, 1)]
)
def test_file_is_refused_when_its_chunks_do_not_cover_its_size(size: int, chunks: int) -> None:
    with pytest.raises(ValueError, match="chunk hashes"):
        ModelFile(name="config.json", size=size, sha256=b"c" * 32, chunks=b"c" * 32 * chunks)


@pytest.mark.parametrize(
    "files",
    [
        (FILES[1], FILES[0]),
        (FILES[0], FILES[0]),
        (ModelFile(name="pytorch_model.bin", size=1, sha256=b"x" * 32, chunks=b"x" * 32),),
        (ModelFile(name="../config.json", size=1, sha256=b"x" * 32, chunks=b"x" * 32),),
    ],
)
def test_manifest_is_refused_when_its_files_are_not_sorted_allowed_names(files: tuple[ModelFile, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        manifest(files=files)


@given(st.binary(max_size=200))
def test_reader_raises_only_protocol_errors_when_bytes_are_arbitrary(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_manifest_untrusted(data)


def test_reader_refuses_a_manifest_whose_file_has_an_illegal_name() -> None:
    file = {"name": "../up", "size": 1, "sha256": b"x" * 32, "chunks": b"x" * 32}
    plain = {"version": 2, "task": "g", "architecture": "l", "context_tokens": 1, "files": [file]}
    with pytest.raises(RemoteProtocolError):
        decode_manifest_untrusted(encode(plain))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model-1-of-2.safetensors", False),
        ("modeling_llama.py", False),
        ("model.safetensors/..", False),
        ("", False),
    ],
)
def test_name_is_allowed_when_it_is_weights_or_configuration(name: str, allowed: bool) -> None:
    assert is_allowed_name(name) is allowed
