"""Peers that break one rule at a time: they speak their part honestly except where a test says otherwise."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import trio

from node.market.party import Line
from node.net.interface import Stream
from protocol.account import ProviderAccount
from protocol.contract import Accept, Cancel, Contract, hash_input
from protocol.framing import JOB_PROTOCOL, InputFrame, OutputFrame, split_input
from protocol.price import price_bound
from protocol.receipt import Closing, Receipt, ReceiptStatus
from protocol.signed import Signed, SignedMessage
from protocol.task import FinishReason, GenerateInput, GenerateOutput, Sampling, encode_input
from protocol.units import MS_PER_S, MessageId, UnixMs
from protocol.voucher import Meter, Voucher
from tests.market.world import Node

SALT = b"s" * 16
LONGEST_WAIT_S = 120
DATA = encode_input(GenerateInput(prompt="tell me a story"))

M = TypeVar("M", bound=SignedMessage)


class RogueProvider:
    """One job, from the provider's side. ``changes`` replace fields of a message before it is signed."""

    def __init__(self, node: Node, line: Line) -> None:
        self._node = node
        self._line = line
        self._began = trio.current_time()

    async def take(self) -> Signed[Contract]:
        """Read the contract and its whole input."""
        self.contract = await self._line.hear_untrusted(Contract)
        left, salt = self.contract.message.input_bytes, b""
        while left > 0 or not salt:
            frame = await self._line.receive_untrusted()
            assert isinstance(frame, InputFrame)
            if frame.sequence == 0:
                salt = frame.data
            else:
                left -= len(frame.data)
        self._began = trio.current_time()
        self._account = ProviderAccount(self.contract.message_id, self.contract.message, salt=salt, tokens_in=4)
        return self.contract

    async def tell(self, message: M, **changes: Any) -> Signed[M]:  # any field of the message
        signed = self._node.party.sign(msgspec.structs.replace(message, **changes))
        await self._line.tell(signed)
        return signed

    async def accept(self, **changes: Any) -> None:  # as tell
        message = Accept(
            contract_id=self.contract.message_id, accepted_at_ms=self._node.party.now_ms(), tokens_in=4
        )
        await self.tell(message, **changes)

    async def output(self, count: int, finish: FinishReason | None = None) -> None:
        output = GenerateOutput(tokens=tuple(range(count)), text="x " * count, finish=finish)
        await self._line.send(OutputFrame(*self._account.output(output)))

    async def meter(self, *, final: bool = False, **changes: Any) -> None:  # as tell
        elapsed_ms = int((trio.current_time() - self._began) * MS_PER_S)
        await self.tell(self._account.meter(elapsed_ms, final=final), **changes)

    async def voucher(self) -> Voucher:
        signed = await self._line.hear_untrusted(Voucher)
        self._account.voucher_untrusted(signed.message)
        return signed.message

    async def receipt(self, said: ReceiptStatus = "complete", **changes: Any) -> None:  # as tell
        now_ms = self._node.party.now_ms()
        message = self._account.receipt(said, profile="rogue", started_ms=now_ms, ended_ms=UnixMs(now_ms + 1))
        await self.tell(message, **changes)

    async def heard(self) -> SignedMessage | None:
        """Return the requester's next message, None when it has finished."""
        frame = await self._line.receive_untrusted()
        if frame is None:
            return None
        return self._line.read_untrusted(frame, Voucher, Closing, Cancel).message  # type: ignore[arg-type]


def honest_contract(buyer: Node, seller: Node, **changes: Any) -> Signed[Contract]:  # any of its fields
    """Return a contract that ``seller`` would take, except for ``changes``."""
    model, now_ms, prices = seller.executor.served[0], buyer.party.now_ms(), seller.provider.prices
    tokens_out_max = changes.get("tokens_out_max", 64)
    bound = price_bound(prices, tokens_in_max=100, tokens_out_max=tokens_out_max, duration_ms_max=60_000)
    contract = Contract(
        version=1,
        job_id=buyer.party.entropy(16),
        requester=buyer.peer_id,
        provider=seller.peer_id,
        answers=bytes(32),
        made_at_ms=now_ms,
        accept_by_ms=now_ms + 5_000,
        start_by_ms=now_ms + 30_000,
        end_by_ms=now_ms + 60_000,
        task="generate",
        model_id=model.model_id,
        dtype=model.dtype,
        sampling=Sampling(),
        input_hash=hash_input(SALT, DATA),
        input_bytes=len(DATA),
        tokens_held=0,
        tokens_in_max=100,
        tokens_out_max=64,
        prices=prices,
        price_max=bound,
        credit=bound,
        voucher_window_tokens=seller.market.voucher_window_tokens,
    )
    return buyer.party.sign(msgspec.structs.replace(contract, **changes))


class RogueRequester:
    """One job, from the requester's side."""

    def __init__(self, node: Node, stream: Stream) -> None:
        self._node = node
        self.stream = stream
        self.line = Line(stream, node.party)
        self.outputs = 0
        self.meters: list[Meter] = []
        self._vouchers = 0

    async def offer(self, contract: Signed[Contract], *, salt: bytes = SALT, data: bytes = DATA) -> None:
        self.contract = contract
        await self.line.tell(contract)
        for frame in split_input(salt, data):
            await self.line.send(frame)

    async def hear(self, *kinds: type[M]) -> Signed[M]:
        """Return the next message of these kinds; meters and outputs on the way are counted."""
        ends_at = trio.current_time() + LONGEST_WAIT_S
        while True:
            # Signs of life would go on for ever, in no time at all.
            with trio.fail_at(ends_at):
                frame = await self.line.receive_untrusted()
            assert frame is not None, "the provider finished early"
            if isinstance(frame, OutputFrame):
                self.outputs += 1
            elif hasattr(frame, "raw"):
                signed: Any = self.line.read_untrusted(frame, Meter, Receipt, Accept, *kinds)  # type: ignore[type-var, arg-type]
                if isinstance(signed.message, Meter):
                    self.meters.append(signed.message)
                if isinstance(signed.message, kinds):
                    return signed  # type: ignore[no-any-return]

    async def pay(self, **changes: Any) -> None:  # any field of a voucher
        self._vouchers += 1
        meter = self.meters[-1]
        voucher = Voucher(
            contract_id=self.contract.message_id,
            number=self._vouchers,
            cumulative=meter.cumulative,
            meter=meter.number,
        )
        await self.line.tell(self._node.party.sign(msgspec.structs.replace(voucher, **changes)))

    async def close(self, receipt_id: MessageId, cumulative: int) -> None:
        closing = Closing(
            contract_id=self.contract.message_id, receipt_id=receipt_id, verdict="ok", cumulative=cumulative
        )
        await self.line.tell(self._node.party.sign(closing))


@asynccontextmanager
async def job_line(buyer: Node, seller: Node) -> AsyncIterator[RogueRequester]:
    """Open a job stream on which the test speaks for ``buyer``."""
    if seller.peer_id not in buyer.network.inner.connected_peers():
        await buyer.network.inner.dial(seller.network.addresses[0])
    async with await buyer.network.inner.open_stream(seller.peer_id, JOB_PROTOCOL) as stream:
        yield RogueRequester(buyer, stream)
