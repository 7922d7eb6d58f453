"""What the ledgers of a fleet must say together: each verifies, and nothing was settled or paid twice.

Reads the files that the daemons wrote, with SQL of its own; ``settled.py`` judges simulated disks.
"""

import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.errors import LedgerError
from node.home import Home
from node.ledger.audit import audit_file, read_only
from node.testnet.real_fleet import Fleet
from protocol import limits
from protocol.encoding import decode_untrusted
from protocol.envelope import body_of_untrusted


@dataclass(slots=True, kw_only=True)
class _Contract:
    """One contract in one ledger."""

    node: str
    job_id: str
    state: str
    tokens_out: int
    metered: int
    vouchered: int
    tokens_held: int
    """Answer tokens that came with the prompt: where this contract goes on."""


@dataclass(slots=True, kw_only=True)
class Books:
    """What was found; ``faults`` is empty when everything holds."""

    contracts: int = 0
    """Different ones, over all ledgers."""
    entries: int = 0
    states: dict[str, Counter[str]] = field(
        default_factory=lambda: {"provider": Counter(), "requester": Counter()}
    )
    promised: int = 0
    """µc that requesters vouchered, and providers hold vouchers for."""
    received: int = 0
    tokens_bought: dict[str, int] = field(default_factory=dict)
    """Answer tokens by job, over all its contracts."""
    faults: list[str] = field(default_factory=list)


def read_books(fleet: Fleet) -> Books:
    """Audit every ledger and compare both sides of each contract; daemons may run meanwhile."""
    books = Books()
    sides: dict[str, dict[str, _Contract]] = {"provider": {}, "requester": {}}
    for name, node in fleet.nodes.items():
        path = Home(Path(node.home)).ledger_path
        try:
            found = audit_file(path, lambda: None)
            books.entries += found.entries
            books.faults += [f"{name}: {it.where}: {it.field}: {it.stored}" for it in found.differences]
            if found.proofs:
                books.faults.append(f"{name}: {found.proofs} proofs of equivocation among honest nodes")
            with read_only(path) as db:
                _read_contracts(db, name, sides, books)
        except (LedgerError, sqlite3.Error) as exc:
            books.faults.append(f"{name}: {exc}")
    books.contracts = len(sides["provider"].keys() | sides["requester"].keys())
    _compare(sides["provider"], sides["requester"], books)
    _check_jobs(sides["requester"], books)
    return books


def _read_contracts(
    db: sqlite3.Connection, name: str, sides: dict[str, dict[str, _Contract]], books: Books
) -> None:
    ends = "SELECT contract_id, kind, count(*) FROM entry WHERE kind IN ('receipt', 'closing') GROUP BY 1, 2"
    with closing(db.execute(ends)) as found:
        books.faults += [
            f"{name}: contract {contract.hex()} has {count} {kind}s"
            for contract, kind, count in found
            if count > 1
        ]
    rows = db.execute(
        "SELECT c.contract_id, c.job_id, c.role, c.state, c.tokens_out, c.metered, c.vouchered, e.envelope"
        " FROM contract c JOIN entry e ON e.contract_id = c.contract_id AND e.kind = 'contract'"
    )
    for contract, job, role, state, tokens_out, metered, vouchered, raw in rows:
        books.states[role][state] += 1
        if vouchered > metered:
            books.faults.append(f"{name}: contract {contract.hex()} has vouchers above its meters")
        sides[role][contract.hex()] = _Contract(
            node=name,
            job_id=job.hex(),
            state=state,
            tokens_out=tokens_out,
            metered=metered,
            vouchered=vouchered,
            tokens_held=_tokens_held(raw),
        )


def _tokens_held(raw: bytes) -> int:
    body: Any = decode_untrusted(body_of_untrusted(raw), size_max=limits.BODY_BYTES_MAX)  # audited a moment ago
    return int(body["tokens_held"])


def _compare(sold: dict[str, _Contract], bought: dict[str, _Contract], books: Books) -> None:
    books.promised = sum(it.vouchered for it in bought.values())
    books.received = sum(it.vouchered for it in sold.values())
    for contract, theirs in sold.items():
        mine = bought.get(contract)
        if mine is None:
            # It writes before it sends, and a crash keeps what was written.
            books.faults.append(f"{theirs.node} has contract {contract}, which no requester has")
        elif mine.vouchered < theirs.vouchered:
            books.faults.append(
                f"contract {contract}: {theirs.node} holds vouchers for {theirs.vouchered}, {mine.node} promised"
                f" {mine.vouchered}"
            )
        elif theirs.state == "closed" and _sums(mine) != _sums(theirs):
            books.faults.append(f"contract {contract}: {theirs.node} closed on {theirs}, {mine.node} has {mine}")


def _sums(side: _Contract) -> tuple[int, int]:
    return side.tokens_out, side.vouchered


def _check_jobs(bought: dict[str, _Contract], books: Books) -> None:
    """See that each contract of a job goes on where the one before it ended: no token is bought twice."""
    by_job: dict[str, list[_Contract]] = defaultdict(list)
    for it in bought.values():
        if it.tokens_out:
            by_job[it.job_id].append(it)
    for job, contracts in by_job.items():
        has = 0
        for it in sorted(contracts, key=lambda it: (it.tokens_held, it.tokens_out)):
            if it.tokens_held != has:
                books.faults.append(f"job {job}: {has} tokens were there, a contract goes on at {it.tokens_held}")
            has = it.tokens_held + it.tokens_out
        books.tokens_bought[job] = has
