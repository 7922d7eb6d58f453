"""The verbs, each loaded when it is called, and how errors become exit codes."""

import contextlib
import os
import sys
from importlib import import_module
from typing import Any, Final

import click

from node.cli.exits import CliError, Exit
from node.cli.options import SoukGroup
from node.errors import AlreadyRunningError, ConfigError, NodeError

VERBS: Final = {
    "init": ("node.cli.init:init", "Write a configuration and make the node's key."),
    "serve": ("node.cli.serve:serve", "Run the daemon in the foreground."),
    "status": ("node.cli.control:status", "Show what the node is doing."),
    "stop": ("node.cli.control:stop", "Stop the daemon."),
    "drain": ("node.cli.gate:drain", "Take no more jobs of peers; wait until none is left."),
    "resume": ("node.cli.gate:resume", "Take jobs of peers again."),
    "config": ("node.cli.config:config", "Show, check, change and reload the settings."),
    "reload": ("node.cli.config:reload", "Make the daemon read its configuration again."),
    "logs": ("node.cli.logs:logs", "Print the daemon's log, and follow it."),
    "id": ("node.cli.key:identify", "Print this node's peer id, public key and addresses."),
    "key": ("node.cli.key:key", "Show, export and import the node's key."),
    "token": ("node.cli.token:token", "Show or replace the token of this node's API."),
    "open": ("node.cli.open:open_dashboard", "Open the dashboard in a browser."),
    "run": ("node.cli.run:run", "Ask a model of the network and print its answer."),
    "embed": ("node.cli.tasks:embed", "Turn texts into vectors."),
    "classify": ("node.cli.tasks:classify", "Say what is on a picture."),
    "vad": ("node.cli.tasks:vad", "Find the speech in a sound file."),
    "forward": ("node.cli.tasks:forward", "Run tensors through a model that makes no text."),
    "batch": ("node.cli.batch:batch", "Ask a file of requests and keep the answers."),
    "quote": ("node.cli.quote:quote", "Ask peers for their price without buying."),
    "job": ("node.cli.jobs:job", "Order, list, show, follow and cancel jobs."),
    "top": ("node.cli.top:top", "Watch devices, jobs, peers and earnings."),
    "why": ("node.cli.why:why", "Say why this node cannot serve or buy, or what happened to a job."),
    "peers": ("node.cli.peers:peers", "List the peers, look at one, connect, ping, ban."),
    "models": ("node.cli.models:models", "List, add, check and remove models."),
    "devices": ("node.cli.network:devices", "List this node's devices."),
    "bench": ("node.cli.bench:bench", "Measure what a device does now, beside what is advertised."),
    "advert": ("node.cli.network:advert", "Show, withdraw or publish what this node tells the network."),
    "receipts": ("node.cli.receipts:receipts", "List, show and verify receipts and proofs."),
    "ledger": ("node.cli.ledger:ledger", "Show, check, export and rebuild the books."),
    "env": ("node.cli.control:env", "Print the variables that point OpenAI clients here."),
    "doctor": ("node.cli.doctor:doctor", "Check this machine and this home."),
    "demo": ("node.cli.demo:demo", "Start a local network, buy one answer on it, stop it."),
    "compare": ("node.cli.compare:compare", "Compare one central node with the mesh, also when a node dies."),
    "testnet": ("node.cli.testnet:testnet", "Run a network of real nodes on this machine."),
    "systemd": ("node.cli.systemd:systemd", "Print a unit file for this installation."),
    "completion": ("node.cli.completion:completion", "Print a shell's completion script."),
    "wire": ("node.cli.wire:wire", "Read messages of the protocol."),
    "version": ("node.cli.version:version", "Print the version."),
}


class VerbGroup(SoukGroup):
    """Loads a verb's module when the verb is used; the list of verbs needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # what the verb returns
        """Carry out a verb; a reader that has had enough is no failure, and click would make one of it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _drop_output()
            return Exit.DONE

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in VERBS.items()])


@click.command(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def souk() -> None:
    """Run and rent inference, peer to peer.

    Every verb takes the options below as well; `souk VERB --help` shows its own.
    """


def run(arguments: list[str] | None = None) -> None:
    """Carry out one command line and end the process with its code."""
    sys.exit(code_of(arguments))


def code_of(arguments: list[str] | None = None) -> int:
    """Carry out one command line; every error is told on standard error and becomes a code."""
    try:
        result: Any = souk.main(args=arguments, prog_name="souk", standalone_mode=False)  # what the verb returned
        sys.stdout.flush()
        return result if isinstance(result, int) else Exit.DONE
    except click.ClickException as exc:
        exc.show()
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        _tell("souk: interrupted")
        return Exit.INTERRUPTED
    except CliError as exc:
        _tell(f"souk: {exc}")
        return exc.code
    except BrokenPipeError:
        _drop_output()  # the reader has had enough
        return Exit.DONE
    except OSError as exc:
        # A full disk or a forbidden folder on this machine. What the daemon and its rooms meet has become theirs.
        if exc.filename is None:
            _drop_output()
        where = f"{exc.filename}: " if exc.filename is not None else ""
        _tell(f"souk: {where}{exc.strerror or exc}")
        return Exit.FAILED
    except NodeError as exc:
        _tell(str(exc) if isinstance(exc, ConfigError) else f"souk: {exc}")
        return exit_of(exc)


def exit_of(error: NodeError) -> Exit:
    """Return the code of an error that came out of the daemon's rooms."""
    match error:
        case ConfigError():
            return Exit.CONFIG
        case AlreadyRunningError():
            return Exit.LOCKED
        case _:
            return Exit.FAILED


def _drop_output() -> None:
    """Let what is still buffered go nowhere: Python would complain once more while it flushes at exit."""
    with contextlib.suppress(OSError):  # a test's standard output has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
