"""A second message for a slot makes one proof, whether it is posted or only shown; nothing else does."""

import logging
import sqlite3
from pathlib import Path

import pytest
import trio

from node.ledger.entries import Entry
from node.ledger.ledger import Ledger
from node.ledger.store import LedgerStore
from protocol.equivocation import verify_proof_untrusted
from protocol.signed import Signed, SignedMessage
from protocol.units import JobId, MessageId
from scripts.spec import examples, proofs

KINDS = sorted(proofs.LIES)


def entry_of(signed: Signed[SignedMessage], contract_id: bytes = bytes(32)) -> Entry:
    return Entry(
        envelope=signed.envelope,
        job_id=JobId(examples.JOB_ID),
        peer_id=examples.REQUESTER.peer_id,
        contract_id=MessageId(contract_id),
        at_ms=examples.NOW_MS,
    )


@pytest.fixture
def store(tmp_path: Path) -> LedgerStore:
    made = LedgerStore(tmp_path / "ledger.db")
    made.open()
    return made


def kept(store: LedgerStore) -> list[bytes]:
    return [proof for (proof,) in store.db.execute("SELECT proof FROM proof ORDER BY seq")]


@pytest.mark.parametrize("kind", KINDS)
def test_witness_keeps_a_proof_that_verifies_when_a_slot_is_taken(store: LedgerStore, kind: str) -> None:
    first, second = proofs.lie(kind)
    assert store.witness(second.envelope, examples.NOW_MS) is None, "nothing to contradict yet"
    store.write([entry_of(first)], [])
    for _ in range(2):
        store.witness(second.envelope, examples.NOW_MS)
    (proof,) = kept(store)
    assert verify_proof_untrusted(proof).offender == first.signer
    assert store.verify() == 1, "what was only shown is no entry"
    store.close()


def test_posting_keeps_a_proof_when_both_messages_become_entries(store: LedgerStore) -> None:
    first, second = proofs.lie("voucher")
    assert store.write([entry_of(first)], []) == []
    (made,) = store.write([entry_of(second)], [])
    assert made.message_ids == tuple(sorted((first.message_id, second.message_id)))
    assert store.write([entry_of(second)], []) == [], "a repeated posting is no news"
    assert len(kept(store)) == 1 and store.verify() == 2
    store.close()


def test_one_posting_keeps_the_proof_of_its_own_two_messages(store: LedgerStore) -> None:
    assert len(store.write([entry_of(it) for it in proofs.lie("receipt")], [])) == 1
    store.close()


def test_nothing_is_kept_when_messages_do_not_contradict(store: LedgerStore) -> None:
    honest = [proofs.signed("voucher"), proofs.signed("voucher", number=9), proofs.signed("meter")]
    honest += [proofs.signed("voucher", contract_id=bytes(32)), proofs.signed("cancel"), proofs.signed("contract")]
    honest += [proofs.signed("cancel", code="deadline"), proofs.signed("contract", price_max=9_999)]
    honest += [proofs.signed("voucher", signer=examples.STRANGER, cumulative=7)]
    assert store.write([entry_of(it) for it in honest], []) == []
    assert store.witness(proofs.signed("voucher").envelope, examples.NOW_MS) is None
    # Another network's message says nothing about this one's.
    foreign = proofs.signed("voucher", network=examples.OTHER_NETWORK, cumulative=7)
    assert store.witness(foreign.envelope, examples.NOW_MS) is None
    assert kept(store) == []
    store.close()


def test_no_proof_is_left_when_its_posting_fails(store: LedgerStore, tmp_path: Path) -> None:
    first, second = proofs.lie("voucher")
    store.write([entry_of(first)], [])
    bad = Entry(**{name: getattr(entry_of(second), name) for name in Entry.__slots__} | {"at_ms": None})
    with pytest.raises(sqlite3.IntegrityError):
        store.write([entry_of(second), bad, entry_of(proofs.signed("meter"))][1:], [])
    assert kept(store) == [] and store.verify() == 1
    store.close()


async def test_ledger_logs_and_counts_each_proof_once(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    await nursery.start(ledger.run)
    first, second = proofs.lie("meter")
    third = proofs.signed("meter", cumulative=7)
    await ledger.post(entry_of(first))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await ledger.witness(second.envelope, examples.NOW_MS)
        await ledger.post(entry_of(third))
    assert [record.getMessage() for record in caplog.records] == ["equivocation proved"] * 2
    count, (newest, oldest) = await ledger.proofs(10)
    assert (count, newest.kind, oldest.offender) == (2, "meter", first.signer)
