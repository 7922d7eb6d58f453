import io
import json
import sys
import time
from pathlib import Path

import pytest

from node.cli.receipts import LISTED_MAX
from node.keystore import Ed25519Signer
from protocol.envelope import seal
from protocol.units import NetworkId
from scripts.spec.examples import NETWORK
from tests.cli.fakes import PEER, FakeDaemon, souk
from tests.protocol.fakes import sealed

RECEIPT = {
    "contract_id": "c0ffee" + "00" * 29, "job_id": "aa", "role": "requester", "peer_id": PEER, "model": "smol",
    "state": "closed", "tokens_in": 7, "tokens_out": 11, "cost_microcredits": 120, "at_ms": 1_760_000_000_000,
}  # fmt: skip


def test_receipts_are_listed_with_their_costs(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/receipts?limit=50", {"schema": 1, "receipts": [RECEIPT]})
    out = souk("receipts").out
    for part in ("c0ffee000000", "2025-10-09 08:53:20Z", "requester", "smol", "closed", "120"):
        assert part in out


def test_receipts_are_asked_for_by_number_when_a_limit_is_given(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/receipts?limit=3", {"schema": 1, "receipts": []})
    assert souk("receipts", "ls", "--limit", "3").out == "No contracts yet.\n"


def test_show_prints_the_bundle_that_verify_reads(daemon: FakeDaemon) -> None:
    bundle = {"network": "00" * 32, "messages": []}
    daemon.answer("GET /api/v1/receipts/c0ffee", {"schema": 1, "bundle": bundle})
    assert souk("receipts", "show", "c0ffee", "-o", "json").json() == bundle


def test_show_tells_what_cannot_be_read_beside_what_can(daemon: FakeDaemon) -> None:
    message = {"type": "contract", "from": "requester", "at_ms": 0, "envelope": "00"}
    daemon.answer("GET /api/v1/receipts/c0ffee", {"schema": 1, "bundle": {"network": "x", "messages": [message]}})
    out = souk("receipts", "show", "c0ffee").out
    assert "contract  from requester" in out and "cannot be read" in out


@pytest.mark.parametrize("contract_id", ["../status", "C0FFEE", "xyz"])
def test_show_refuses_what_is_no_id(contract_id: str) -> None:
    assert souk("receipts", "show", contract_id).code == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"network": "00", "messages": []}', "\udcff"])
def test_verify_ends_with_1_when_a_file_proves_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(text, "utf-8", errors="surrogateescape")
    ran = souk("receipts", "verify", str(path))
    assert ran.code == 1


def test_verify_ends_with_1_when_a_bundle_holds_no_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NetworkId(bytes(32))
    envelope = seal("ask", {}, network=network, signer=Ed25519Signer(bytes(32)))
    bundle = {"network": network.hex(), "messages": [{"type": "ask", "envelope": envelope.raw.hex()}]}
    # The API's answer around the bundle is accepted as well.
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"schema": 1, "bundle": bundle})))
    found = souk("receipts", "verify", "-", "-o", "json")
    assert found.code == 1
    assert found.json()["valid"] is False and found.json()["problem"]


def test_verify_needs_a_file() -> None:
    ran = souk("receipts", "verify", "/nonexistent")
    assert ran.code == 1 and "cannot be read" in ran.err


def signed_bundle() -> dict[str, object]:
    """Return a contract that two parties signed; no work was done yet."""
    envelopes = {kind: sealed(kind).envelope.raw.hex() for kind in ("contract", "accept")}
    messages = [{"type": kind, "envelope": envelope} for kind, envelope in envelopes.items()]
    return {"network": NETWORK.hex(), "messages": messages}


def test_verify_ends_with_0_and_says_what_is_proved_when_a_bundle_holds(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(signed_bundle()))
    ran = souk("receipts", "verify", str(path))
    assert ran.code == 0
    assert "✓" in ran.out and "signed no receipt" in ran.out
    found = souk("receipts", "verify", str(path), "-o", "json").json()
    assert found["valid"] and found["provider"].startswith("12D3KooW") and found["contract_id"] in ran.out


def test_verify_ends_with_1_when_one_bit_of_a_signature_is_another(tmp_path: Path) -> None:
    text = json.dumps(signed_bundle())
    at = text.rindex('"}') - 1
    path = tmp_path / "bundle.json"
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    ran = souk("receipts", "verify", str(path))
    assert ran.code == 1 and "✗ not valid: the signature" in ran.out


def test_show_describes_each_message_for_people(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/receipts/c0ffee", {"schema": 1, "bundle": signed_bundle()})
    out = souk("receipts", "show", "c0ffee").out
    assert '"signature": "valid"' in out and "price_max" in out


def test_every_bundle_is_exported_on_a_line_as_verify_reads_it(daemon: FakeDaemon) -> None:
    bundles = [{"network": f"{i:02}" * 32, "messages": []} for i in range(2)]
    listed = [RECEIPT | {"contract_id": f"{i:02}" * 32, "at_ms": i * 4_000_000_000_000} for i in range(2)]
    daemon.answer("GET /api/v1/receipts?limit=1000", {"schema": 1, "receipts": listed})
    for receipt, bundle in zip(listed, bundles, strict=True):
        daemon.answer(f"GET /api/v1/receipts/{receipt['contract_id']}", {"schema": 1, "bundle": bundle})
    assert [json.loads(line) for line in souk("receipts", "export").out.splitlines()] == bundles
    assert [json.loads(line) for line in souk("receipts", "export", "--since", "30d").out.splitlines()] == bundles[
        1:
    ]
    assert souk("receipts", "ls", "--since", "1h", "-o", "json").json()["receipts"] == listed[1:]


def test_ls_since_asks_for_all_that_can_be_listed_and_says_when_there_is_more(daemon: FakeDaemon) -> None:
    now_ms = round(time.time() * 1000)
    listed = [{"contract_id": f"{number:04x}", "at_ms": now_ms} for number in range(LISTED_MAX)]
    daemon.answer(f"GET /api/v1/receipts?limit={LISTED_MAX}", {"schema": 1, "receipts": listed})
    ran = souk("receipts", "ls", "--since", "1h", "-o", "json")
    assert ran.json()["receipts"] == listed and "the newest 1000" in ran.err
    assert souk("receipts", "ls", "--since", "1h", "--limit", "3", "-o", "json").json()["receipts"] == listed[:3]
