"""``config``: what is set and where it comes from, one setting changed in the file, and reading it again."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, emit, note

if TYPE_CHECKING:
    from node.config_file import Loaded


@click.group(cls=SoukGroup, invoke_without_command=True)
@click.pass_context
def config(ctx: click.Context) -> int:
    """Show, check and change the settings; make a running daemon read them again."""
    return ctx.invoke(show) if ctx.invoked_subcommand is None else Exit.DONE


@config.command("show")
@click.option("--origin", is_flag=True, help="Say of each value where it comes from.")
@click.option("--changed", is_flag=True, help="Leave out what is the default.")
@pass_globals
def show(options: Globals, origin: bool = False, changed: bool = False) -> int:
    """Show every setting: of the daemon that runs, else as it would start in this shell."""
    payload = _settings(options)
    if changed:
        kept = [it for it in payload["settings"] if it["origin"] != "default"]
        payload = {**payload, "settings": kept}
    emit(options, payload, rows="settings", table=lambda found: _toml(found, origin=origin))
    return Exit.DONE


@config.command("get")
@click.argument("name", metavar="SECTION.KEY")
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


@config.command("set")
@click.argument("name", metavar="SECTION.KEY")
@click.argument("value")
@pass_globals
def set_(options: Globals, name: str, value: str) -> int:
    """Change one setting in the home's file; its other lines and comments stay as they are.

    A list is given with commas. Nothing is written when the file would be faulty.
    """
    from node.cli.config_edit import with_setting
    from node.config_file import load_config, read_text, setting

    home = options.home
    text = read_text(home.config_path)
    wanted = setting(load_config(Path(os.devnull), environ={}, settings=[f"{name}={value}"]).config, name)
    home.create()
    _replace(home.config_path, with_setting(text, name, wanted))
    _say_what_next(options, name)
    emit(options, {"schema": 1, "name": name, "value": wanted, "path": str(home.config_path)}, table=_nothing)
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
    if options.api_flag or os.environ.get("SOUK_API") or options.home.is_locked():
        return find_daemon(options).get("/api/v1/config")
    import msgspec

    from node.config_file import is_live, setting, setting_types

    loaded = _load(options, None)
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


def _replace(path: Path, text: str) -> None:
    """Write ``text`` in place of the file, whole or not at all. Raises: ConfigError (it would be faulty)."""
    from node.config_file import load_config
    from node.errors import ConfigError

    # Of a link, what it leads to is replaced.
    place = path.resolve()
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        load_config(fresh, environ={}, required=True)
        if place.exists():
            shutil.copymode(place, fresh)
        fresh.replace(place)
    except ConfigError as exc:
        raise ConfigError([problem.replace(str(fresh), str(path)) for problem in exc.problems]) from exc
    finally:
        fresh.unlink(missing_ok=True)


def _say_what_next(options: Globals, name: str) -> None:
    from node.config_file import is_live

    if options.home.is_locked():
        note(options, "souk config reload makes the daemon follow it" if is_live(name) else "a restart brings it")


def _nothing(_payload: Payload) -> str:
    return ""


def _reloaded(payload: Payload) -> str:
    changed = payload["changed"]
    lines = [f"{it['name']}: {_plain(it['before'])} → {_plain(it['after'])}  ({it['origin']})" for it in changed]
    for it in payload["needs_restart"]:
        wanted = f"until a restart brings {_plain(it['after'])}  ({it['origin']})"
        lines.append(f"{it['name']}: stays {_plain(it['before'])} {wanted}")
    return "\n".join(lines) or "nothing has changed"
