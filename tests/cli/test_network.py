from tests.cli.fakes import FakeDaemon, souk


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
