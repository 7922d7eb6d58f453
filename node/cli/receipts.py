"""``receipts``: what was promised and paid, who contradicted themselves, and proof of both for anybody."""

import json
import sys
from typing import Any, Final

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.lately import SINCE, newer
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, columns, emit, facts, moment, note, short

FILE_BYTES_MAX: Final = 64 << 20
LISTED_MAX: Final = 1000
"""The daemon lists no more."""
LISTED: Final = 50


@click.group(cls=SoukGroup, invoke_without_command=True)
@click.pass_context
def receipts(ctx: click.Context) -> int:
    """List, show and verify receipts and proofs."""
    return ctx.invoke(list_receipts) if ctx.invoked_subcommand is None else Exit.DONE


@receipts.command("ls")
@click.option(
    "--limit",
    type=click.IntRange(1, LISTED_MAX),
    help=f"How many, newest first; else {LISTED}, or with --since as many as there are.",
)
@SINCE
@pass_globals
def list_receipts(options: Globals, limit: int | None = None, since: float | None = None) -> int:
    """List the jobs that were contracted, newest first."""
    if since is None:
        payload = find_daemon(options).get(f"/api/v1/receipts?limit={limit or LISTED}")
    else:
        payload = _since(options, since)
        payload = {**payload, "receipts": payload["receipts"][:limit]}
    emit(options, payload, rows="receipts", table=_receipts_table)
    return Exit.DONE


@receipts.command("show")
@click.argument("contract_id", metavar="ID")
@pass_globals
def show(options: Globals, contract_id: str) -> int:
    """Show the signed messages of one contract; -o json prints the bundle that `verify` reads."""
    emit(options, fetch_bundle(options, contract_id), rows="messages", table=bundle_table)
    return Exit.DONE


@receipts.command("export")
@SINCE
@pass_globals
def export(options: Globals, since: float | None) -> int:
    """Print the bundle of every contract, newest first, one on a line: `verify` reads each."""
    for receipt in _since(options, since)["receipts"]:
        print(json.dumps(fetch_bundle(options, receipt["contract_id"]), ensure_ascii=False))
    return Exit.DONE


def _since(options: Globals, since: float | None) -> dict[str, Any]:  # JSON of the daemon
    """Return the contracts that are not older, and say where the daemon lists no more of them."""
    payload = find_daemon(options).get(f"/api/v1/receipts?limit={LISTED_MAX}")
    found = list(newer(payload["receipts"], since))
    if len(found) == LISTED_MAX:
        note(options, f"these are the newest {LISTED_MAX}; souk receipts show ID has any other")
    return {**payload, "receipts": found}


@receipts.command("verify")
@click.argument("file", metavar="FILE|-")
@pass_globals
def verify(options: Globals, file: str) -> int:
    """Check a bundle, statements or a proof of equivocation, without a daemon: 0 valid, 1 not."""
    text = read_text(file)
    settlement = _bare_settlement(text)
    if settlement is not None:
        chain = verify_settlement(settlement)
        emit(options, {"schema": 1} | chain, table=_settlement_table)
        return Exit.DONE if chain["valid"] else Exit.FAILED
    proof = _bare_proof(text)
    found = verify_bundle(text) if proof is None else verify_proof(proof)
    emit(options, {"schema": 1} | found, table=_verdict_table if proof is None else _proof_table)
    return Exit.DONE if found["valid"] else Exit.FAILED


@receipts.command("proofs")
@pass_globals
def list_proofs(options: Globals) -> int:
    """List the proofs that peers contradicted themselves; -o jsonl prints what `verify` reads, one a line."""
    from node.cli.books import find_books

    emit(options, find_books(options).proofs(), rows="proofs", table=_proofs_table)
    return Exit.DONE


