"""``config set|unset|edit``: the home's file, changed by line or in an editor; nothing faulty takes its place."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

import click

from node.cli.completion import complete_setting
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, emit, note
from node.durable import USUAL, replace_file

EDITORS: Final = ("editor", "nano", "vi")
"""Tried in this order when the user names none."""


@click.command("set", cls=SoukCommand)
@click.argument("name", metavar="SECTION.KEY", shell_complete=complete_setting)
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


@click.command("unset", cls=SoukCommand)
@click.argument("name", metavar="SECTION.KEY", shell_complete=complete_setting)
@pass_globals
def unset(options: Globals, name: str) -> int:
    """Take one setting out of the home's file: its default holds again. Other lines and comments stay."""
    from node.cli.config_edit import is_set, without_setting
    from node.config_file import load_config, read_text, setting_types

    home = options.home
    text = read_text(home.config_path)
    was_set = is_set(text, name)
    if was_set:
        _replace(home.config_path, without_setting(text, name))
        _say_what_next(options, name)
    elif name not in setting_types():
        # Told as everywhere: with what was probably meant.
        load_config(Path(os.devnull), environ={}, settings=[f"{name}="])
    else:
        note(options, f"{name} is not set in {home.config_path}: nothing was changed")
    payload = {"schema": 1, "name": name, "changed": was_set, "path": str(home.config_path)}
    emit(options, payload, table=_nothing)
    return Exit.DONE


@click.command("edit", cls=SoukCommand)
@pass_globals
def edit(options: Globals) -> int:
    """Open the home's file in $VISUAL or $EDITOR, check what comes out, and only then put it into place.

    With a fault it ends with 3: the file stays as it was, and what you wrote waits in a draft beside it, with
    which the next souk config edit goes on.
    """
    from node.config_file import read_text
    from node.errors import ConfigError

    home = options.home
    home.create()
    before = read_text(home.config_path)
    editor = _editor()
    draft = home.config_path.with_name("config.draft.toml")
    if draft.exists():
        note(options, f"going on with {draft}")
    else:
        if not home.config_path.exists():
            note(options, "there is no file yet; souk init writes one with comments")
        draft.write_text(before, encoding="utf-8")
    try:
        _open(editor, draft)
    except CliError:
        if read_text(draft) == before:
            draft.unlink()
        raise
    after = read_text(draft)
    try:
        if after != before:
            _replace(home.config_path, after, shown=draft)
    except ConfigError as exc:
        kept = f"{home.config_path} is as it was; souk config edit goes on with the draft, or delete it"
        raise ConfigError([*exc.problems, kept]) from exc
    draft.unlink()
    if after == before:
        note(options, "nothing was changed")
    elif home.is_locked():
        note(options, "souk config reload makes the daemon follow it, and says what needs a restart")
    payload = {"schema": 1, "path": str(home.config_path), "changed": after != before}
    emit(options, payload, table=_nothing)
    return Exit.DONE


def _editor() -> list[str]:
    """Return the words that start the user's editor. Raises: CliError (there is none)."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    found = shlex.split(named) if named else [it for it in EDITORS if shutil.which(it)][:1]
    if not found:
        raise CliError("there is no editor here: set EDITOR, or use souk config set", Exit.USAGE)
    return found


def _open(editor: list[str], draft: Path) -> None:
    """Wait until the editor has ended. Raises: CliError (it did not start, or failed)."""
    name = shlex.join(editor)
    try:
        done = subprocess.run([*editor, str(draft)], check=False)  # noqa: S603  the user's own words
    except OSError as exc:
        raise CliError(f"the editor {name} cannot be started: {exc.strerror}; set EDITOR", Exit.USAGE) from exc
    if done.returncode:
        raise CliError(
            f"the editor {name} ended with {done.returncode}: nothing was changed; its text is in {draft}"
        )


def _replace(path: Path, text: str, *, shown: Path | None = None) -> None:
    """Write ``text`` in place of the file, whole or not at all.

    Raises: ConfigError (it would be faulty; the faults are told as those of ``shown``, or of the file itself).
    """
    from node.config_file import load_config
    from node.errors import ConfigError

    # Of a link, what it leads to is replaced.
    place = path.resolve()

    def judge(fresh: Path) -> None:
        try:
            load_config(fresh, environ={}, required=True)
        except ConfigError as exc:
            raise ConfigError([it.replace(str(fresh), str(shown or path)) for it in exc.problems]) from exc
        if place.exists():
            shutil.copymode(place, fresh)

    replace_file(place, text.encode(), mode=USUAL, check=judge)


def _say_what_next(options: Globals, name: str) -> None:
    from node.config_file import is_live

    if options.home.is_locked():
        note(options, "souk config reload makes the daemon follow it" if is_live(name) else "a restart brings it")


def _nothing(_payload: Payload) -> str:
    return ""
