"""Both sides' running account of one contract: frames, tokens, meters, vouchers, receipt (spec 05).

Tokens are the units of the contract's task, whichever it is (spec 04).
Each side computes every number itself; the requester refuses what differs. A refused message changes nothing.
Neither account reads a clock: durations and times are arguments.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from protocol import limits
from protocol.contract import Contract
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.price import cost
from protocol.receipt import Closing, Receipt, ReceiptStatus
from protocol.task import FinishReason
from protocol.tasks.registry import TaskOutput, decode_task_output_untrusted, encode_task_output
from protocol.units import MessageId, Microcredits, UnixMs
from protocol.voucher import Meter, Voucher

OUTPUT_DOMAIN: Final = b"souk.output.v1\x00"
# A provider starts its clock after it has read the contract, a requester when it sends it: an honest meter can
# only be ahead by what two monotonic clocks drift apart in an hour.
DURATION_SLACK_MS: Final = 250


def first_link(salt: bytes) -> bytes:
    """Return the chain before any output. The salt keeps a stored chain from confirming a guessed answer."""
    return sha256(OUTPUT_DOMAIN + salt).digest()


def next_link(link: bytes, sequence: int, data: bytes) -> bytes:
    """Return the chain after output frame ``sequence``: ``h' = sha256(h | u32 seq | data)``."""
    return sha256(link + sequence.to_bytes(4, "big") + data).digest()


class Delivered:
    """What has crossed the wire as output: the same count on both sides, or somebody lies."""

    def __init__(self, contract: Contract, salt: bytes) -> None:
        self._contract = contract
        self.frames = 0
        self.tokens = 0
        self.link = first_link(salt)
        self.finish: FinishReason | None = None

    def add(self, data: bytes, output: TaskOutput) -> None:
        """Count one output frame. Raises: ValueError (over the contract's bound, or after the last one)."""
        if self.finish is not None:
            raise ValueError("output after the answer was finished")
        if not output.units:
            raise ValueError("an output frame without tokens")
        if self.tokens + output.units > self._contract.tokens_out_max:
            raise ValueError(f"more than the {self._contract.tokens_out_max} tokens agreed")
        self.link = next_link(self.link, self.frames, data)
        self.frames += 1
        self.tokens += output.units
        self.finish = output.finish

    def cost(self, tokens_in: int, duration_ms: int) -> Microcredits:
        """Return what is owed by the contract's prices."""
        return cost(
            self._contract.prices,
            tokens_in=tokens_in,
            tokens_out=self.tokens,
            duration_ms=duration_ms,
            price_max=self._contract.price_max,
        )


