import json
from pathlib import Path

import pytest

from tests.cli.fakes import souk
from tests.protocol.fakes import sealed


def test_decode_says_why_a_message_is_refused() -> None:
    ran = souk("wire", "decode", "c0ff ee00", "-o", "json")
    assert ran.code == 1
    (message,) = ran.json()["messages"]
    assert message["bytes"] == 4 and message["refused"] and message["reason"]


def test_decode_reads_bytes_hex_and_bundles_from_files(tmp_path: Path) -> None:
    path = tmp_path / "message"
    for data in (b"\xc0\xff", b"c0ff\n", json.dumps({"messages": [{"envelope": "c0ff"}]}).encode()):
        path.write_bytes(data)
        (message,) = souk("wire", "decode", str(path), "-o", "json").json()["messages"]
        assert message["bytes"] == 2


@pytest.mark.parametrize("source", ["xyz", "abc", ""])
def test_decode_refuses_what_is_neither_file_nor_hex(source: str) -> None:
    assert souk("wire", "decode", source).code == 2


@pytest.mark.parametrize("text", ["{", '{"messages": 3}', '{"messages": [{"envelope": 3}]}', '{"bundle": []}'])
def test_decode_refuses_json_that_is_no_bundle(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(text)
    ran = souk("wire", "decode", str(path))
    assert ran.code == 1 and "no bundle" in ran.err


def test_decode_shows_a_message_and_judges_its_signature() -> None:
    ran = souk("wire", "decode", sealed("contract").envelope.raw.hex())
    assert ran.code == 0
    assert json.loads(ran.out)["signature"] == "valid" and json.loads(ran.out)["type"] == "contract"
