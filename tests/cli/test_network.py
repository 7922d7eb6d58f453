import json

import pytest

from tests.cli.fakes import PEER, FakeDaemon, souk

OFFER = {"name": "smol", "model_id": "ab" * 32, "context_tokens": 2048, "price_in": 200_000, "price_out": 800_000}
PEERS = {
    "schema": 1,
    "peers": [
        {
            "peer_id": PEER, "name": "gpu\x1b[31m", "connected": True, "advert_age_ms": 1500,
            "models": [OFFER | {"tokens_per_s": 41.5}], "slots_free": 3, "slots_total": 4, "queue_ms": 0,
            "devices": ["cpu"],
        },
        {"peer_id": PEER, "name": "client", "connected": False, "advert_age_ms": None, "slots_total": None},
    ],
}  # fmt: skip


def test_peers_are_a_table_without_control_characters(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/peers", PEERS)
    out = souk("peers").out
    assert "\x1b" not in out
    head, first, second = out.splitlines()
    assert head.split()[:4] == ["NAME", "PEER", "STATE", "MODEL"]
    for part in ("…bziXHP7Z", "connected", "smol", "800,000", "41.5", "3/4", "1.5 s"):
        assert part in first
    assert "known" in second and "None" not in second


def test_peers_are_one_a_line_when_lines_are_wanted(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/peers", PEERS)
    lines = souk("peers", "ls", "-o", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == PEERS["peers"]


def test_peers_say_what_to_do_when_there_are_none(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/peers", {"schema": 1, "peers": []})
    assert "--bootstrap" in souk("peers").out


def test_connect_prints_the_peer_it_reached(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/connect", {"peer_id": PEER})
    assert souk("peers", "connect", f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}").out == f"{PEER}\n"
    assert daemon.body == {"address": f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"}


@pytest.mark.parametrize("address", ["xx", "/ip4/1.2.3.4/tcp/1"])
def test_connect_refuses_what_is_no_address(daemon: FakeDaemon, address: str) -> None:
    ran = souk("peers", "connect", address)
    assert ran.code == 2 and address in ran.err and not daemon.asked


def test_devices_are_shown_in_units_of_people(daemon: FakeDaemon) -> None:
    device = {
        "kind": "cpu", "index": 0, "name": "a cpu", "architecture": "x86", "memory_total_bytes": 8 << 30,
        "memory_free_bytes": 3 << 29, "dtypes": ["fp32"], "driver": None, "matmul_gflops": 99.5,
        "read_mb_per_s": 10, "foreign_processes": 2,
        "models": [
            {"name": "smol", "loaded": True, "lacks": None, "memory_bytes": 1 << 29, "context_tokens": 2048,
             "tokens_per_s": 41.5, "delivered_tokens_per_s": 38.5},
            {"name": "big", "loaded": False, "lacks": "memory", "memory_bytes": 1 << 33, "context_tokens": 2048,
             "tokens_per_s": 4.5, "delivered_tokens_per_s": None},
        ],
    }  # fmt: skip
    daemon.answer("GET /api/v1/devices", {"schema": 1, "devices": [device]})
    out = souk("devices").out
    assert "cpu:0" in out and "1.5 GiB" in out and "8.0 GiB" in out and "99.5" in out
    smol, big = out.splitlines()[-2:]
    assert "loaded" in smol and "512.0 MiB" in smol and "41.5" in smol and "38.5" in smol
    assert "waits for memory" in big and "None" not in big


def test_advert_is_shown_flat_or_said_to_be_missing(daemon: FakeDaemon) -> None:
    daemon.answer(
        "GET /api/v1/advert", {"schema": 1, "advert": {"issued_at_ms": 0, "offers": [{"model": "smol"}]}}
    )
    out = souk("advert", "show").out
    assert "offers.0.model  smol" in out and "issued_at       1970-01-01 00:00:00Z" in out
    daemon.answer("GET /api/v1/advert", {"schema": 1, "advert": None})
    assert "offers nothing" in souk("advert", "show").out


def test_advert_is_withdrawn_and_published_as_by_drain_and_resume(daemon: FakeDaemon) -> None:
    gate = {"open": False, "drained": True, "reasons": ["drained by hand"], "opens_at_ms": None, "jobs": 2}
    daemon.answer("POST /api/v1/drain", {"schema": 1, "gate": gate})
    ran = souk("advert", "withdraw")
    assert ran.code == 0 and daemon.body == {"grace_s": None} and "2 jobs of peers still run" in ran.out
    daemon.answer("POST /api/v1/resume", {"schema": 1, "gate": gate | {"open": True}})
    assert souk("advert", "publish", "-o", "json").json()["gate"]["open"] is True
    daemon.answer("POST /api/v1/resume", {"schema": 1, "gate": gate})
    assert souk("advert", "publish").code == 1
