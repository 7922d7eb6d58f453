"""The ledger's routes: exact shapes, since scripts read them."""

import json
from dataclasses import dataclass

import pytest
import trio

from node.ledger.audit import Audit
from node.ledger.books import ListedEntry, PeerAccount
from node.ledger.entries import StoredProof
from node.ledger.projection import Difference
from node.ledger.settlement import ListedStatement, SettlementEnvelopes
from protocol.identity import peer_id_to_text
from protocol.units import MessageId, Microcredits, PeerId, UnixMs
from scripts.spec import examples, settlements
from tests.api.fakes import CONTRACT, JOB, PEER, PEER_TEXT, Node, serve_node

ACCOUNT = {
    "peer_id": PEER_TEXT,
    "earned_microcredits": 5,
    "spent_microcredits": 4,
    "unpaid_by_them_microcredits": 3,
    "unpaid_by_us_microcredits": 0,
    "sold": {"closed": 1},
    "bought": {"lost": 2},
    "last_ms": 9,
}
STATEMENT = examples.statement()
REQUESTER = peer_id_to_text(examples.REQUESTER.peer_id)
PROOF = {"equivocation": "voucher", "network": "aa", "messages": []}


@dataclass
class FixedBooks:
    """One of everything."""

    after: int | None = None
    asked: PeerId | None = None

    async def peer_accounts(self) -> list[PeerAccount]:
        return [
            PeerAccount(
                peer_id=PEER,
                earned=Microcredits(5),
                spent=Microcredits(4),
                unpaid_by_them=Microcredits(3),
                unpaid_by_us=Microcredits(0),
                sold={"closed": 1},
                bought={"lost": 2},
                last_ms=UnixMs(9),
            )
        ]

    async def entries_after(self, number: int, limit: int) -> list[ListedEntry]:
        self.after = number
        return [
            ListedEntry(
                number=number + 1,
                at_ms=UnixMs(2),
                kind="meter",
                message_id=b"m" * 32,
                job_id=JOB,
                contract_id=CONTRACT,
                peer_id=PEER,
                signer=PEER,
                tokens_in=3,
                tokens_out=4,
                cumulative=5,
                envelope=b"\x00\xff",
            )
        ]

    async def proofs(self, limit: int) -> tuple[int, list[StoredProof]]:
        ids = (MessageId(b"1" * 32), MessageId(b"2" * 32))
        proof = json.dumps(PROOF).encode()
        kept = StoredProof(offender=PEER, kind="voucher", message_ids=ids, at_ms=UnixMs(7), proof=proof)
        return 1, [kept]

    async def statements(self, peer_id: PeerId | None, limit: int) -> list[ListedStatement]:
        self.asked = peer_id
        theirs = PeerId(STATEMENT.second)
        listed = ListedStatement(
            peer_id=theirs, statement=STATEMENT, is_signed_by_both=True, at_ms=UnixMs(STATEMENT.made_at_ms)
        )
        return [listed][:limit]

    async def settlement_envelopes(self, peer_id: PeerId) -> SettlementEnvelopes | None:
        if peer_id == PEER:
            return None
        chain = settlements.signed_chain()
        envelopes = [(it.envelope.kind, it.envelope.raw) for it in chain]
        return SettlementEnvelopes(number=4, network=examples.NETWORK, envelopes=envelopes)

    async def audit(self) -> Audit:
        found = Difference(where="entry 4", field="hash", stored="00", expected="11")
        return Audit(entries=9, contracts=1, proofs=1, differences=(found,), differences_total=1)


async def served(nursery: trio.Nursery) -> tuple[Node, FixedBooks]:
    node, books = await serve_node(nursery), FixedBooks()
    node.view.books = lambda: books  # type: ignore[attr-defined]
    return node, books


