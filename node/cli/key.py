"""``id`` and ``key``: who this node is, and its key as a file to keep or to bring."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, SoukGroup, pass_globals
from node.cli.output import Payload, emit, facts, note
from node.errors import KeyFileError

if TYPE_CHECKING:
    from node.keystore import Ed25519Signer, KeyFile

INPUT_BYTES_MAX: Final = 64 << 10


@click.command(cls=SoukCommand)
@pass_globals
def identify(options: Globals) -> int:
    """Print this node's peer id, public key and addresses: of the daemon, else what the home alone tells."""
    if options.has_daemon:
        status = find_daemon(options).get("/api/v1/status")
        payload = _identity(str(status["peer_id"]), [*(status.get("addresses") or ())], is_running=True)
    else:
        peer_id = _text_of(_key_file(options).read())
        payload = _identity(peer_id, _configured(options, peer_id), is_running=False)
    emit(options, payload, table=_identity_text)
    return Exit.DONE


def _identity(peer_id: str, addresses: list[str], *, is_running: bool) -> dict[str, Any]:  # a JSON object
    from protocol.errors import RemoteProtocolError
    from protocol.identity import peer_id_from_text_untrusted

    try:
        public_key = peer_id_from_text_untrusted(peer_id).hex()
    except RemoteProtocolError as exc:
        raise CliError(
            f"what answers is no souk daemon: expected a peer id, got {peer_id[:60]!r} ({exc})"
        ) from exc
    return {
        "schema": 1,
        "peer_id": peer_id,
        "public_key": public_key,
        "addresses": addresses,
        "running": is_running,
    }


def _configured(options: Globals, peer_id: str) -> list[str]:
    from node.config_file import load_config

    config = load_config(options.home.config_path, environ=os.environ).config
    return [f"{address}/p2p/{peer_id}" for address in config.p2p.listen]


def _identity_text(payload: Payload) -> str:
    name = "address" if payload["running"] else "will listen"
    rows: list[tuple[str, object]] = [("peer id", payload["peer_id"]), ("public key", payload["public_key"])]
    return facts([*rows, *((name, address) for address in payload["addresses"])])


@click.group(cls=SoukGroup)
def key() -> None:
    """Show, export and import the node's key.

    A key is not rotated: the peer id is the public key, and contracts, receipts, statements, what others owe and
    how far they trust this node are bound to it. A new key is a new node. To make one: souk drain, souk ledger
    settle PEER with those that owe, souk stop; then souk --home NEW init, and keep the old home for its books.
    Whoever may have read the key can sign as this node: stop it, and do the same.
    """


@key.command("show")
@pass_globals
def show(options: Globals) -> int:
    """Show the public key, the peer id, and where the private key is; never the private key."""
    from protocol.identity import peer_id_to_text

    key_file = _key_file(options)
    peer_id = key_file.read().peer_id
    payload = {
        "schema": 1,
        "peer_id": peer_id_to_text(peer_id),
        "public_key": peer_id.hex(),
        "file": str(key_file.path),
        "mode": f"{key_file.path.stat().st_mode & 0o777:04o}",
    }
    names = (("peer id", "peer_id"), ("public key", "public_key"), ("file", "file"), ("mode", "mode"))
    emit(options, payload, table=lambda it: facts([(title, it[name]) for title, name in names]))
    return Exit.DONE


@key.command("export")
@click.argument("target", metavar="FILE|-")
@click.option("--force", is_flag=True, help="Replace FILE.")
@pass_globals
def export(options: Globals, target: str, force: bool) -> int:
    """Write the private key to FILE, for its owner alone, or to standard output: PEM, as openssl reads it.

    Whoever has it can sign as this node.
    """
    from node.durable import create_file, replace_file

    signer = _key_file(options).read()
    if target == "-":
        printed = {"schema": 1, "peer_id": _text_of(signer), "pem": signer.pem}
        emit(options, printed, table=lambda it: str(it["pem"]).removesuffix("\n"))
        return Exit.DONE
    path = Path(target)
    try:
        write = replace_file if force else create_file
        write(path, signer.pem.encode())
    except FileExistsError as exc:
        raise CliError(f"{path} exists; --force replaces it", Exit.LOCKED) from exc
    payload = {"schema": 1, "peer_id": _text_of(signer), "file": str(path)}
    emit(options, payload, table=lambda it: f"the key of {it['peer_id']} is in {it['file']}")
    return Exit.DONE


