"""``config``: what is set and where it comes from, what may be set, and reading it again.

What changes the file stands in ``config_change.py``.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.client import find_daemon
from node.cli.completion import complete_setting
from node.cli.config_change import edit, set_, unset
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, emit

if TYPE_CHECKING:
    from node.config_file import Loaded


@click.group(cls=SoukGroup, invoke_without_command=True, commands={"set": set_, "unset": unset, "edit": edit})
@click.pass_context
def config(ctx: click.Context) -> int:
    """Show, check and change the settings; make a running daemon read them again."""
    return ctx.invoke(show) if ctx.invoked_subcommand is None else Exit.DONE


@config.command("show")
@click.option("--origin", is_flag=True, help="Say of each value where it comes from.")
@click.option("--changed", is_flag=True, help="Leave out what is the default.")
@click.option("--defaults", is_flag=True, help="Show the defaults, whatever is set.")
@pass_globals
def show(options: Globals, origin: bool = False, changed: bool = False, defaults: bool = False) -> int:
    """Show every setting: of the daemon that runs, else as it would start in this shell."""
    if defaults and changed:
        raise CliError("--defaults are what --changed leaves out: give one of the two", Exit.USAGE)
    payload = _defaults(options) if defaults else _settings(options)
    if changed:
        kept = [it for it in payload["settings"] if it["origin"] != "default"]
        payload = {**payload, "settings": kept}
    emit(options, payload, rows="settings", table=lambda found: _toml(found, origin=origin))
    return Exit.DONE


@config.command("get")
@click.argument("name", metavar="SECTION.KEY", shell_complete=complete_setting)
@pass_globals
def get(options: Globals, name: str) -> int:
    """Print one setting's value; 5 when there is no such setting."""
    found = [it for it in _settings(options)["settings"] if it["name"] == name]
    if not found:
        raise CliError(f"no setting is called {name}; souk config show has them all", Exit.UNKNOWN)
    emit(options, {"schema": 1, **found[0]}, table=lambda it: _plain(it["value"]))
    return Exit.DONE


@config.command("check")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@pass_globals
def check(options: Globals, path: Path | None) -> int:
    """Check a file, the home's unless it is named, and this shell's SOUK_ variables; ends with 3 on any fault."""
    loaded = _load(options, path)
    payload = {"schema": 1, "path": str(path or options.home.config_path), "set": len(loaded.origins)}
    emit(options, payload, table=lambda it: f"{it['path']}: good, {it['set']} values set, the others are defaults")
    return Exit.DONE


@config.command("path")
@pass_globals
def path_(options: Globals) -> int:
    """Print where the home's configuration is, or would be."""
    payload = {"schema": 1, "path": str(options.home.config_path), "exists": options.home.config_path.exists()}
    emit(options, payload, table=lambda it: str(it["path"]))
    return Exit.DONE


@config.command("schema")
@pass_globals
def schema(options: Globals) -> int:
    """Print the JSON Schema of the file, for editors that complete and check TOML by one."""
    from node.cli.config_schema import config_schema

    emit(options, config_schema(), table=lambda found: json.dumps(found, indent=2, ensure_ascii=False))
    return Exit.DONE


@config.command("reload")
@pass_globals
def reload(options: Globals) -> int:
    """Make the daemon read its configuration again; says what changed and what needs a restart.

    Ends with 3 when the new configuration is faulty: nothing has changed then.
    """
    payload = find_daemon(options).request("POST", "/api/v1/reload", {})
    emit(options, payload, rows="changed", table=_reloaded)
    return Exit.DONE


def _settings(options: Globals) -> dict[str, Any]:  # JSON as the daemon gives it
    """Return what the daemon follows, else what it would start with here."""
    if options.has_daemon:
        return find_daemon(options).get("/api/v1/config")
    return _shown(options, _load(options, None))


def _defaults(options: Globals) -> dict[str, Any]:  # JSON in the daemon's form
    from node.config_file import load_config

    return _shown(options, load_config(Path(os.devnull), environ={}))


def _shown(options: Globals, loaded: "Loaded") -> dict[str, Any]:  # JSON in the daemon's form
    import msgspec

    from node.config_file import is_live, setting, setting_types

    return {
        "schema": 1,
        "path": str(options.home.config_path),
        "settings": [
            {
                "name": name,
                "value": msgspec.to_builtins(setting(loaded.config, name)),
                "origin": loaded.origin(name),
                "live": is_live(name),
            }
            for name in setting_types()
        ],
    }


def _load(options: Globals, path: Path | None) -> "Loaded":
    from node.config_file import load_config

    return load_config(path or options.home.config_path, environ=os.environ, required=path is not None)


def _toml(payload: Payload, *, origin: bool) -> str:
    lines: list[str] = []
    section = None
    for it in payload["settings"]:
        name, _, key = it["name"].partition(".")
        if name != section:
            lines += [*([""] if section else []), f"[{name}]"]
            section = name
        line = f"{key} = {json.dumps(it['value'], ensure_ascii=False)}"
        lines.append(f"{line.ljust(44)} # {it['origin']}" if origin else line)
    return "\n".join(lines) or "every setting is the default"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _reloaded(payload: Payload) -> str:
    changed = payload["changed"]
    lines = [f"{it['name']}: {_plain(it['before'])} → {_plain(it['after'])}  ({it['origin']})" for it in changed]
    for it in payload["needs_restart"]:
        wanted = f"until a restart brings {_plain(it['after'])}  ({it['origin']})"
        lines.append(f"{it['name']}: stays {_plain(it['before'])} {wanted}")
    return "\n".join(lines) or "nothing has changed"