def fetch_bundle(options: Globals, contract_id: str) -> dict[str, Any]:  # JSON, judged by verify_bundle
    """Return the bundle of the contract whose id starts with ``contract_id``, as the daemon keeps it."""
    if not contract_id or any(character not in "0123456789abcdef" for character in contract_id):
        raise CliError(f"expected the first hex digits of a contract's id, got {contract_id!r}", Exit.USAGE)
    payload = find_daemon(options).get(f"/api/v1/receipts/{contract_id}")
    bundle = payload.get("bundle")
    if not isinstance(bundle, dict):
        raise CliError(f"the daemon has no messages of contract {contract_id}", Exit.UNKNOWN)
    return bundle


def read_text(file: str) -> str:
    """Return what a file, or standard input for ``-``, holds."""
    try:
        if file == "-":
            return sys.stdin.read(FILE_BYTES_MAX)
        with open(file, encoding="utf-8") as opened:
            return opened.read(FILE_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as exc:
        raise CliError(f"{file} cannot be read: {exc}") from exc


def _receipts_table(payload: Payload) -> str:
    if not payload["receipts"]:
        return "No contracts yet."
    rows = [
        [
            short(receipt.get("contract_id")),
            moment(receipt.get("at_ms")),
            receipt.get("role"),
            short(receipt.get("peer_id")),
            receipt.get("model"),
            receipt.get("state"),
            receipt.get("tokens_in"),
            receipt.get("tokens_out"),
            receipt.get("cost_microcredits"),
        ]
        for receipt in payload["receipts"]
    ]
    return columns(("CONTRACT", "AT", "WE ARE", "PEER", "MODEL", "STATE", "IN", "OUT", "µc"), rows)


def bundle_table(bundle: Payload) -> str:
    from protocol.errors import RemoteProtocolError
    from protocol.evidence import describe_untrusted

    parts = [f"network {bundle.get('network')}"]
    for message in bundle.get("messages") or ():
        head = f"{message.get('type')}  from {message.get('from')}  {moment(message.get('at_ms'))}"
        try:
            described = describe_untrusted(bytes.fromhex(message["envelope"]))
            parts.append(f"{head}\n{json.dumps(described, indent=2, ensure_ascii=False, default=str)}")
        except (RemoteProtocolError, ValueError, KeyError) as exc:
            parts.append(f"{head}\n  cannot be read: {exc}")
    return "\n".join(parts)


def verify_bundle(text: str) -> dict[str, Any]:  # a JSON object: the verdict
    """Return what a bundle proves: ``valid`` and either the facts or the ``problem``."""
    from protocol.errors import RemoteProtocolError
    from protocol.evidence import verify_bundle_untrusted
    from protocol.identity import peer_id_to_text
    from protocol.units import PeerId

    try:
        proof = verify_bundle_untrusted(_bare_bundle(text))
    except RemoteProtocolError as exc:
        return {"valid": False, "problem": str(exc)}
    contract, receipt, closing = proof.contract, proof.receipt, proof.closing
    return {
        "valid": True,
        "contract_id": proof.contract_id.hex(),
        "requester": peer_id_to_text(PeerId(contract.requester)),
        "provider": peer_id_to_text(PeerId(contract.provider)),
        "model_id": contract.model_id.hex(),
        "accepted_at_ms": proof.accepted_at_ms,
        "price_max": contract.price_max,
        "tokens_in": proof.tokens_in,
        "tokens_out": receipt.tokens_out if receipt else None,
        "cost_microcredits": receipt.cumulative if receipt else None,
        "vouchered_microcredits": proof.vouchered,
        "status": receipt.status if receipt else None,
        "verdict": closing.verdict if closing else None,
        "messages": proof.messages,
        "meters": proof.meters,
    }


def verify_proof(data: bytes) -> dict[str, Any]:  # a JSON object: the verdict
    """Return what a proof of equivocation proves: ``valid`` and either the facts or the ``problem``."""
    from protocol.equivocation import verify_proof_untrusted
    from protocol.errors import RemoteProtocolError
    from protocol.identity import peer_id_to_text

    try:
        proof = verify_proof_untrusted(data)
    except RemoteProtocolError as exc:
        return {"valid": False, "problem": str(exc)}
    return {
        "valid": True,
        "offender": peer_id_to_text(proof.offender),
        "kind": proof.slot.kind,
        "network": proof.network.hex(),
        "message_ids": [message_id.hex() for message_id in proof.message_ids],
    }


def verify_settlement(data: bytes) -> dict[str, Any]:  # a JSON object: the verdict
    """Return what a settlement bundle proves: ``valid`` and either the facts or the ``problem``."""
    from protocol.errors import RemoteProtocolError
    from protocol.identity import peer_id_to_text
    from protocol.settlement import verify_settlement_untrusted
    from protocol.units import PeerId

    try:
        found = verify_settlement_untrusted(data)
    except RemoteProtocolError as exc:
        return {"valid": False, "problem": str(exc)}
    last = found.last
    return {
        "valid": True,
        "network": found.network.hex(),
        "first": peer_id_to_text(PeerId(last.first)),
        "second": peer_id_to_text(PeerId(last.second)),
        "statements": found.statements,
        "number": last.number,
        "first_promised_microcredits": last.first_promised,
        "first_settled_microcredits": last.settled_by(PeerId(last.first)),
        "second_promised_microcredits": last.second_promised,
        "second_settled_microcredits": last.settled_by(PeerId(last.second)),
        "made_at_ms": last.made_at_ms,
    }


def _bare_settlement(text: str) -> bytes | None:
    """Return the settlement bundle in ``text``, also out of the API's answer; None when it is none."""
    from protocol.settlement import is_settlement

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and is_settlement(value.get("bundle")):
        value = value["bundle"]
    return json.dumps(value).encode() if is_settlement(value) else None


def _bare_proof(text: str) -> bytes | None:
    """Return the proof in ``text``, also out of a line that ``proofs`` printed; None when it is no proof."""
    from protocol.equivocation import is_proof

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and is_proof(value.get("proof")):
        value = value["proof"]
    return json.dumps(value).encode() if is_proof(value) else None


def _bare_bundle(text: str) -> bytes:
    """Return the bundle itself when ``text`` is the API's answer around it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.encode("utf-8", "replace")  # the verifier says what is wrong with it
    if isinstance(value, dict) and isinstance(value.get("bundle"), dict):
        return json.dumps(value["bundle"]).encode()
    return text.encode("utf-8", "replace")


def _verdict_table(found: Payload) -> str:
    if not found["valid"]:
        return f"✗ not valid: {found['problem']}"
    head = "✓ every signature, reference and sum holds"
    if found["status"] is None:
        head += "; the provider signed no receipt"
    names = [name for name in found if name not in ("schema", "valid", "accepted_at_ms")]
    pairs = [(name.replace("_", " "), found[name]) for name in names]
    return f"{head}\n{facts([('accepted at', moment(found['accepted_at_ms'])), *pairs])}"


def _proof_table(found: Payload) -> str:
    if not found["valid"]:
        return f"✗ proves nothing: {found['problem']}"
    pairs = [("offender", found["offender"]), ("network", found["network"])]
    pairs += [("message", message_id) for message_id in found["message_ids"]]
    return f"✓ one key signed two {found['kind']} messages for one slot\n{facts(pairs)}"


def _settlement_table(found: Payload) -> str:
    if not found["valid"]:
        return f"✗ not valid: {found['problem']}"
    names = [name for name in found if name not in ("schema", "valid", "made_at_ms")]
    pairs = [(name.replace("_", " "), found[name]) for name in names]
    head = "✓ both signed every statement, and each follows from the one before"
    return f"{head}\n{facts([*pairs, ('made at', moment(found['made_at_ms']))])}"


def _proofs_table(payload: Payload) -> str:
    if not payload["proofs"]:
        return "No proofs: no peer of this node has contradicted itself."
    rows = [
        [short(it.get("offender")), it.get("kind"), moment(it.get("at_ms")), *map(short, it.get("message_ids"))]
        for it in payload["proofs"]
    ]
    return columns(("PEER", "TYPE", "AT", "FIRST", "SECOND"), rows)
