"""``models``: what the network has and what is loaded (from the daemon), and the store of this home (no daemon).

How models of the store are shown stands in ``shown_models.py``.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, columns, emit, note, short
from node.cli.shown_models import (
    loaded_table,
    model_table,
    shown_decision,
    shown_model,
    store_table,
    told,
)
from node.errors import ModelError, ModelKeptError

if TYPE_CHECKING:
    from node.models.eviction import Decision
    from node.models.store import ModelStore
    from node.models.stored import StoredModel

LOAD_S: Final = 660.0
"""A hundred gigabytes from a slow disk."""
GB: Final = 10**9


@click.group(cls=SoukGroup, invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context) -> int:
    """List, add, check and remove models."""
    return ctx.invoke(list_models) if ctx.invoked_subcommand is None else Exit.DONE


@models.command("ls")
@click.option("--store", is_flag=True, help="What lies in this home's store, asked without the daemon.")
@pass_globals
def list_models(options: Globals, store: bool) -> int:
    """List the models that this node and its peers serve; prices in µc per million tokens."""
    if store:
        found = [shown_model(model) for model in open_store(options).models()]
        emit(options, {"schema": 1, "models": found}, rows="models", table=store_table)
    else:
        emit(options, find_daemon(options).get("/api/v1/models"), rows="models", table=_models_table)
    return Exit.DONE


@models.command("add")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="How the model is called; else the file's, folder's or repository's name.")
@pass_globals
def add(options: Globals, path: Path, name: str | None) -> int:
    """Import a folder with safetensors, one of the Hugging Face cache, or a GGUF file.

    A running daemon serves it after souk models load, another one from its next start.
    """
    decisions: list[Decision] = []
    store = open_store(options, decisions.append)
    before = {model.model_id for model in store.models()}
    note(options, f"importing {path} …")
    model = store.add_folder(path, name) if path.is_dir() else store.add_gguf(path, name)
    for decision in decisions:
        note(options, told(decision))
    if model.model_id in before:
        note(options, f"its files are here already, as {model.name}")
    added = {"schema": 1} | shown_model(model) | {"room": [shown_decision(found) for found in decisions]}
    emit(options, added, table=lambda found: f"{found['name']}  {found['model_id']}")
    return Exit.DONE


@models.command("show")
@click.argument("name", metavar="MODEL")
@pass_globals
def show(options: Globals, name: str) -> int:
    """Show a model of this home's store: its files with their hashes, its source, its pin."""
    payload = {"schema": 1} | shown_model(_find(open_store(options), name), with_files=True)
    emit(options, payload, table=model_table)
    return Exit.DONE


@models.command("verify")
@click.argument("names", nargs=-1, metavar="[MODEL]…")
@pass_globals
def verify(options: Globals, names: tuple[str, ...]) -> int:
    """Hash every file of the models named, or of all; ends with 1 when one is not what it should be."""
    store = open_store(options)
    chosen = [_find(store, name) for name in names] if names else list(store.models())
    results = []
    for model in chosen:
        try:
            store.verify(model)
            results.append({"name": model.name, "ok": True, "problem": None})
        except ModelError as exc:
            results.append({"name": model.name, "ok": False, "problem": str(exc)})
    payload = {"schema": 1, "models": results}
    emit(options, payload, rows="models", table=_verified_table)
    return Exit.DONE if all(result["ok"] for result in results) else Exit.FAILED


@models.command("pin")
@click.argument("name", metavar="MODEL")
@pass_globals
def pin(options: Globals, name: str) -> int:
    """Keep a model whatever room is needed."""
    return _pin(options, name, True)


@models.command("unpin")
@click.argument("name", metavar="MODEL")
@pass_globals
def unpin(options: Globals, name: str) -> int:
    """Let a model be removed again."""
    return _pin(options, name, False)


def _pin(options: Globals, name: str, pinned: bool) -> int:
    store = open_store(options)
    model = store.pin(_find(store, name), pinned)
    said = "pinned: it stays whatever room is needed" if pinned else "not pinned: it goes when its age is due"
    emit(options, {"schema": 1} | shown_model(model), table=lambda found: f"{found['name']} is {said}")
    return Exit.DONE


