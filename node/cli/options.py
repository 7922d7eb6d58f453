"""The options that every verb takes, before or after its name, and the click classes that add them."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from node.cli.deadline import Deadline, deadline_after
from node.cli.durations import duration_s

if TYPE_CHECKING:
    from node.home import Home

FORMATS: Final = ("table", "json", "jsonl")


@dataclass(slots=True)
class Globals:
    """What the user said about all verbs."""

    home_flag: str | None = None
    api_flag: str | None = None
    output: str = "table"
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    timeout_s: float | None = None
    began_s: float = field(default_factory=time.monotonic)

    @property
    def home(self) -> "Home":
        # An eighth of the time that --help and <TAB> take.
        from node.home import find_home

        return find_home(self.home_flag, os.environ)

    @property
    def has_daemon(self) -> bool:
        """Whether a daemon is there to be asked: the user named one, or one holds the home."""
        return bool(self.api_flag or os.environ.get("SOUK_API") or self.home.is_locked())

    def words(self) -> list[str]:
        """Return the options that say this to a verb run for this one; of which node it asks they say nothing."""
        flags = {"--quiet": self.quiet, "--verbose": self.verbose, "--no-color": self.no_color}
        limit = [] if self.timeout_s is None else ["--timeout", f"{self.timeout_s * 1000:.9f}ms"]
        return ["--output", self.output, *limit, *(name for name, is_on in flags.items() if is_on)]

    @property
    def deadline(self) -> Deadline:
        """Until when the daemon is talked to."""
        return deadline_after(self.timeout_s, self.began_s)

    @property
    def is_plain(self) -> bool:
        """Whether the user wants no colours: ``--no-color``, or ``NO_COLOR`` that is not empty."""
        return self.no_color or bool(os.environ.get("NO_COLOR"))

    def colors(self, stream: TextIO) -> bool:
        """Say whether what goes to ``stream`` may have colours."""
        return not self.is_plain and stream.isatty() and os.environ.get("TERM") != "dumb"


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
    return [
        _option("--home", "home_flag", metavar="DIR", help="Folder of the node (SOUK_HOME)."),
        _option(
            "--api",
            "api_flag",
            metavar="URL",
            help="Address of the daemon (SOUK_API); else what its home says.",
        ),
        _option("-o", "--output", "output", type=click.Choice(FORMATS), help="How to print the result."),
        _option("--json", is_flag=True, callback=_remember_json, help="Short for -o json."),
        _option("-q", "--quiet", "quiet", is_flag=True, help="Say nothing on standard error but errors."),
        _option(
            "-v",
            "--verbose",
            "verbose",
            is_flag=True,
            help="Say on standard error what the daemon is asked, and where.",
        ),
        _option(
            "--timeout",
            "timeout_s",
            metavar="TIME",
            callback=_remember_duration,
            help="Talk to the daemon no longer than this, such as 5 or 2m; then end with 7.",
        ),
        _option(
            "--no-color",
            "no_color",
            is_flag=True,
            help="No colours (NO_COLOR); without a terminal there are none.",
        ),
        _option("--version", is_flag=True, is_eager=True, callback=_show_version, help="Print the version."),
    ]


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # click gives what was typed
    # An option that is not given must not undo one that was given before the verb: hence no defaults here.
    if value:
        setattr(ctx.ensure_object(Globals), str(param.name), value)


def _option(
    *names: str, callback: Callable[[click.Context, click.Parameter, Any], None] = _remember, **settings: Any
) -> click.Option:  # click's own settings, passed through
    return click.Option(names, expose_value=False, callback=callback, **settings)


def _remember_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    _remember(ctx, param, duration_s(ctx, param, value))


def _remember_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Globals).output = "json"


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        # A fifth of the start of every other command.
        from importlib.metadata import version

        click.echo(f"souk {version('souk')}")
        ctx.exit()
