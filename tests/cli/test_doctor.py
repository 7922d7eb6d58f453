import socket
import time

import pytest

from node.home import Home
from node.ledger.store import LedgerStore
from tests.cli.fakes import FakeDaemon, souk


def findings(*arguments: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = souk("doctor", *arguments, "-o", "json").json()["findings"]
    return found


@pytest.fixture
def settled(home: Home) -> Home:
    """A home that doctor has nothing to say against: ports of the system's choice, a key."""
    assert souk("init", "--profile", "testnet").code == 0
    return home


def test_doctor_ends_with_0_when_nothing_is_broken(settled: Home) -> None:
    ran = souk("doctor")
    assert ran.code == 0, ran.out
    assert "✗" not in ran.out and "✓ key: 12D3KooW" in ran.out


def test_doctor_only_warns_when_the_home_is_new() -> None:
    assert {f["state"] for f in findings() if f["check"] in ("home", "key")} == {"warning"}


def test_doctor_finds_a_key_that_others_can_read(settled: Home) -> None:
    settled.key_path.chmod(0o644)
    ran = souk("doctor", "--only", "key")
    assert ran.code == 1
    assert "✗ key" in ran.out and "chmod 600" in ran.out and "fix:" in ran.out


def test_doctor_lists_every_fault_of_the_configuration(settled: Home) -> None:
    settled.config_path.write_text("[api]\nbimd = 1\n[nod]\n")
    found = findings("--only", "config")
    assert [f["state"] for f in found] == ["fault", "fault"]
    assert "config.toml:2" in found[0]["text"]


def test_doctor_names_the_port_that_is_taken(settled: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settled.config_path.write_text(
            f'[api]\nbind = "127.0.0.1:{port}"\n[p2p]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
        )
        first, second = findings("--only", "ports")
    assert first["state"] == "fault" and str(port) in first["fix"]
    assert second["state"] == "ok"


def test_doctor_finds_a_clock_that_cannot_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    ran = souk("doctor", "--only", "clock")
    assert ran.code == 1 and "1970" in ran.out


def test_doctor_asks_the_daemon_that_holds_the_home(settled: Home, daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/status", {"schema": 1})
    daemon.answer("GET /readyz", {"ready": True})
    with settled.locked():
        assert [f["state"] for f in findings("--only", "daemon")] == ["ok"]
        daemon.answer("GET /readyz", {"ready": False, "checks": {}}, 503)
        assert [f["state"] for f in findings("--only", "daemon")] == ["ok", "warning"]
        daemon.answer("GET /api/v1/status", {"error": {"message": "broken"}}, 500)
        assert [f["state"] for f in findings("--only", "daemon")] == ["fault"]


def test_doctor_knows_its_checks() -> None:
    ran = souk("doctor", "--only", "nothing")
    assert ran.code == 2 and "home, config, key" in ran.err


def test_doctor_finds_a_ledger_that_is_none(settled: Home) -> None:
    assert "none yet" in findings("--only", "ledger")[0]["text"]
    settled.ledger_path.write_bytes(b"not a database" * 100)
    ran = souk("doctor", "--only", "ledger")
    assert ran.code == 1 and "✗ ledger" in ran.out and "backup" in ran.out
    settled.ledger_path.unlink()
    store = LedgerStore(settled.ledger_path)
    store.open()
    store.close()
    assert [it["state"] for it in findings("--only", "ledger")] == ["ok"]


def test_doctor_warns_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is free" in findings("--only", "memory")[0]["text"]
    monkeypatch.setattr("node.cli.doctor.MEMORY_WARN_BYTES", 1 << 60)
    assert findings("--only", "memory")[0]["state"] == "warning"


def test_doctor_warns_when_the_daemon_is_of_another_version_or_alone(settled: Home, daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/status", {"schema": 1, "version": "0.0.1", "peers_connected": 0})
    daemon.answer("GET /readyz", {"ready": True})
    with settled.locked():
        texts = [it["text"] for it in findings("--only", "daemon") if it["state"] == "warning"]
    assert len(texts) == 2 and texts[0].startswith("it is souk 0.0.1") and texts[1] == "no peer is connected"
