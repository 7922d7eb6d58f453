"""``serve``: the daemon in the foreground, from its configuration to a clean end."""

import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.exits import Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import facts, note
from node.errors import ConfigError, NodeError
from node.home import Home

if TYPE_CHECKING:
    import trio

    from node.config import Config
    from node.reload import LiveConfig

log = logging.getLogger(__name__)


@click.command(cls=SoukCommand)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A file in place of the home's.")
@click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Set one value; may be repeated."
)
@click.option("--bootstrap", multiple=True, metavar="ADDR", help="A peer to dial first, /ip4/…/p2p/PEER.")
@click.option("--no-worker", is_flag=True, help="Only buy: the same as --set node.role=client.")
@click.option("--ephemeral", is_flag=True, help="A home that is deleted at the end, with a key of its own.")
@click.option("--log-format", type=click.Choice(("auto", "text", "json")), help="How log lines look.")
@pass_globals
def serve(
    options: Globals,
    config_path: Path | None,
    settings: tuple[str, ...],
    bootstrap: tuple[str, ...],
    no_worker: bool,
    ephemeral: bool,
    log_format: str | None,
) -> int:
    """Run the daemon until SIGTERM or Ctrl-C, which end it with 0; a second Ctrl-C does not wait.

    -v is short for --set log.level=debug.
    """
    from node.config_file import ConfigSource

    # First, so that --set log.level wins.
    given = [*(["log.level=debug"] if options.verbose else []), *settings]
    given += [f"p2p.bootstrap={','.join(bootstrap)}"] if bootstrap else []
    given += ["node.role=client"] if no_worker else []
    given += [f"log.format={log_format}"] if log_format else []
    with _home(options, ephemeral=ephemeral) as home:
        source = ConfigSource(
            path=config_path or home.config_path,
            environ=dict(os.environ),
            settings=tuple(given),
            required=config_path is not None,
        )
        loaded = source.load()
        _set_up_logging(loaded.config)
        with home.locked():
            # Only now: it brings trio along, and a daemon that may not run needs none.
            from node.reload import LiveConfig

            live = LiveConfig(source, loaded)
            live.subscribe(_set_up_logging)
            _run(options, home, live)
    return Exit.DONE


def _set_up_logging(config: "Config") -> None:
    from node.logs import set_up_logging

    set_up_logging(config.log.level, form=config.log.format)


@contextmanager
def _home(options: Globals, *, ephemeral: bool) -> Iterator[Home]:
    if not ephemeral:
        yield options.home
        return
    with tempfile.TemporaryDirectory(prefix="souk-") as folder:
        yield Home(Path(folder))


def _run(options: Globals, home: Home, live: "LiveConfig") -> None:
    import trio

    try:
        trio.run(_serve_until_told, options, home, live)
    except BaseExceptionGroup as group:
        # Nurseries wrap what goes through them. A fault of the world is told in one line, a bug with its trace.
        faults, rest = group.split(NodeError)
        if faults is None or rest is not None:
            raise
        raise _first(faults) from group
    finally:
        home.remove_api()


async def _serve_until_told(options: Globals, home: Home, live: "LiveConfig") -> None:
    import trio

    from node.daemon import serve as serve_node

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as watching:
            daemon_scope = trio.CancelScope()
            watching.start_soon(_watch, signals, daemon_scope, live)
            with daemon_scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(serve_node, home, live)
                    note(options, _ready_block(home, live.config))
            watching.cancel_scope.cancel()


async def _watch(signals: AsyncIterator[int], daemon_scope: "trio.CancelScope", live: "LiveConfig") -> None:
    """Reload at SIGHUP; end the daemon at any other signal, the process at a second Ctrl-C."""
    import trio

    stopping = False
    async with trio.open_nursery() as reloads:
        async for number in signals:
            if number == signal.SIGHUP:
                # Beside: a disk that does not answer must not keep the next signal from being heard.
                reloads.start_soon(_reload, live)
                continue
            log.info("stopping", extra={"signal": signal.Signals(number).name})
            if stopping and number == signal.SIGINT:
                # The person has decided not to wait. The workers end with this process.
                os._exit(Exit.INTERRUPTED)
            stopping = True
            daemon_scope.cancel()


async def _reload(live: "LiveConfig") -> None:
    with suppress(ConfigError):  # logged, with every fault; the daemon goes on as it is
        await live.reload()


def _ready_block(home: Home, config: "Config") -> str:
    info = home.read_api()
    pairs: list[tuple[str, object]] = [
        ("ready", config.node.name),
        ("role", config.node.role),
        ("home", home.path),
    ]
    if info is not None:
        pairs += [("peer id", info.peer_id), ("api", info.url)]
        pairs += [("address", address) for address in info.addresses]
    return facts(pairs)


def _first(group: BaseExceptionGroup[NodeError]) -> NodeError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, NodeError)
    return error
