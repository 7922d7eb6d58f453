"""``init``: a commented configuration and the key, before the first start. ``serve`` works without it too."""

import re
from functools import partial
from pathlib import Path
from typing import Final

import click

from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import emit, facts
from node.durable import USUAL, replace_file
from node.home import Home

PROFILES: Final = ("cpu", "gpu", "client", "private", "testnet")
_NAME_LINE: Final = re.compile(r'^name = ".*?"', re.MULTILINE)


@click.command(cls=SoukCommand)
@click.option("--profile", type=click.Choice(PROFILES), default="cpu", help="Which configuration to start from.")
@click.option("--name", metavar="NAME", help="How peers see this node.")
@click.option("--force", is_flag=True, help="Replace the configuration; the key always stays.")
@pass_globals
def init(options: Globals, profile: str, name: str | None, force: bool) -> int:
    """Write a commented configuration and make the node's key."""
    from node.keystore import KeyFile
    from protocol.identity import peer_id_to_text

    home = options.home
    if home.config_path.exists() and not force:
        raise CliError(f"{home.config_path} exists; --force replaces it (the key stays)", Exit.LOCKED)
    home.create()
    _write(home, profile_text(profile, name))
    signer = KeyFile(home.key_path).read_or_create()
    payload = {
        "schema": 1,
        "home": str(home.path),
        "config": str(home.config_path),
        "key": str(home.key_path),
        "peer_id": peer_id_to_text(signer.peer_id),
    }
    emit(options, payload, table=lambda found: facts([(k, found[k]) for k in ("config", "key", "peer_id")]))
    return Exit.DONE


def profile_text(profile: str, name: str | None = None) -> str:
    """Return a profile's file, with the node's name put in."""
    text = (profiles_folder() / f"{profile}.toml").read_text("utf-8")
    # TOML's basic strings escape as JSON's do; a bad name is refused by the loader, with its line.
    return _NAME_LINE.sub(lambda _: f'name = "{name}"', text, count=1) if name else text


def profiles_folder() -> Path:
    """Return ``configs/`` of a checkout, or its copy in an installed package."""
    package = Path(__file__).parent.parent
    packed = package / "configs"
    return packed if packed.is_dir() else package.parent / "configs"


def _write(home: Home, text: str) -> None:
    from node.config_file import load_config

    # Judged before it replaces anything; environment variables are the business of serve.
    judge = partial(load_config, environ={}, required=True)
    replace_file(home.config_path, text.encode(), mode=USUAL, check=judge)
