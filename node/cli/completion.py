"""``completion``: the script that makes a shell complete souk's verbs, options and models."""

import contextlib
import re
from typing import Final

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import emit

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_SOUK_COMPLETE"
COMPLETION_S: Final = 1.0
"""A <TAB> waits no longer for a daemon."""
_BARE_WORD: Final = re.compile(r"[A-Za-z0-9._-]+")
"""What means itself on a prompt: scripts of shells put it there unquoted, and strangers choose names."""


@click.command(cls=SoukCommand)
@click.argument("shell", type=click.Choice(SHELLS))
@pass_globals
def completion(options: Globals, shell: str) -> int:
    """Print the completion script of SHELL.

    bash and zsh: eval "$(souk completion bash)" in your start file; fish: souk completion fish | source.
    """
    from click.shell_completion import get_completion_class

    from node.cli.app import souk

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(souk, {}, "souk", VARIABLE).source()
    emit(options, {"schema": 1, "shell": shell, "script": script}, table=lambda found: str(found["script"]))
    return Exit.DONE


def complete_model(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of models that begin so, for ``shell_complete``; nothing when no daemon answers."""
    with contextlib.suppress(CliError, OSError):
        models = find_daemon(ctx.ensure_object(Globals)).get("/api/v1/models", wait_s=COMPLETION_S)["models"]
        return [model["name"] for model in models if model["name"].startswith(incomplete)]
    return []


def complete_setting(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of settings that begin so, for ``shell_complete``."""
    from node.config_file import setting_types

    return [name for name in setting_types() if name.startswith(incomplete)]


def complete_job(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of recent jobs that begin so, for ``shell_complete``."""
    with contextlib.suppress(CliError, OSError):
        jobs = find_daemon(ctx.ensure_object(Globals)).get("/api/v1/jobs?limit=50", wait_s=COMPLETION_S)["jobs"]
        return [job["job_id"] for job in jobs if job["job_id"].startswith(incomplete)]
    return []


def complete_peer(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of peers, and names that no shell takes for more, that begin so, for ``shell_complete``."""
    with contextlib.suppress(CliError, OSError):
        peers = find_daemon(ctx.ensure_object(Globals)).get("/api/v1/peers", wait_s=COMPLETION_S)["peers"]
        words = [word for peer in peers for word in (peer.get("name"), peer["peer_id"]) if word]
        return [word for word in words if word.startswith(incomplete) and _BARE_WORD.fullmatch(word)]
    return []
