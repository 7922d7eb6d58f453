"""The books are shown alike whether a daemon answers or the file itself is read."""

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from node.home import Home
from node.ledger.entries import Entry
from node.ledger.settlement import NO_JOB
from node.ledger.store import LedgerStore
from protocol.identity import peer_id_to_text
from protocol.statement import Sums
from scripts.spec import examples, proofs, settlements
from tests.cli.fakes import PEER, FakeDaemon, souk
from tests.ledger.jobs import contract_of, entries_of, row_of, signed_job

ACCOUNT = {
    "peer_id": PEER, "earned_microcredits": 1_200, "spent_microcredits": 3, "unpaid_by_them_microcredits": 40,
    "unpaid_by_us_microcredits": 0, "sold": {"closed": 2, "unpaid": 1}, "bought": {"closed": 1},
    "last_ms": 1_760_000_000_000,
}  # fmt: skip
ACCOUNTS = {
    "schema": 1, "earned_microcredits": 1_200, "spent_microcredits": 3, "unpaid_by_them_microcredits": 40,
    "unpaid_by_us_microcredits": 0, "proofs": 2, "peers": [ACCOUNT],
}  # fmt: skip
REQUESTER = peer_id_to_text(examples.REQUESTER.peer_id)


@pytest.fixture
def ledger(home: Home) -> Path:
    """A stopped node's ledger: two jobs sold, and a requester that contradicted itself."""
    home.create()
    store = LedgerStore(home.ledger_path)
    store.open()
    for number in range(2):
        job = signed_job(number)
        store.write(entries_of(job), [row_of(job)])
    closing = signed_job(0)[-1].message
    other = proofs.signed("closing", contract_id=closing.contract_id, verdict="bad")  # type: ignore[attr-defined]
    assert store.witness(other.envelope, examples.NOW_MS) is not None
    store.close()
    return home.ledger_path


