"""What is redrawn while the daemon tells of itself: its stream of snapshots, on a screen or as lines.

Nothing here has a clock: the daemon's stream is one, a snapshot a second, and a node that is gone ends it.
"""

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress

from node.cli.client import BrokenOffError, Daemon, Data
from node.cli.exits import CliError, Exit
from node.cli.options import Globals
from node.cli.output import Payload, console, emit, harmless


def snapshots(daemon: Daemon) -> Generator[Payload, None, None]:
    """Yield the node's state once a second. Raises: CliError: the daemon is gone."""
    with closing(daemon.stream("/api/v1/events", None, method="GET")) as events:
        try:
            for event in events:
                if isinstance(event, Data):
                    yield event.value
        except BrokenOffError as exc:  # the only end of this stream: it has no last event
            raise CliError("the daemon ended the stream: it is stopping, or was killed", Exit.UNREACHABLE) from exc


def thinned(shots: Iterator[Payload], every_s: float) -> Generator[Payload, None, None]:
    """Leave out what comes sooner than ``every_s`` after the last one that was shown."""
    next_ms = 0.0
    for shot in shots:
        # Half a second of grace: the daemon's own second is never exact.
        if shot["at_ms"] + 500 >= next_ms:
            next_ms = shot["at_ms"] + every_s * 1000
            yield shot


def show(
    options: Globals, shots: Generator[Payload, None, None], screen: Callable[[Payload], str], *, once: bool
) -> None:
    """Show one snapshot after the other until the user ends it, or the first one where nobody looks.

    ``-o jsonl`` prints every snapshot as a line.
    """
    with closing(shots):
        if options.output == "jsonl" and not once:
            _follow_lines(options, shots, screen)
        elif once or options.output != "table" or not sys.stdout.isatty():
            emit(options, next(shots), table=screen)
        else:
            _follow_screen(options, shots, screen)


def _follow_lines(options: Globals, shots: Iterator[Payload], screen: Callable[[Payload], str]) -> None:
    with suppress(KeyboardInterrupt):
        for shot in shots:
            emit(options, shot, table=screen)
            sys.stdout.flush()


def _follow_screen(options: Globals, shots: Iterator[Payload], screen: Callable[[Payload], str]) -> None:
    from rich.live import Live
    from rich.text import Text

    with (
        suppress(KeyboardInterrupt),
        _quit_by_key(),
        Live(console=console(options), screen=True, auto_refresh=False) as live,
    ):
        for shot in shots:
            # Cell texts were cleaned one by one; this keeps the rest, such as problems, harmless too.
            text = Text(harmless(screen(shot), keep="\n"), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)


@contextmanager
def _quit_by_key() -> Iterator[None]:
    """Make ``q`` do what Ctrl-C does, while standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    main = threading.main_thread().ident
    assert main is not None

    def read() -> None:
        while key := sys.stdin.read(1):
            if key in "qQ":
                signal.pthread_kill(main, signal.SIGINT)
                return

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    # A shell starts what runs in the background with Ctrl-C ignored, and Python leaves it so.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
