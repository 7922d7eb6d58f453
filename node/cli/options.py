"""The options that every verb takes, before or after its name, and the click classes that add them."""

import os
from dataclasses import dataclass
from typing import Any, Final

import click

from node.home import Home, find_home

FORMATS: Final = ("table", "json", "jsonl")


@dataclass(slots=True)
class Globals:
    """What the user said about all verbs."""

    home_flag: str | None = None
    api_flag: str | None = None
    output: str = "table"
    quiet: bool = False

    @property
    def home(self) -> Home:
        return find_home(self.home_flag, os.environ)


pass_globals = click.make_pass_decorator(Globals, ensure=True)


class SoukCommand(click.Command):
    """A command that takes the options of all verbs as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # click's own signature, passed through
        super().__init__(*args, **kwargs)
        self.params.extend(_global_options())


class SoukGroup(click.Group):
    """A group whose commands, and which itself, take the options of all verbs."""

    command_class = SoukCommand
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # click's own signature, passed through
        super().__init__(*args, **kwargs)
        self.params.extend(_global_options())


def _global_options() -> list[click.Parameter]:
    # An option that is not given must not undo one that was given before the verb: hence no defaults here.
    def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # click gives what was typed
        if value:
            setattr(ctx.ensure_object(Globals), str(param.name), value)

    def as_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Globals).output = "json"

    def show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            # A fifth of the start of every other command.
            from importlib.metadata import version

            click.echo(f"souk {version('souk')}")
            ctx.exit()

    return [
        click.Option(
            ["--home", "home_flag"],
            metavar="DIR",
            expose_value=False,
            callback=remember,
            help="Folder of the node (SOUK_HOME).",
        ),
        click.Option(
            ["--api", "api_flag"],
            metavar="URL",
            expose_value=False,
            callback=remember,
            help="Address of the daemon (SOUK_API); else what its home says.",
        ),
        click.Option(
            ["-o", "--output", "output"],
            type=click.Choice(FORMATS),
            expose_value=False,
            callback=remember,
            help="How to print the result.",
        ),
        click.Option(["--json"], is_flag=True, expose_value=False, callback=as_json, help="Short for -o json."),
        click.Option(
            ["-q", "--quiet", "quiet"],
            is_flag=True,
            expose_value=False,
            callback=remember,
            help="Say nothing on standard error but errors.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=show_version,
            help="Print the version.",
        ),
    ]
