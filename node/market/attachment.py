"""The stream that a provider's job speaks over now, and what its requester may not have received (spec 03, 12).

A stream may be lost and another one may take its place. What was said is kept until a voucher accepts it; that is
at most what the credit allows, since no more is sent without one.
"""

from typing import Final, TypeAlias

import trio

from node.errors import StreamLostError
from node.market.party import Line
from protocol.framing import Frame, OutputFrame
from protocol.receipt import Receipt
from protocol.resume import Resume
from protocol.signed import Signed, SignedMessage
from protocol.voucher import Meter

Said: TypeAlias = OutputFrame | Signed[SignedMessage]

FAREWELL_S: Final = 5.0
"""After an early end, how long the last vouchers may still come in, and our last word may still go out."""


class Attachment:
    """Says things to a requester that may be away. No method raises when the stream is lost: it is let go."""

    def __init__(self, line: Line) -> None:
        self._line: Line | None = line
        self._kept: list[Said] = []
        self.frames_kept_from = 0
        """Output frames before this one have been paid for."""

    @property
    def is_attached(self) -> bool:
        return self._line is not None

    def speaks_over(self, line: Line) -> bool:
        """Return whether this is the stream in use."""
        return self._line is line

    def has_replaced(self, line: Line) -> bool:
        """Return whether another stream is in use now: what still comes over this one is said again there."""
        return self._line is not None and self._line is not line

    def let_go(self) -> None:
        """Say nothing more on the present stream; whoever opened it closes it."""
        self._line = None

    async def say(self, said: Said) -> None:
        """Keep a frame or a message that the ledger holds, and send it if somebody listens."""
        self._kept.append(said)
        await self._send(said)

    async def send(self, frame: Frame) -> None:
        """Send what need not arrive, if somebody listens."""
        if (line := self._line) is not None:
            try:
                await line.send(frame)
            except StreamLostError:
                self._lost(line)

    def accepted(self, meter: int) -> None:
        """Forget what a voucher for this meter shows to have arrived."""
        for index, said in enumerate(self._kept):
            if isinstance(said, Signed) and isinstance(said.message, Meter) and said.message.number == meter:
                paid, self._kept = self._kept[: index + 1], self._kept[index + 1 :]
                self.frames_kept_from += sum(isinstance(it, OutputFrame) for it in paid)
                return

    async def move_to(self, line: Line, own: Signed[Resume], heard: Resume) -> None:
        """Go on over another stream: first our answer, then all that the requester lacks."""
        self._line = line
        await self._send(own)
        if heard.standing == "over":
            return
        for said in tuple(self._kept):
            if _is_missing(said, heard):
                await self._send(said)

    async def finish(self) -> None:
        """Say that nothing more comes."""
        if (line := self._line) is not None:
            with trio.move_on_after(FAREWELL_S):
                try:
                    await line.finish()
                except StreamLostError:
                    self._lost(line)

    async def _send(self, said: Said) -> None:
        if (line := self._line) is not None:
            try:
                await (line.send(said) if isinstance(said, OutputFrame) else line.tell(said))
            except StreamLostError:
                self._lost(line)

    def _lost(self, line: Line) -> None:
        # Another one may have taken its place while we waited.
        if self._line is line:
            self._line = None


def _is_missing(said: Said, heard: Resume) -> bool:
    """Return whether a requester that stands where ``heard`` says lacks this."""
    if isinstance(said, OutputFrame):
        return said.sequence >= heard.frames
    match said.message:
        case Meter() as meter:
            return meter.number > heard.meter
        case Receipt():
            return True
        case _:
            return heard.standing == "offered"
