"""All that happens to a provider's job, in one bounded queue: pieces, messages, streams that end or come back.

One loop in ``provider_job.py`` reads it, so that no two tasks ever change an account.
"""

from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from node.errors import ExecutionError, StreamLostError
from node.execution.interface import Piece
from node.market.party import Line
from protocol import limits
from protocol.contract import Cancel
from protocol.errors import RemoteProtocolError
from protocol.framing import EnvelopeFrame
from protocol.receipt import Closing
from protocol.resume import Resume
from protocol.signed import Signed, SignedMessage
from protocol.task import GenerateOutput
from protocol.tasks.registry import TaskOutput
from protocol.voucher import Voucher

SLACK: Final = 64
"""Room beside the pieces of the answer; a peer that sends more waits."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A signed message of the requester."""

    line: Line
    signed: Signed[SignedMessage]


@dataclass(frozen=True, slots=True)
class LineEnded:
    """The requester finished or the stream broke; ``cause`` is None after an end mark."""

    line: Line
    cause: Exception | None


@dataclass(slots=True, eq=False)
class Attached:
    """The requester is back on another stream."""

    line: Line
    resume: Resume
    was_taken: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    """The job needs this stream no longer."""


@dataclass(frozen=True, slots=True)
class WorkFailed:
    cause: ExecutionError


Event: TypeAlias = Piece | Heard | LineEnded | Attached | WorkFailed


class Inbox:
    """Use it for one job; ``tokens_out_max`` pieces fit into it, so that an engine never waits for a peer."""

    def __init__(self, tokens_out_max: int) -> None:
        self.pieces: trio.MemorySendChannel[Event]
        self.pieces, self._events = trio.open_memory_channel[Event](tokens_out_max + SLACK)

    async def receive(self) -> Event:
        return await self._events.receive()

    def receive_nowait(self) -> Event:
        """Raises: trio.WouldBlock."""
        return self._events.receive_nowait()

    async def put(self, event: Event) -> None:
        """Wait for room. Raises: trio.BrokenResourceError (the job is over)."""
        await self.pieces.send(event)

    async def listen(self, line: Line) -> None:
        """Put in what the requester says on one stream, and how that ended."""
        cause: Exception | None = None
        try:
            try:
                while (frame := await line.receive_untrusted()) is not None:
                    if isinstance(frame, EnvelopeFrame):
                        await self.put(Heard(line, line.read_untrusted(frame, Voucher, Closing, Cancel)))
            except (StreamLostError, RemoteProtocolError) as exc:
                cause = exc
            await self.put(LineEnded(line, cause))
        except trio.BrokenResourceError:
            return

    async def attach(self, line: Line, resume: Resume) -> bool:
        """Offer the job another stream and listen on it until the job needs it no longer.

        Return False if the job was over already: nothing was said then. Cancelling loses the stream.
        """
        attached = Attached(line, resume)
        try:
            await self.put(attached)
        except trio.BrokenResourceError:
            return False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.listen, line)
            await attached.done.wait()
            nursery.cancel_scope.cancel()
        return attached.was_taken

    def close(self) -> None:
        """Take nothing more; streams that still wait here are given back."""
        while True:
            try:
                event = self._events.receive_nowait()
            except trio.WouldBlock:
                break
            if isinstance(event, Attached):
                event.done.set()
        self._events.close()


def take_output(waiting: list[Piece], window_tokens: int) -> TaskOutput:
    """Take the next output frame off ``waiting``, which is not empty.

    Text is joined up to the window's end: a frame costs the same whether it has one token or fifty.
    """
    first = waiting.pop(0)
    if first.result is not None:
        return first.result
    room = min(window_tokens, limits.OUTPUT_TOKENS_PER_FRAME_MAX)
    tokens, text, finish = list(first.tokens), [first.text], first.finish
    while waiting and len(tokens) + len(waiting[0].tokens) <= room:
        piece = waiting.pop(0)
        tokens += piece.tokens
        text.append(piece.text)
        finish = piece.finish
    return GenerateOutput(tokens=tuple(tokens), text="".join(text), finish=finish)