def alter(path: Path, change: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()


@pytest.fixture
def running(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    monkeypatch.setenv("SOUK_API", daemon.url)
    return daemon


def test_accounts_are_asked_of_the_daemon_when_it_runs(running: FakeDaemon, ledger: Path) -> None:
    running.answer("GET /api/v1/ledger", ACCOUNTS)
    out = souk("ledger").out
    for part in ("1,200", "THEY OWE", "2 closed, 1 unpaid", "2 of equivocation", "2025-10-09 08:53:20Z"):
        assert part in out
    running.answer(f"GET /api/v1/ledger/{PEER}", {"schema": 1, "peer": ACCOUNT})
    assert "40 µc" in souk("ledger", "show", PEER).out


def test_audit_is_asked_of_the_daemon_when_it_holds_the_home(daemon: FakeDaemon, ledger: Path) -> None:
    found = {"schema": 1, "holds": True, "entries": 7, "contracts": 2, "proofs": 0, "differences": [],
             "differences_total": 0}  # fmt: skip
    daemon.answer("GET /api/v1/ledger/audit", found)
    with daemon.home.locked():
        ran = souk("ledger", "verify")
    assert ran.code == 0 and "7 entries, 2 contracts" in ran.out


def test_accounts_are_read_from_the_file_when_no_daemon_runs(ledger: Path) -> None:
    found = souk("ledger", "show", "-o", "json").json()
    assert found["proofs"] == 1 and found["earned_microcredits"] == 2 * row_of(signed_job(0)).vouchered
    (peer,) = found["peers"]
    assert peer["peer_id"] == REQUESTER and peer["sold"] == {"closed": 2} and peer["bought"] == {}
    assert souk("ledger", "show", REQUESTER, "-o", "json").json()["peer"] == peer
    assert souk("ledger", "show", PEER).code == 5


def test_verify_ends_with_0_when_the_file_holds(ledger: Path) -> None:
    ran = souk("ledger", "verify")
    assert ran.code == 0 and "✓ every hash, signature and sum holds: 18 entries, 2 contracts" in ran.out


def test_verify_ends_with_1_and_names_each_difference_when_a_sum_was_altered(ledger: Path) -> None:
    alter(ledger, "UPDATE contract SET vouchered = 9")
    ran = souk("ledger", "verify")
    assert ran.code == 1
    for number in range(2):
        name = contract_of(signed_job(number)).hex()
        assert f"contract {name}: vouchered is 9, expected {row_of(signed_job(number)).vouchered}" in ran.out
    assert souk("ledger", "verify", "-o", "json").json()["differences_total"] == 2


@pytest.mark.parametrize("verb", ["show", "verify", "export"])
def test_every_verb_says_so_when_there_is_no_ledger(verb: str) -> None:
    ran = souk("ledger", verb)
    assert ran.code == 5 and "there is no ledger" in ran.err


def test_every_entry_is_exported_without_anything_but_ids_and_sums(ledger: Path) -> None:
    lines = [json.loads(line) for line in souk("ledger", "export").out.splitlines()]
    assert [it["number"] for it in lines] == list(range(1, 19))
    assert "envelope" not in lines[0]
    receipts = [it for it in lines if it["kind"] == "receipt"]
    assert receipts[0]["cumulative_microcredits"] == row_of(signed_job(0)).vouchered
    assert receipts[0]["signer"] == peer_id_to_text(examples.PROVIDER.peer_id)
    rows = list(csv.DictReader(io.StringIO(souk("ledger", "export", "--format", "csv", "--envelopes").out)))
    assert [row["message_id"] for row in rows] == [it["message_id"] for it in lines]
    raws = [it.envelope.raw.hex() for number in range(2) for it in signed_job(number)]
    assert [row["envelope"] for row in rows] == raws
    assert {row["contract_id"] for row in rows if row["kind"] == "ask"} == {""}


def test_export_asks_page_by_page_when_a_daemon_runs(running: FakeDaemon) -> None:
    for after, numbers in ((0, [1, 2]), (2, [7]), (7, [])):
        entries = [{"number": number, "kind": "meter"} for number in numbers]
        running.answer(f"GET /api/v1/ledger/entries?after={after}", {"schema": 1, "entries": entries})
    assert [json.loads(line)["number"] for line in souk("ledger", "export").out.splitlines()] == [1, 2, 7]


def test_rebuild_restores_the_rows_and_says_where_the_old_ledger_is(ledger: Path) -> None:
    alter(ledger, "UPDATE contract SET metered = 1")
    ran = souk("ledger", "rebuild", "-o", "json").json()
    assert (ran["contracts"], ran["changed"]) == (2, 2)
    assert Path(ran["backup"]).is_file()
    assert souk("ledger", "verify").code == 0


def test_rebuild_is_refused_while_a_daemon_runs(ledger: Path, home: Home) -> None:
    with home.locked():
        assert souk("ledger", "rebuild").code == 9


def test_proofs_are_listed_and_each_line_can_be_verified(ledger: Path, tmp_path: Path) -> None:
    out = souk("receipts", "proofs").out
    assert "closing" in out and REQUESTER[-8:] in out
    path = tmp_path / "proof.json"
    path.write_text(souk("receipts", "proofs", "-o", "jsonl").out)
    ran = souk("receipts", "verify", str(path))
    assert ran.code == 0 and "✓ one key signed two closing messages" in ran.out and REQUESTER in ran.out


def test_proofs_are_asked_of_the_daemon_when_it_runs(running: FakeDaemon) -> None:
    running.answer("GET /api/v1/proofs", {"schema": 1, "count": 0, "proofs": []})
    assert "No proofs" in souk("receipts", "proofs").out


def test_verify_ends_with_1_when_a_proof_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    path.write_bytes(proofs.text_of(proofs.honest_pairs()["one message twice"]))
    ran = souk("receipts", "verify", str(path))
    assert ran.code == 1 and "✗ proves nothing: both messages are the same one" in ran.out


@pytest.fixture
def settled(ledger: Path) -> Path:
    """The same ledger with two statements."""
    owed = 2 * row_of(signed_job(0)).vouchered
    store = LedgerStore(ledger)
    store.open()
    for it in settlements.signed_chain(tuple(Sums(second_promised=owed, second_paid=paid) for paid in (5, 9))):
        entry = Entry(
            envelope=it.envelope,
            job_id=NO_JOB,
            peer_id=examples.REQUESTER.peer_id,
            contract_id=None,
            at_ms=examples.NOW_MS,
        )
        store.write([entry], [])
    store.close()
    return ledger


def test_statements_are_listed_and_verified_from_the_file_when_no_daemon_runs(
    settled: Path, tmp_path: Path
) -> None:
    found = souk("ledger", "statements", "-o", "json").json()["statements"]
    assert [(it["number"], it["settled_by_them_microcredits"], it["signed_by_both"]) for it in found] == [
        (2, 9, True),
        (1, 5, True),
    ]
    assert souk("ledger", "statements", REQUESTER, "-o", "json").json()["statements"] == found
    assert "both" in souk("ledger", "statements").out
    assert "No statements yet" in souk("ledger", "statements", PEER).out
    path = tmp_path / "statements.json"
    path.write_text(souk("ledger", "statements", REQUESTER, "--evidence").out)
    ran = souk("receipts", "verify", str(path))
    assert ran.code == 0 and "✓ both signed every statement" in ran.out and REQUESTER in ran.out
    assert souk("wire", "decode", str(path)).code == 0
    assert souk("ledger", "verify").code == 0


def test_statements_are_refused_when_a_signature_is_missing_from_the_bundle(settled: Path, tmp_path: Path) -> None:
    bundle = json.loads(souk("ledger", "statements", REQUESTER, "--evidence").out)
    del bundle["messages"][2]
    path = tmp_path / "statements.json"
    path.write_text(json.dumps({"schema": 1, "bundle": bundle}))
    ran = souk("receipts", "verify", str(path))
    assert ran.code == 1 and "✗ not valid" in ran.out


def test_evidence_needs_a_peer_with_statements(ledger: Path) -> None:
    assert souk("ledger", "statements", "--evidence").code == 2
    assert souk("ledger", "statements", "nobody", "--evidence").code == 2
    assert souk("ledger", "statements", PEER, "--evidence").code == 5


def test_settle_asks_the_daemon_and_says_what_happened(running: FakeDaemon) -> None:
    answer = {
        "schema": 1, "peer_id": PEER, "number": 4, "statements_new": 1, "acknowledged_microcredits": 60,
        "promised_by_them_microcredits": 1_000, "promised_by_us_microcredits": 300,
        "settled_by_them_microcredits": 360, "settled_by_us_microcredits": 300,
    }  # fmt: skip
    running.answer("POST /api/v1/ledger/settle", answer)
    out = souk("ledger", "settle", PEER, "60").out
    for part in ("✓ statement 4 is signed by both", "acknowledged now", "60 µc", "1,000 µc, 360 µc of it settled",
                 "640 µc open", "0 µc open"):  # fmt: skip
        assert part in out
    running.answer("POST /api/v1/ledger/settle", answer | {"statements_new": 0})
    assert "nothing is new since statement 4" in souk("ledger", "settle", PEER).out
    running.answer("POST /api/v1/ledger/settle", answer | {"statements_new": 0, "number": 0})
    assert "nothing to settle" in souk("ledger", "settle", PEER).out
    assert souk("ledger", "settle", PEER, "0").code == 2


def test_statements_are_asked_of_the_daemon_when_it_runs(running: FakeDaemon) -> None:
    running.answer(f"GET /api/v1/ledger/statements?peer={PEER}", {"schema": 1, "statements": []})
    assert "No statements yet" in souk("ledger", "statements", PEER).out
    bundle = settlements.bundled(settlements.signed_chain())
    running.answer(f"GET /api/v1/ledger/statements/{PEER}", {"schema": 1, "bundle": bundle})
    assert json.loads(souk("ledger", "statements", PEER, "--evidence").out) == bundle


@pytest.fixture
def two_hours_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.lately.time.time", lambda: examples.NOW_MS / 1000 + 7200)


@pytest.mark.usefixtures("two_hours_later")
def test_books_of_a_span_of_time_count_what_was_promised_in_it(ledger: Path) -> None:
    whole = souk("ledger", "show", REQUESTER, "-o", "json").json()["peer"]
    found = souk("ledger", "show", "--since", "1d", "-o", "json").json()
    assert found["earned_microcredits"] == whole["earned_microcredits"] > 0
    assert [(it["peer_id"], it["contracts"]) for it in found["peers"]] == [(REQUESTER, 2)]
    assert "CONTRACTS" in souk("ledger", "show", "--since", "1d").out
    assert "Nothing was promised since" in souk("ledger", "show", "--since", "1h").out
    assert souk("ledger", "peer", REQUESTER).out == souk("ledger", "show", REQUESTER).out
    assert souk("ledger", "peer", PEER, "--since", "1d", "-o", "json").json()["peers"] == []


@pytest.mark.usefixtures("two_hours_later")
def test_export_leaves_out_what_is_older(ledger: Path) -> None:
    assert souk("ledger", "export", "--since", "1d").out == souk("ledger", "export").out != ""
    assert souk("ledger", "export", "--since", "1h").out == ""
