"""A peer with a good key and bad manners: it says whatever bytes it is given on any stream of a real node."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import trio

from node.errors import NodeError, StreamLostError
from node.keystore import Ed25519Signer
from node.net.interface import RecordRules, Stream
from node.net.libp2p import LibP2pNetwork
from protocol.advert import Advert
from protocol.contract import Contract, hash_input
from protocol.envelope import network_id
from protocol.framing import (
    ADVERT_PROTOCOL,
    FRAME_BYTES_MAX,
    JOB_PROTOCOL,
    EnvelopeFrame,
    OutputFrame,
    decode_frame_untrusted,
    encode_frame,
    split_input,
)
from protocol.messages import MESSAGE_TYPES
from protocol.offer import Ask
from protocol.price import price_bound
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed, SignedMessage, read_untrusted, sign
from protocol.task import GenerateInput, Sampling, encode_input
from protocol.units import PeerId
from protocol.voucher import Meter, Voucher

NETWORK: Final = network_id({"name": "testnet"})
SALT: Final = b"s" * 16
DATA: Final = encode_input(GenerateInput(prompt="Say hello."))
ANSWER_S: Final = 40.0
RESET = "reset"


def envelope(signed: Signed[Any]) -> bytes:  # Any: whatever type
    """Return the frame that carries a message."""
    return encode_frame(EnvelopeFrame(signed.envelope.raw))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Bought:
    """One job that went well, as it went over the wire."""

    contract: Signed[Contract]
    opening: list[bytes]
    """The frames that made the provider take it."""
    later: list[bytes]
    """What the requester said afterwards."""
    outputs: int = 0


@dataclass
class HostilePeer:
    """Made once, then ``await nursery.start(peer.network.run)``."""

    seed: bytes
    network: LibP2pNetwork = field(init=False)
    signer: Ed25519Signer = field(init=False)
    served: list[bytes] = field(default_factory=list)
    """Frames that it answers an advert exchange with."""

    def __post_init__(self) -> None:
        self.signer = Ed25519Signer(self.seed)
        self.network = LibP2pNetwork(self.seed, listen=("/ip4/127.0.0.1/tcp/0",), network=NETWORK)
        self.network.serve(ADVERT_PROTOCOL, self._tell)
        self.topic = f"souk/{NETWORK.hex()[:16]}/adverts/1"
        self.network.subscribe(self.topic, lambda _peer, _data: True)
        # Our own rules judge what we put ourselves: anything goes.
        self.network.keep_records(RecordRules(namespace="cap", is_valid=lambda _k, _v: True, rank=len))

    async def _tell(self, stream: Stream) -> None:
        for frame in self.served:
            await stream.send_frame(frame)
        await stream.finish()

    def sign(self, message: SignedMessage, *, network: bytes = NETWORK) -> Signed[SignedMessage]:
        return sign(message, network=network, signer=self.signer)  # type: ignore[arg-type]  # bytes of a network id

    async def say(self, to: PeerId, protocol: str, *frames: bytes) -> str:
        """Send frames and the end mark; return the type of the last message heard, "" for none, or RESET."""
        heard = ""
        with trio.fail_after(ANSWER_S):
            try:
                async with await self.network.open_stream(to, protocol) as stream:
                    for frame in frames:
                        await stream.send_frame(frame)
                    await stream.finish()
                    while (data := await stream.receive_frame(FRAME_BYTES_MAX)) is not None:
                        frame_ = decode_frame_untrusted(data)
                        if isinstance(frame_, EnvelopeFrame):
                            heard = read(frame_).envelope.kind
            except (StreamLostError, NodeError):
                return RESET
        return heard

    async def advert_of(self, peer_id: PeerId) -> Signed[Advert]:
        """Return what the node itself says it serves."""
        async with await self.network.open_stream(peer_id, ADVERT_PROTOCOL) as stream:
            await stream.finish()
            while (data := await stream.receive_frame(FRAME_BYTES_MAX)) is not None:
                frame = decode_frame_untrusted(data)
                assert isinstance(frame, EnvelopeFrame)
                signed: Any = read(frame)
                if signed.signer == peer_id:
                    return signed  # type: ignore[no-any-return]
        raise AssertionError("the node told no advert of its own")

    def ask(self, advert: Signed[Advert], **changes: Any) -> Ask:  # Any: field values
        ask = Ask(
            job_id=self.seed[:16],
            provider=advert.signer,
            sent_at_ms=now_ms(),
            end_by_ms=now_ms() + 60_000,
            task="generate",
            model_id=advert.message.offers[0].model_id,
            input_bytes=len(DATA),
            tokens_in_max=100,
            tokens_out_max=16,
            price_max=1 << 40,
        )
        return msgspec.structs.replace(ask, **changes)

    def contract(self, advert: Signed[Advert], **changes: Any) -> Contract:  # Any: field values
        offer, made = advert.message.offers[0], now_ms()
        bound = price_bound(offer.prices, tokens_in_max=100, tokens_out_max=16, duration_ms_max=60_000)
        contract = Contract(
            version=1,
            job_id=trio.current_time().hex().encode()[-16:].rjust(16, b"j"),
            requester=self.signer.peer_id,
            provider=advert.signer,
            answers=advert.message_id,
            made_at_ms=made,
            accept_by_ms=made + 5_000,
            start_by_ms=made + 30_000,
            end_by_ms=made + 60_000,
            task="generate",
            model_id=offer.model_id,
            dtype=offer.dtype,
            sampling=Sampling(),
            input_hash=hash_input(SALT, DATA),
            input_bytes=len(DATA),
            tokens_held=0,
            tokens_in_max=100,
            tokens_out_max=16,
            prices=offer.prices,
            price_max=bound,
            credit=min(bound, advert.message.credit),
            voucher_window_tokens=8,
        )
        return msgspec.structs.replace(contract, **changes)

    async def buy(self, advert: Signed[Advert]) -> Bought:
        """Buy an answer as an honest requester would, keeping every frame that was sent."""
        contract: Any = self.sign(self.contract(advert))
        opening = [envelope(contract), *map(encode_frame, split_input(SALT, DATA))]
        bought = Bought(contract, opening, [])
        async with await self.network.open_stream(advert.signer, JOB_PROTOCOL) as stream:
            for frame in opening:
                await stream.send_frame(frame)
            with trio.fail_after(ANSWER_S):
                await self._pay(stream, bought)
        return bought

    async def _pay(self, stream: Stream, bought: Bought) -> None:
        contract_id, promised, receipt_id = bought.contract.message_id, 0, b""
        while (data := await stream.receive_frame(FRAME_BYTES_MAX)) is not None:
            frame = decode_frame_untrusted(data)
            bought.outputs += isinstance(frame, OutputFrame)
            if not isinstance(frame, EnvelopeFrame):
                continue
            signed: Any = read(frame)
            message = signed.message
            if isinstance(message, Meter):
                promised = message.cumulative
                number = 1 + len(bought.later)
                answer: SignedMessage = Voucher(
                    contract_id=contract_id, number=number, cumulative=promised, meter=message.number
                )
            elif isinstance(message, Receipt):
                receipt_id = signed.message_id
                answer = Closing(contract_id=contract_id, receipt_id=receipt_id, verdict="ok", cumulative=promised)
            else:
                assert message.kind == "accept", message
                continue
            bought.later.append(envelope(self.sign(answer)))
            await stream.send_frame(bought.later[-1])
            if receipt_id:
                await stream.finish()
        assert receipt_id, "the provider finished without a receipt"


def read(frame: EnvelopeFrame) -> Signed[SignedMessage]:
    return read_untrusted(frame.raw, network=NETWORK, allowed=tuple(MESSAGE_TYPES.values()))