class ProviderAccount:
    """The provider's side: counts output, issues meters and the receipt, takes vouchers."""

    def __init__(self, contract_id: MessageId, contract: Contract, *, salt: bytes, tokens_in: int) -> None:
        self._id = contract_id
        self._contract = contract
        self._tokens_in = tokens_in
        self.delivered = Delivered(contract, salt)
        self.metered = Microcredits(0)
        self.meters = 0
        self.vouchered = Microcredits(0)
        self.vouchers = 0
        self._meter_vouchered = 0
        self._tokens_metered = 0
        self._sums: list[Microcredits] = []

    def restore(self, meters: Iterable[Meter], vouchers: Iterable[Voucher]) -> None:
        """Take over what was metered and promised before a stop, from messages in the order of their numbers.

        The output itself is gone: nothing more can be delivered or metered.
        """
        for meter in meters:
            self.meters = meter.number
            self.metered = Microcredits(meter.cumulative)
            self._sums.append(self.metered)
        for voucher in vouchers:
            self.vouchers = voucher.number
            self.vouchered = Microcredits(voucher.cumulative)
            self._meter_vouchered = voucher.meter

    def output(self, output: TaskOutput) -> tuple[int, bytes]:
        """Count an output and return (sequence, payload) of its frame.

        Raises: LocalProtocolError (it breaks the contract: our engine's fault).
        """
        data = encode_task_output(output)
        sequence = self.delivered.frames
        try:
            self.delivered.add(data, output)
        except ValueError as exc:
            raise LocalProtocolError(str(exc), reason=Reason.MEANING) from exc
        return sequence, data

    def window_is_full(self) -> bool:
        """Return whether a meter is due."""
        return self.delivered.tokens - self._tokens_metered >= self._contract.voucher_window_tokens

    def has_unmetered(self) -> bool:
        """Return whether output was delivered that no meter counts yet."""
        return self.delivered.tokens > self._tokens_metered

    def must_pause(self, duration_ms: int) -> bool:
        """Return whether another window would put more than the agreed credit at risk."""
        ahead = cost(
            self._contract.prices,
            tokens_in=self._tokens_in,
            tokens_out=self.delivered.tokens + self._contract.voucher_window_tokens,
            duration_ms=duration_ms,
            price_max=self._contract.price_max,
        )
        return ahead - self.vouchered > self._contract.credit and self.metered > self.vouchered

    def next_window(self, duration_ms: int) -> Microcredits:
        """Return what the whole contract costs once one more window is delivered: the sum that exposure counts."""
        window_ends = self.delivered.tokens + self._contract.voucher_window_tokens
        return cost(
            self._contract.prices,
            tokens_in=self._tokens_in,
            tokens_out=min(window_ends, self._contract.tokens_out_max),
            duration_ms=duration_ms,
            price_max=self._contract.price_max,
        )

    def meter(self, duration_ms: int, *, final: bool) -> Meter:
        """Return the next meter: to be stored, then sent."""
        self.metered = self.delivered.cost(self._tokens_in, duration_ms)
        self.meters += 1
        self._sums.append(self.metered)
        self._tokens_metered = self.delivered.tokens
        return Meter(
            contract_id=self._id,
            number=self.meters,
            tokens_in=self._tokens_in,
            tokens_out=self.delivered.tokens,
            duration_ms=duration_ms,
            cumulative=self.metered,
            output_hash=self.delivered.link,
            final=final,
        )

    def voucher_untrusted(self, voucher: Voucher) -> None:
        """Take a voucher, or refuse it with ``RemoteProtocolError``: it lowers, repeats, or exceeds the meter."""
        if voucher.contract_id != self._id:
            raise RemoteProtocolError("voucher: for another contract", reason=Reason.MEANING)
        if voucher.number != self.vouchers + 1:
            raise RemoteProtocolError(
                f"voucher {voucher.number}: number {self.vouchers + 1} is next", reason=Reason.ORDER
            )
        if voucher.cumulative < self.vouchered:
            raise RemoteProtocolError(
                f"voucher {voucher.number} pays {voucher.cumulative}, below the {self.vouchered} already promised",
                reason=Reason.MEANING,
            )
        if not self._meter_vouchered < voucher.meter <= self.meters:
            raise RemoteProtocolError(
                f"voucher {voucher.number} names meter {voucher.meter}: expected one after "
                f"{self._meter_vouchered}, at most {self.meters}",
                reason=Reason.MEANING,
            )
        # Against the meter it names, not the latest: nobody else could follow it in a bundle.
        if voucher.cumulative > (metered := self._sums[voucher.meter - 1]):
            raise RemoteProtocolError(
                f"voucher {voucher.number} pays {voucher.cumulative}, above the {metered} of its meter",
                reason=Reason.MEANING,
            )
        self.vouchered = Microcredits(voucher.cumulative)
        self.vouchers = voucher.number
        self._meter_vouchered = voucher.meter

    def receipt(self, status: ReceiptStatus, *, profile: str, started_ms: UnixMs, ended_ms: UnixMs) -> Receipt:
        """Return the receipt over the last meter: to be stored, then sent.

        A failed job is billed only what a voucher covers: the rest is the provider's loss.
        """
        billed = self.vouchered if status == "failed" else self.metered
        return Receipt(
            contract_id=self._id,
            status=status,
            finish=self.delivered.finish if status == "complete" else None,
            tokens_in=self._tokens_in,
            tokens_out=self.delivered.tokens,
            duration_ms=max(ended_ms - started_ms, 0),
            cumulative=billed,
            output_hash=self.delivered.link,
            model_id=self._contract.model_id,
            profile=profile,
            started_at_ms=started_ms,
            ended_at_ms=ended_ms,
        )

    def closing_untrusted(self, closing: Closing, receipt_id: MessageId) -> None:
        """Check a closing, or refuse it with ``RemoteProtocolError``."""
        if closing.contract_id != self._id or closing.receipt_id != receipt_id:
            raise RemoteProtocolError("closing: for another contract or receipt", reason=Reason.MEANING)
        if closing.cumulative != self.vouchered:
            raise RemoteProtocolError(
                f"closing says {closing.cumulative}, the vouchers {self.vouchered}", reason=Reason.MEANING
            )


