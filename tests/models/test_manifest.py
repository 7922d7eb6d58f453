import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.models.manifest import (
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
    ModelFile(name="config.json", size=2, sha256=b"c" * 32),
    ModelFile(name="model.safetensors", size=9, sha256=b"m" * 32),
)


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "name": "tiny",
        "task": "generate",
        "architecture": "llama",
        "context_tokens": 512,
        "source": "a test",
        "files": FILES,
    }
    return Manifest(**{**fields, **changes})


def test_manifest_round_trips_and_its_id_covers_every_field() -> None:
    data = encode_manifest(manifest())
    assert decode_manifest_untrusted(data) == manifest()
    others = [manifest(name="other"), manifest(source=""), manifest(context_tokens=1), manifest(files=FILES[:1])]
    assert len({manifest_id(encode_manifest(other)) for other in (manifest(), *others)}) == 5


@pytest.mark.parametrize(
    "files",
    [
        (FILES[1], FILES[0]),
        (FILES[0], FILES[0]),
        (ModelFile(name="pytorch_model.bin", size=1, sha256=b"x" * 32),),
        (ModelFile(name="../config.json", size=1, sha256=b"x" * 32),),
    ],
)
def test_manifest_is_refused_when_its_files_are_not_sorted_allowed_names(files: tuple[ModelFile, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        manifest(files=files)


@given(st.binary(max_size=200))
def test_reader_raises_only_protocol_errors_when_bytes_are_arbitrary(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_manifest_untrusted(data)


def test_reader_refuses_a_manifest_with_an_illegal_name() -> None:
    plain = {"version": 1, "name": "../up", "task": "g", "architecture": "l", "context_tokens": 1, "files": []}
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
