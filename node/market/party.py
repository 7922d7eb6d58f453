"""Who we are in a contract: key, network, ledger, clock, entropy, counts: one value for every conversation."""

from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from node.clock import Entropy, WallClock
from node.errors import StreamLostError
from node.ledger.entries import Entry
from node.ledger.ledger import Ledger
from node.market.journal import Journal
from node.metrics import Metrics
from node.net.interface import Stream
from protocol.equivocation import slot_of_signed
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import FRAME_BYTES_MAX, EnvelopeFrame, Frame, decode_frame_untrusted, encode_frame
from protocol.identity import Signer
from protocol.signed import Signed, SignedMessage, read_untrusted, require_signer_untrusted, sign
from protocol.units import JobId, MessageId, NetworkId, PeerId, UnixMs

S = TypeVar("S", bound=SignedMessage)

SEND_WAIT_S: Final = 30.0
"""A peer that takes nothing for so long is gone; flow control alone would let it hold us for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """This node as requester and provider."""

    signer: Signer
    network: NetworkId
    ledger: Ledger
    wall_clock: WallClock
    entropy: Entropy
    metrics: Metrics = field(default_factory=Metrics)
    """Where conversations count what happens in them; the daemon shows them."""
    journal: Journal = field(default_factory=Journal)
    """Where jobs tell what happens to them; the daemon shows it."""

    @property
    def peer_id(self) -> PeerId:
        return self.signer.peer_id

    def now_ms(self) -> UnixMs:
        return self.wall_clock()

    def sign(self, message: S) -> Signed[S]:
        return sign(message, network=self.network, signer=self.signer)

    def entry(
        self, signed: Signed[SignedMessage], job_id: bytes, peer_id: PeerId, *, contract_id: MessageId | None
    ) -> Entry:
        """Return what the ledger keeps of a message sent or received now."""
        slot = slot_of_signed(signed)
        return Entry(
            envelope=signed.envelope,
            job_id=JobId(job_id),
            peer_id=peer_id,
            contract_id=contract_id,
            at_ms=self.now_ms(),
            slot=None if slot is None else slot.key(),
        )


class Line:
    """A stream as a conversation uses it: typed frames, signed messages, one writer at a time."""

    def __init__(self, stream: Stream, party: Party) -> None:
        self._stream = stream
        self._party = party
        self._writing = trio.Lock()
        self._finished = False

    @property
    def peer_id(self) -> PeerId:
        return self._stream.peer_id

    async def send(self, frame: Frame) -> None:
        """Send one frame. Raises: StreamLostError (also when the peer takes nothing for ``SEND_WAIT_S``)."""
        with trio.move_on_after(SEND_WAIT_S):
            async with self._writing:
                if self._finished:
                    # Whoever waited here for the writer before it: a sign of life behind the last word.
                    raise StreamLostError("our side of the stream has ended")
                await self._stream.send_frame(encode_frame(frame))
            return
        raise await self._give_up()

    async def tell(self, signed: Signed[SignedMessage]) -> None:
        """Send a signed message that the ledger already holds. Raises: StreamLostError."""
        await self.send(EnvelopeFrame(signed.envelope.raw))

    async def finish(self) -> None:
        """Say that nothing more comes. Raises: as ``send``."""
        with trio.move_on_after(SEND_WAIT_S):
            async with self._writing:
                await self._stream.finish()
                self._finished = True
            return
        raise await self._give_up()

    async def _give_up(self) -> StreamLostError:
        # A cancelled send may have left half a frame behind.
        await self._stream.reset()
        return StreamLostError(f"the peer took nothing for {SEND_WAIT_S:.0f} s")

    async def receive_untrusted(self) -> Frame | None:
        """Return the next frame, None at the peer's end mark.

        Raises: RemoteProtocolError (no frame), StreamLostError.
        """
        data = await self._stream.receive_frame(FRAME_BYTES_MAX)
        return None if data is None else decode_frame_untrusted(data)

    async def hear_untrusted(self, *allowed: type[S]) -> Signed[S]:
        """Return the next message, which has to be one of ``allowed`` and the peer's own.

        Raises: RemoteProtocolError (anything else), StreamLostError.
        """
        frame = await self.receive_untrusted()
        if not isinstance(frame, EnvelopeFrame):
            raise RemoteProtocolError("expected a signed message, got another frame", reason=Reason.ORDER)
        return self.read_untrusted(frame, *allowed)

    def read_untrusted(self, frame: EnvelopeFrame, *allowed: type[S]) -> Signed[S]:
        """Return the message in a frame; raises nothing but ``RemoteProtocolError``."""
        signed = read_untrusted(frame.raw, network=self._party.network, allowed=allowed)
        require_signer_untrusted(signed, self.peer_id)
        return signed
