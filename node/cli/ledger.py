"""``ledger``: the books of this node, asked of the daemon, or read from the home's own file when none runs."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from node.cli.books import find_books
from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.lately import SINCE, begin_ms, newer, promised_since
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, columns, emit, facts, moment, money, short

SHOWN_MAX: Final = 20
SETTLE_WAIT_S: Final = 60.0
"""Twice what the daemon gives an exchange."""
FIELDS: Final = (
    "number", "at_ms", "kind", "message_id", "job_id", "contract_id", "peer_id", "signer", "tokens_in",
    "tokens_out", "cumulative_microcredits",
)  # fmt: skip


@click.group(cls=SoukGroup, invoke_without_command=True)
@click.pass_context
def ledger(ctx: click.Context) -> int:
    """Show, check, export, rebuild and settle the books."""
    return ctx.invoke(show) if ctx.invoked_subcommand is None else Exit.DONE


@ledger.command("show")
@click.argument("peer", required=False)
@SINCE
@pass_globals
def show(options: Globals, peer: str | None = None, since: float | None = None) -> int:
    """Show what passed between this node and each peer, or PEER alone; with --since, what was promised since."""
    books = find_books(options)
    if since is not None:
        entries = (it for it in _all_entries(books.entries) if peer in (None, it["peer_id"]))
        emit(options, promised_since(entries, begin_ms(since)), rows="peers", table=_lately_table)
    elif peer is None:
        emit(options, books.accounts(), rows="peers", table=_accounts_table)
    else:
        emit(options, books.account(peer), table=_account_table)
    return Exit.DONE


@ledger.command("peer")
@click.argument("peer")
@SINCE
@pass_globals
@click.pass_context
def peer_(ctx: click.Context, _options: Globals, peer: str, since: float | None) -> int:
    """Show what passed between this node and PEER: the same as ledger show PEER."""
    code: int = ctx.invoke(show, peer=peer, since=since)
    return code


@ledger.command("verify")
@pass_globals
def verify(options: Globals) -> int:
    """Check the file, the hash chain, every signature and every sum: 0 all holds, 1 it does not."""
    found = find_books(options).audit()
    emit(options, found, rows="differences", table=_audit_table)
    return Exit.DONE if found["holds"] else Exit.FAILED


@ledger.command("statements")
@click.argument("peer", required=False)
@click.option("--evidence", is_flag=True, help="Print the bundle with PEER that `souk receipts verify` reads.")
@pass_globals
def statements(options: Globals, peer: str | None, evidence: bool) -> int:
    """List the statements that net what this node and its peers, or PEER, promised each other, newest first."""
    books = find_books(options)
    if not evidence:
        emit(options, books.statements(peer), rows="statements", table=_statements_table)
        return Exit.DONE
    if peer is None:
        raise CliError("--evidence is of one pair: name the PEER", Exit.USAGE)
    print(json.dumps(books.settlement(peer)["bundle"]))
    return Exit.DONE


@ledger.command("settle")
@click.argument("peer")
@click.argument("amount", required=False, type=click.IntRange(1, 1 << 53), default=None)
@pass_globals
def settle(options: Globals, peer: str, amount: int | None) -> int:
    """Propose a statement to PEER now; with AMOUNT, first acknowledge that PEER has paid that many µc.

    An acknowledgement is signed and cannot be taken back. It needs market.settlement = "manual".
    """
    daemon = find_daemon(options)
    body = {"peer_id": peer} | ({} if amount is None else {"amount_microcredits": amount})
    emit(options, daemon.request("POST", "/api/v1/ledger/settle", body, wait_s=SETTLE_WAIT_S), table=_settle_table)
    return Exit.DONE


@ledger.command("export")
@click.option("--format", "form", type=click.Choice(("jsonl", "csv")), default="jsonl", help="One entry a line.")
@click.option("--envelopes", is_flag=True, help="The signed messages as well, in hex.")
@SINCE
@pass_globals
def export(options: Globals, form: str, envelopes: bool, since: float | None) -> int:
    """Write every entry to standard output: ids, kinds, peers and sums; no prompt or answer is in a ledger."""
    fields = (*FIELDS, "envelope") if envelopes else FIELDS
    entries = newer(_all_entries(find_books(options).entries), since)
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(fields)
        for entry in entries:
            writer.writerow([entry.get(name) for name in fields])
    else:
        for entry in entries:
            print(json.dumps({name: entry.get(name) for name in fields}))
    return Exit.DONE


@ledger.command("rebuild")
@pass_globals
def rebuild(options: Globals) -> int:
    """Write the contracts' rows anew from the signed messages; the daemon must be stopped. A copy is kept."""
    from node.ledger.rebuild import rebuild_file

    home = options.home
    if not home.ledger_path.is_file():
        raise CliError(f"{home.ledger_path}: there is no ledger to rebuild", Exit.UNKNOWN)
    with home.locked():
        done = rebuild_file(home.ledger_path)
    payload = {
        "schema": 1,
        "contracts": done.contracts,
        "changed": done.changed,
        "backup": None if done.backup is None else str(done.backup),
    }
    emit(options, payload, table=lambda it: facts([(name, it[name]) for name in it if name != "schema"]))
    return Exit.DONE