SHAPES = [
    (
        "/api/v1/ledger",
        {
            "schema": 1,
            "earned_microcredits": 5,
            "spent_microcredits": 4,
            "unpaid_by_them_microcredits": 3,
            "unpaid_by_us_microcredits": 0,
            "proofs": 1,
            "peers": [ACCOUNT],
        },
    ),
    (f"/api/v1/ledger/{PEER_TEXT}", {"schema": 1, "peer": ACCOUNT}),
    (
        "/api/v1/ledger/entries?after=3",
        {
            "schema": 1,
            "entries": [
                {
                    "number": 4,
                    "at_ms": 2,
                    "kind": "meter",
                    "message_id": "6d" * 32,
                    "job_id": JOB.hex(),
                    "contract_id": CONTRACT.hex(),
                    "peer_id": PEER_TEXT,
                    "signer": PEER_TEXT,
                    "tokens_in": 3,
                    "tokens_out": 4,
                    "cumulative_microcredits": 5,
                    "envelope": "00ff",
                }
            ],
        },
    ),
    (
        "/api/v1/ledger/audit",
        {
            "schema": 1,
            "holds": False,
            "entries": 9,
            "contracts": 1,
            "proofs": 1,
            "differences": [{"where": "entry 4", "field": "hash", "stored": "00", "expected": "11"}],
            "differences_total": 1,
        },
    ),
    (
        f"/api/v1/ledger/statements?peer={PEER_TEXT}",
        {
            "schema": 1,
            "statements": [
                {
                    "peer_id": REQUESTER,
                    "number": 1,
                    "promised_by_them_microcredits": 151,
                    "promised_by_us_microcredits": 40,
                    "netted_microcredits": 40,
                    "settled_by_them_microcredits": 140,
                    "settled_by_us_microcredits": 40,
                    "signed_by_both": True,
                    "made_at_ms": STATEMENT.made_at_ms,
                }
            ],
        },
    ),
    (
        f"/api/v1/ledger/statements/{REQUESTER}",
        {"schema": 1, "bundle": settlements.bundled(settlements.signed_chain())},
    ),
    (
        "/api/v1/proofs",
        {
            "schema": 1,
            "count": 1,
            "proofs": [
                {
                    "offender": PEER_TEXT,
                    "kind": "voucher",
                    "message_ids": ["31" * 32, "32" * 32],
                    "at_ms": 7,
                    "proof": PROOF,
                }
            ],
        },
    ),
]


@pytest.mark.parametrize(("path", "expected"), SHAPES, ids=[path for path, _ in SHAPES])
async def test_ledger_has_its_golden_shape(nursery: trio.Nursery, path: str, expected: object) -> None:
    node, _books = await served(nursery)
    reply = await node.call("GET", path)
    assert (reply.status, reply.json) == (200, expected)


async def test_entries_begin_at_the_first_when_no_place_is_named(nursery: trio.Nursery) -> None:
    node, books = await served(nursery)
    assert (await node.call("GET", "/api/v1/ledger/entries")).status == 200
    assert books.after == 0


@pytest.mark.parametrize("after", ["-1", "x", "", "9" * 19])
async def test_entries_are_refused_when_the_place_is_no_number(nursery: trio.Nursery, after: str) -> None:
    node, books = await served(nursery)
    reply = await node.call("GET", f"/api/v1/ledger/entries?after={after}")
    assert (reply.status, reply.error["param"], books.after) == (400, "after", None)


@pytest.mark.parametrize(
    ("peer", "status", "code"),
    [("12D3KooWK2orNe9QXT4fXJmvdckcpLZnhnRgLnwvYLbMbziXHP7Z", 404, "peer_not_found"), ("x", 400, "invalid_value")],
)
async def test_account_is_refused_when_the_peer_is_unknown(
    nursery: trio.Nursery, peer: str, status: int, code: str
) -> None:
    node, _books = await served(nursery)
    reply = await node.call("GET", f"/api/v1/ledger/{peer}")
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_settle_proposes_a_statement_and_says_where_the_pair_stands(nursery: trio.Nursery) -> None:
    node, _books = await served(nursery)
    for body, told in (({}, 0), ({"amount_microcredits": 7}, 7)):
        reply = await node.call("POST", "/api/v1/ledger/settle", body={"peer_id": PEER_TEXT, **body})
        assert reply.status == 200 and reply.json == {
            "schema": 1,
            "peer_id": PEER_TEXT,
            "number": 3,
            "statements_new": 1,
            "acknowledged_microcredits": told,
            "promised_by_them_microcredits": 100,
            "promised_by_us_microcredits": 40,
            "settled_by_them_microcredits": 60 + told,
            "settled_by_us_microcredits": 40,
        }


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"peer_id": PEER_TEXT, "amount_microcredits": 13}, 409, "not_settled"),
        ({"peer_id": PEER_TEXT, "amount_microcredits": -1}, 400, "invalid_value"),
        ({"peer_id": PEER_TEXT, "amount": 1}, 400, "invalid_value"),
        ({"peer_id": "x"}, 400, "invalid_value"),
        ({}, 400, "invalid_value"),
    ],
)
async def test_settle_is_refused_when_the_request_is_wrong_or_nothing_can_be_settled(
    nursery: trio.Nursery, body: dict[str, object], status: int, code: str
) -> None:
    node, _books = await served(nursery)
    reply = await node.call("POST", "/api/v1/ledger/settle", body=body)
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_statements_are_not_found_when_the_pair_signed_none(nursery: trio.Nursery) -> None:
    node, _books = await served(nursery)
    reply = await node.call("GET", f"/api/v1/ledger/statements/{PEER_TEXT}")
    assert (reply.status, reply.error["code"]) == (404, "statement_not_found")