@models.command("evict")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@pass_globals
def evict(options: Globals, dry_run: bool) -> int:
    """Bring the store down to models.quota_gb: what was used longest ago goes first."""
    store = open_store(options)
    if not store.quota_bytes:
        raise CliError("models.quota_gb is 0: the store has no bound, and nothing is removed", Exit.USAGE)
    decisions = store.plan_room() if dry_run else store.make_room()
    payload = {"schema": 1, "models": [shown_decision(decision) for decision in decisions]}
    emit(options, payload, rows="models", table=lambda _: "\n".join(map(told, decisions)) or "The store is empty.")
    return Exit.DONE


@models.command("load")
@click.argument("name", metavar="MODEL")
@pass_globals
def load(options: Globals, name: str) -> int:
    """Have the daemon serve a model of its store from now on; waits until it answers."""
    note(options, f"loading {name} …")
    payload = find_daemon(options).request("POST", _path(name, "load"), {}, wait_s=LOAD_S)
    emit(options, payload, table=loaded_table)
    return Exit.DONE


@models.command("unload")
@click.argument("name", metavar="MODEL")
@pass_globals
def unload(options: Globals, name: str) -> int:
    """Have the daemon serve a model no more; it stays in the store."""
    payload = find_daemon(options).request("POST", _path(name, "unload"), {}, wait_s=LOAD_S)
    emit(options, payload, table=lambda found: f"{found['name']} is not served any more")
    return Exit.DONE


@models.command("rm")
@click.argument("name", metavar="MODEL")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@pass_globals
def remove(options: Globals, name: str, yes: bool, dry_run: bool) -> int:
    """Delete a model from this home's store; ends with 9 when it is pinned or a daemon serves it."""
    store = open_store(options)
    model = _find(store, name)
    refuse_kept(model)
    note(options, f"{'would remove' if dry_run else 'removing'} {model.name} at {model.folder}")
    if dry_run:
        return Exit.DONE
    if not yes and store.root != options.home.models_path and not sys.stdin.isatty():
        raise CliError(
            f"{store.root} is not this home's own store: other nodes may use it. --yes removes the model there",
            Exit.USAGE,
        )
    if not yes and sys.stdin.isatty():
        click.confirm("Remove it?", abort=True, err=True)
    try:
        store.remove(model)
    except ModelKeptError as exc:
        raise CliError(str(exc), Exit.LOCKED) from exc
    return Exit.DONE


def refuse_kept(model: "StoredModel") -> None:
    """Raise what a removal would be refused with, before anybody is asked."""
    from node.models.holding import held_alone

    try:
        model.refuse_pinned()
        with held_alone(model.folder, model.name):
            pass
    except ModelKeptError as exc:
        raise CliError(str(exc), Exit.LOCKED) from exc


def open_store(options: Globals, on_decision: "Callable[[Decision], None] | None" = None) -> "ModelStore":
    """Return the store that this home's configuration names, with its quota."""
    from node.config_file import load_config
    from node.models.store import ModelStore, log_decision

    home = options.home
    section = load_config(home.config_path, environ=os.environ).config.models
    root = home.models_folder(section.dir)
    return ModelStore(root, quota_bytes=section.quota_gb * GB, on_decision=on_decision or log_decision)


def _find(store: "ModelStore", name: str) -> "StoredModel":
    try:
        return store.find(name)
    except ModelError as exc:
        raise CliError(str(exc), Exit.UNKNOWN) from exc


def _path(name: str, act: str) -> str:
    return f"/api/v1/models/{quote(name, safe='')}/{act}"


def _models_table(payload: Payload) -> str:
    if not payload["models"]:
        return "No models yet: neither here nor at any peer that this node has heard of."
    rows = [
        [
            model.get("name"),
            short(model.get("model_id")),
            ", ".join(model.get("tasks") or ()) or "-",
            "yes" if model.get("local") else "no",
            model.get("peers"),
            model.get("context_tokens"),
            model.get("price_in"),
            model.get("price_out"),
            model.get("tokens_per_s"),
            model.get("delivered_tokens_per_s"),
        ]
        for model in payload["models"]
    ]
    return columns(("MODEL", "ID", "TASK", "HERE", "PEERS", "CONTEXT", "IN", "OUT", "TOK/S", "DELIVERED"), rows)


def _verified_table(payload: Payload) -> str:
    if not payload["models"]:
        return "The store is empty: nothing to check."
    return "\n".join(f"{'✓' if m['ok'] else '✗'} {m['problem'] or m['name']}" for m in payload["models"])