def _all_entries(page: Callable[[int], Payload]) -> Iterator[dict[str, Any]]:  # JSON objects, shown
    last = 0
    while entries := page(last)["entries"]:
        yield from entries
        last = entries[-1]["number"]


def _accounts_table(payload: Payload) -> str:
    sums = [
        ("earned", money(payload.get("earned_microcredits"))),
        ("spent", money(payload.get("spent_microcredits"))),
        ("unpaid by them", money(payload.get("unpaid_by_them_microcredits"))),
        ("unpaid by us", money(payload.get("unpaid_by_us_microcredits"))),
        ("proofs", f"{payload.get('proofs')} of equivocation" if payload.get("proofs") else None),
    ]
    if not payload["peers"]:
        return "No contracts yet."
    rows = [
        [
            short(peer.get("peer_id")),
            peer.get("earned_microcredits"),
            peer.get("spent_microcredits"),
            peer.get("unpaid_by_them_microcredits"),
            peer.get("unpaid_by_us_microcredits"),
            _states(peer.get("sold")),
            _states(peer.get("bought")),
            moment(peer.get("last_ms")),
        ]
        for peer in payload["peers"]
    ]
    titles = ("PEER", "EARNED", "SPENT", "THEY OWE", "WE OWE", "SOLD", "BOUGHT", "LAST")
    return f"{columns(titles, rows)}\n\n{facts(sums)}"


def _lately_table(payload: Payload) -> str:
    if not payload["peers"]:
        return f"Nothing was promised since {moment(payload['since_ms'])}."
    rows = [
        [short(it["peer_id"]), it["earned_microcredits"], it["spent_microcredits"], it["contracts"]]
        for it in payload["peers"]
    ]
    sums = [
        ("since", moment(payload["since_ms"])),
        ("earned", money(payload["earned_microcredits"])),
        ("spent", money(payload["spent_microcredits"])),
    ]
    return f"{columns(('PEER', 'EARNED', 'SPENT', 'CONTRACTS'), rows)}\n\n{facts(sums)}"


def _account_table(payload: Payload) -> str:
    peer = payload["peer"]
    return facts(
        [
            ("peer", peer.get("peer_id")),
            ("earned", money(peer.get("earned_microcredits"))),
            ("spent", money(peer.get("spent_microcredits"))),
            ("unpaid by them", money(peer.get("unpaid_by_them_microcredits"))),
            ("unpaid by us", money(peer.get("unpaid_by_us_microcredits"))),
            ("sold", _states(peer.get("sold"))),
            ("bought", _states(peer.get("bought"))),
            ("last contract", moment(peer.get("last_ms"))),
        ]
    )


def _statements_table(payload: Payload) -> str:
    if not payload["statements"]:
        return "No statements yet: souk ledger settle PEER proposes one."
    rows = [
        [
            short(it.get("peer_id")),
            it.get("number"),
            it.get("promised_by_them_microcredits"),
            it.get("settled_by_them_microcredits"),
            it.get("promised_by_us_microcredits"),
            it.get("settled_by_us_microcredits"),
            "both" if it.get("signed_by_both") else "one party",
            moment(it.get("made_at_ms")),
        ]
        for it in payload["statements"]
    ]
    titles = ("PEER", "NUMBER", "THEY PROMISED", "SETTLED", "WE PROMISED", "SETTLED", "SIGNED BY", "MADE")
    return columns(titles, rows)


def _settle_table(payload: Payload) -> str:
    count, number = payload.get("statements_new"), payload.get("number")
    if count:
        head = f"✓ statement {number} is signed by both"
    elif number:
        head = f"nothing is new since statement {number}"
    else:
        head = "there is nothing to settle with this peer yet"
    them, by_them = payload["promised_by_them_microcredits"], payload["settled_by_them_microcredits"]
    us, by_us = payload["promised_by_us_microcredits"], payload["settled_by_us_microcredits"]
    told = payload.get("acknowledged_microcredits")
    return f"{head}\n" + facts(
        [
            ("acknowledged now", money(told) if told else None),
            ("they promised", f"{money(them)}, {money(by_them)} of it settled, {money(them - by_them)} open"),
            ("we promised", f"{money(us)}, {money(by_us)} of it settled, {money(us - by_us)} open"),
        ]
    )


def _states(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted((counts or {}).items())) or "-"


def _audit_table(found: Payload) -> str:
    what = f"{found['entries']:,} entries, {found['contracts']:,} contracts"
    if found["holds"]:
        return f"✓ every hash, signature and sum holds: {what}"
    lines = [f"✗ {found['differences_total']:,} differences in {what}:"]
    lines += [
        f"  {it['where']}: {it['field']} is {it['stored']}, expected {it['expected']}"
        for it in found["differences"][:SHOWN_MAX]
    ]
    if found["differences_total"] > SHOWN_MAX:
        lines.append(f"  and {found['differences_total'] - SHOWN_MAX:,} more; -o json shows up to 1,000")
    return "\n".join(lines)