class RequesterAccount:
    """The requester's side: recounts every frame and refuses a meter or receipt that differs."""

    def __init__(self, contract_id: MessageId, contract: Contract, *, salt: bytes, tokens_in: int) -> None:
        self._id = contract_id
        self._contract = contract
        self._tokens_in = tokens_in
        self.delivered = Delivered(contract, salt)
        self.promised = Microcredits(0)
        self.meters = 0
        self.vouchers = 0
        self._tokens_metered = 0
        self._duration_ms = 0
        self._final = False

    def output_untrusted(self, sequence: int, data: bytes) -> TaskOutput:
        """Count and return one output frame; raises nothing but ``RemoteProtocolError``."""
        if sequence != self.delivered.frames:
            raise RemoteProtocolError(
                f"output frame {sequence}: {self.delivered.frames} is next", reason=Reason.ORDER
            )
        if self._final:
            raise RemoteProtocolError("output after the final meter", reason=Reason.ORDER)
        output = decode_task_output_untrusted(self._contract.task, data)
        unmetered_max = self._contract.voucher_window_tokens + limits.OUTPUT_TOKENS_PER_FRAME_MAX
        if self.delivered.tokens - self._tokens_metered + output.units > unmetered_max:
            raise RemoteProtocolError("more than a window of output without a meter", reason=Reason.ORDER)
        try:
            self.delivered.add(data, output)
        except ValueError as exc:
            raise RemoteProtocolError(str(exc), reason=Reason.MEANING) from exc
        return output

    def meter_untrusted(self, meter: Meter, elapsed_ms: int) -> Voucher:
        """Check a meter against our own count and return the voucher that answers it.

        Raises nothing but ``RemoteProtocolError``; nothing was promised then.
        """
        if meter.contract_id != self._id:
            raise RemoteProtocolError("meter: for another contract", reason=Reason.MEANING)
        if meter.number != self.meters + 1:
            raise RemoteProtocolError(
                f"meter {meter.number}: number {self.meters + 1} is next", reason=Reason.ORDER
            )
        if self._final:
            raise RemoteProtocolError("a meter after the final one", reason=Reason.ORDER)
        self._compare("meter", meter.tokens_in, meter.tokens_out, meter.output_hash)
        if not self._duration_ms <= meter.duration_ms <= elapsed_ms + DURATION_SLACK_MS:
            raise RemoteProtocolError(
                f"meter: {meter.duration_ms} ms of work within {elapsed_ms} ms", reason=Reason.MEANING
            )
        owed = self.delivered.cost(self._tokens_in, meter.duration_ms)
        if meter.cumulative != owed:
            raise RemoteProtocolError(
                f"meter {meter.number} says {meter.cumulative}, the prices give {owed}", reason=Reason.PRICE
            )
        self.meters = meter.number
        self._tokens_metered = meter.tokens_out
        self._duration_ms = meter.duration_ms
        self._final = meter.final
        self.vouchers += 1
        self.promised = owed
        return Voucher(contract_id=self._id, number=self.vouchers, cumulative=owed, meter=meter.number)

    def receipt_untrusted(self, receipt: Receipt) -> None:
        """Check a receipt against everything before it, or refuse it with ``RemoteProtocolError``."""
        if receipt.contract_id != self._id or receipt.model_id != self._contract.model_id:
            raise RemoteProtocolError("receipt: for another contract or model", reason=Reason.MEANING)
        self._compare("receipt", receipt.tokens_in, receipt.tokens_out, receipt.output_hash)
        if receipt.cumulative > self.promised:
            raise RemoteProtocolError(
                f"receipt says {receipt.cumulative}, vouchers promise {self.promised}", reason=Reason.PRICE
            )
        if receipt.status == "complete":
            if receipt.cumulative != self.promised:
                raise RemoteProtocolError(
                    f"receipt says {receipt.cumulative}, vouchers promise {self.promised}", reason=Reason.PRICE
                )
            if self.delivered.finish is None or receipt.finish != self.delivered.finish:
                raise RemoteProtocolError("receipt: complete, but the answer is not", reason=Reason.MEANING)

    def closing(self, receipt_id: MessageId, status: ReceiptStatus) -> Closing:
        """Return the verdict on a receipt that was checked: to be stored, then sent."""
        return Closing(
            contract_id=self._id,
            receipt_id=receipt_id,
            verdict="ok" if status == "complete" else "partial",
            cumulative=self.promised,
        )

    def _compare(self, what: str, tokens_in: int, tokens_out: int, link: bytes) -> None:
        if tokens_in != self._tokens_in:
            raise RemoteProtocolError(
                f"{what}: {tokens_in} tokens in, {self._tokens_in} accepted", reason=Reason.MEANING
            )
        if tokens_out != self.delivered.tokens or link != self.delivered.link:
            raise RemoteProtocolError(
                f"{what}: {tokens_out} tokens out, {self.delivered.tokens} came, or other frames",
                reason=Reason.MEANING,
            )