@key.command("import")
@click.argument("source", metavar="FILE|-")
@click.option("--force", is_flag=True, help="Replace the key of this home; a copy of it stays beside.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@pass_globals
def import_(options: Globals, source: str, force: bool, yes: bool, dry_run: bool) -> int:
    """Make the key in FILE this home's: PEM as export writes it, or its 32 bytes alone.

    Ends with 9 when there is another key and no --force, or while the daemon runs.
    """
    from node.keystore import Ed25519Signer, seed_of

    home, key_file = options.home, _key_file(options)
    signer = Ed25519Signer(seed_of(_read(source), source))
    # A dry run makes nothing: with no home there is nothing to hold, either.
    with contextlib.nullcontext() if dry_run and not home.path.exists() else home.locked():
        old = _old(key_file)
        kept = None if old is None else home.path / f"key.{old}"
        payload = {
            "schema": 1,
            "peer_id": _text_of(signer),
            "file": str(key_file.path),
            "replaced": old,
            "kept": None if kept is None else str(kept),
            "dry_run": dry_run,
        }
        if old == payload["peer_id"]:
            payload |= {"replaced": None, "kept": None}
            note(options, "this key is the home's already")
        elif kept is None:
            if not dry_run:
                key_file.put(signer.seed)
        else:
            _may_replace(options, key_file.path, old=str(old), force=force, yes=yes or dry_run)
            if not dry_run:
                key_file.put(signer.seed, kept=kept)
    emit(options, payload, table=_import_text)
    return Exit.DONE


def _may_replace(options: Globals, path: Path, *, old: str, force: bool, yes: bool) -> None:
    """Raise: CliError, or click's Abort, when the key at ``path`` has to stay."""
    if not force:
        raise CliError(f"{path} is the key of {old}; --force replaces it, and keeps a copy beside", Exit.LOCKED)
    if options.home.ledger_path.exists():
        note(
            options,
            f"the books in {options.home.ledger_path} are those of {old}: what it earned and owes stays with that "
            f"key.\n  a home of its own for the other key:   souk --home DIR key import …",
        )
    if not yes and sys.stdin.isatty():
        click.confirm(f"Replace the key of {old}?", abort=True, err=True)


def _import_text(payload: Payload) -> str:
    would = "would be" if payload["dry_run"] else "is"
    text = f"{payload['peer_id']} {would} the key of this home, in {payload['file']}"
    return text if payload["kept"] is None else f"{text}; {payload['replaced']} {would} kept in {payload['kept']}"


def _old(key_file: "KeyFile") -> str | None:
    """Return the peer id of the key that is there; of one that cannot be read, a word; None: there is none."""
    if not os.path.lexists(key_file.path):
        return None
    try:
        return _text_of(key_file.read())
    except KeyFileError:
        return "unreadable"


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read(INPUT_BYTES_MAX)
    try:
        with open(source, "rb") as file:
            return file.read(INPUT_BYTES_MAX)
    except OSError as exc:
        raise CliError(f"{source} cannot be read: {exc.strerror}", Exit.USAGE) from exc


def _key_file(options: Globals) -> "KeyFile":
    from node.keystore import KeyFile

    return KeyFile(options.home.key_path)


def _text_of(signer: "Ed25519Signer") -> str:
    from protocol.identity import peer_id_to_text

    return peer_id_to_text(signer.peer_id)
