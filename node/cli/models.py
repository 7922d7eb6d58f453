"""``models``: what the network has (from the daemon), and the store of this home (no daemon needed)."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, columns, emit, note, short, size
from node.errors import ModelError

if TYPE_CHECKING:
    from node.models.store import ModelStore
    from node.models.stored import StoredModel


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
        found = [_describe(model) for model in _open_store(options).models()]
        emit(options, {"schema": 1, "models": found}, rows="models", table=_store_table)
    else:
        emit(options, find_daemon(options).get("/api/v1/models"), rows="models", table=_models_table)
    return Exit.DONE


@models.command("add")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="How the model is called; else the file's or folder's name.")
@pass_globals
def add(options: Globals, path: Path, name: str | None) -> int:
    """Import a folder with safetensors, or a GGUF file. The daemon serves it after its next start."""
    store = _open_store(options)
    called = name or (path.stem if path.is_file() else path.name).lower()
    note(options, f"importing {path} as {called} …")
    model = store.add_folder(path, called) if path.is_dir() else store.add_gguf(path, called)
    emit(options, {"schema": 1} | _describe(model), table=lambda found: f"{found['name']}  {found['model_id']}")
    return Exit.DONE


@models.command("verify")
@click.argument("names", nargs=-1, metavar="[MODEL]…")
@pass_globals
def verify(options: Globals, names: tuple[str, ...]) -> int:
    """Hash every file of the models named, or of all; ends with 1 when one is not what it should be."""
    store = _open_store(options)
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


@models.command("rm")
@click.argument("name", metavar="MODEL")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@pass_globals
def remove(options: Globals, name: str, yes: bool, dry_run: bool) -> int:
    """Delete a model from this home's store."""
    store = _open_store(options)
    model = _find(store, name)
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
    store.remove(model)
    return Exit.DONE


def _open_store(options: Globals) -> "ModelStore":
    from node.config_file import load_config
    from node.models.store import ModelStore

    home = options.home
    folder = load_config(home.config_path, environ=os.environ).config.models.dir
    return ModelStore(Path(folder).expanduser() if folder else home.models_path)


def _find(store: "ModelStore", name: str) -> "StoredModel":
    try:
        return store.find(name)
    except ModelError as exc:
        raise CliError(str(exc), Exit.UNKNOWN) from exc


def _describe(model: "StoredModel") -> dict[str, object]:
    return {
        "name": model.name,
        "model_id": model.model_id.hex(),
        "context_tokens": model.manifest.context_tokens,
        "parameters": model.parameters,
        "size_bytes": sum(file.size for file in model.manifest.files),
        "source": model.about.source,
    }


def _models_table(payload: Payload) -> str:
    if not payload["models"]:
        return "No models yet: neither here nor at any peer that this node has heard of."
    rows = [
        [
            model.get("name"),
            short(model.get("model_id")),
            "yes" if model.get("local") else "no",
            model.get("peers"),
            model.get("context_tokens"),
            model.get("price_in"),
            model.get("price_out"),
            model.get("tokens_per_s"),
        ]
        for model in payload["models"]
    ]
    return columns(("MODEL", "ID", "HERE", "PEERS", "CONTEXT", "IN", "OUT", "TOK/S"), rows)


def _store_table(payload: Payload) -> str:
    if not payload["models"]:
        return "The store is empty: souk models add PATH."
    rows = [
        [m["name"], short(m["model_id"]), m["context_tokens"], m["parameters"], size(m["size_bytes"]), m["source"]]
        for m in payload["models"]
    ]
    return columns(("MODEL", "ID", "CONTEXT", "PARAMETERS", "SIZE", "SOURCE"), rows)


def _verified_table(payload: Payload) -> str:
    if not payload["models"]:
        return "The store is empty: nothing to check."
    return "\n".join(f"{'✓' if m['ok'] else '✗'} {m['problem'] or m['name']}" for m in payload["models"])
