"""Faults put into the node on purpose: whoever judges a simulation has to see each of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec
import pytest
import trio

from node.discovery import directory
from node.discovery.directory import Directory, Listing
from node.ledger.entries import ContractRow, Entry
from node.ledger.ledger import Ledger, _Posting
from node.ledger.store import LedgerStore
from node.market import provider
from node.market.admission import Admission
from node.market.attachment import Attachment
from node.market.attempt import Attempt
from node.market.late import LateContract
from node.market.party import Line, Party, S
from node.market.provider_job import ProviderJob
from node.market.requester_job import RequesterJob
from node.testnet.campaign import run_quietly
from protocol import limits
from protocol.account import ProviderAccount, RequesterAccount
from protocol.advert import Advert
from protocol.contract import Contract
from protocol.errors import RemoteProtocolError
from protocol.receipt import Receipt
from protocol.resume import Resume
from protocol.signed import Signed
from protocol.units import MessageId, Microcredits, UnixMs
from protocol.voucher import Meter, Voucher

Plant = Callable[[pytest.MonkeyPatch], None]


def not_waited_for(patch: pytest.MonkeyPatch, kind: str) -> None:
    """Let a posting with our own message of this kind be on its way when the message is sent."""
    post = Ledger.post

    async def post_or_not(
        self: Ledger,
        *entries: Entry,
        row: ContractRow | None = None,
        is_new: bool = False,
        fingerprint: bytes = b"",
    ) -> None:
        if any(entry.envelope.kind == kind and entry.envelope.signer != entry.peer_id for entry in entries):
            await self._send.send(_Posting(entries, row))
        else:
            await post(self, *entries, row=row, is_new=is_new, fingerprint=fingerprint)

    patch.setattr(Ledger, "post", post_or_not)


def accepted_before_fsync(patch: pytest.MonkeyPatch) -> None:
    not_waited_for(patch, "accept")


def paid_before_recorded(patch: pytest.MonkeyPatch) -> None:
    not_waited_for(patch, "voucher")


def metered_before_recorded(patch: pytest.MonkeyPatch) -> None:
    not_waited_for(patch, "meter")


def offered_before_recorded(patch: pytest.MonkeyPatch) -> None:
    not_waited_for(patch, "contract")


def meter_not_compared(patch: pytest.MonkeyPatch) -> None:
    def meter_untrusted(self: RequesterAccount, meter: Meter, _elapsed_ms: int) -> Voucher:
        self.meters, self._tokens_metered, self._final = meter.number, self.delivered.tokens, meter.final
        self.vouchers += 1
        self.promised = Microcredits(meter.cumulative)
        return Voucher(contract_id=self._id, number=self.vouchers, cumulative=meter.cumulative, meter=meter.number)

    patch.setattr(RequesterAccount, "meter_untrusted", meter_untrusted)


def receipt_not_checked(patch: pytest.MonkeyPatch) -> None:
    def receipt_untrusted(_self: RequesterAccount, _receipt: Receipt) -> None:
        return

    patch.setattr(RequesterAccount, "receipt_untrusted", receipt_untrusted)


def place_kept_on_cancel(patch: pytest.MonkeyPatch) -> None:
    vacate, settle = Admission.vacate, Admission.settle

    def vacate_unless_cancelled(self: Admission, contract_id: MessageId) -> None:
        if trio.current_effective_deadline() > trio.current_time():
            vacate(self, contract_id)

    def settle_only(self: Admission, contract_id: MessageId, **ends: int) -> None:
        is_running = contract_id in self._running
        settle(self, contract_id, **ends)
        if is_running:
            self._running.add(contract_id)

    patch.setattr(Admission, "vacate", vacate_unless_cancelled)
    patch.setattr(Admission, "settle", settle_only)


def reserve_kept_when_unpaid(patch: pytest.MonkeyPatch) -> None:
    settle = Admission.settle

    def settle_if_paid(self: Admission, contract_id: MessageId, **ends: int) -> None:
        if ends["unpaid"]:
            self.vacate(contract_id)
        else:
            settle(self, contract_id, **ends)

    patch.setattr(Admission, "settle", settle_if_paid)


def hold_never_lapses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "_drop_lapsed", lambda _self, _now: None)


def seed_lost_on_failover(patch: pytest.MonkeyPatch) -> None:
    sign = Party.sign

    def sign_with_new_seed(self: Party, message: S) -> Signed[S]:
        if isinstance(message, Contract) and message.tokens_held:
            sampling = msgspec.structs.replace(message.sampling, seed=0)
            message = msgspec.structs.replace(message, sampling=sampling)
        return sign(self, message)

    patch.setattr(Party, "sign", sign_with_new_seed)


def expired_advert_used(patch: pytest.MonkeyPatch) -> None:
    def listings(self: Directory, now_ms: UnixMs) -> list[Listing]:
        """Return all that was ever heard, as if it had just been said."""
        return [
            replace(it, signed=Signed(lengthened(it.advert, now_ms), it.signed.envelope))
            for it in self._listings.values()
        ]

    patch.setattr(Directory, "listings", listings)
    patch.setattr(directory, "check_life_untrusted", lambda _advert, _now_ms: None)


def lengthened(advert: Advert, now_ms: UnixMs) -> Advert:
    return msgspec.structs.replace(advert, expires_at_ms=now_ms + 60_000)


def replayed_contract_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LedgerStore, "knows", lambda _self, _contract_id: False)


def voucher_above_meter_taken(patch: pytest.MonkeyPatch) -> None:
    def voucher_untrusted(self: ProviderAccount, voucher: Voucher) -> None:
        self.vouchered = Microcredits(voucher.cumulative)
        self.vouchers = voucher.number
        self._meter_vouchered = voucher.meter

    patch.setattr(ProviderAccount, "voucher_untrusted", voucher_untrusted)


def lower_voucher_taken(patch: pytest.MonkeyPatch) -> None:
    take = ProviderAccount.voucher_untrusted

    def voucher_untrusted(self: ProviderAccount, voucher: Voucher) -> None:
        kept, self.vouchered = self.vouchered, Microcredits(0)
        try:
            take(self, voucher)
        except RemoteProtocolError:
            self.vouchered = kept
            raise

    patch.setattr(ProviderAccount, "voucher_untrusted", voucher_untrusted)


def queue_without_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Admission, "queue_max", property(lambda _self: 1_000, lambda _self, _wanted: None), raising=False
    )


def input_waited_for_forever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(provider, "FIRST_WORD_S", math.inf)
    patch.setattr(provider, "INPUT_WAIT_S", math.inf)


def payment_waited_for_forever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(limits, "VOUCHER_WAIT_MS_MAX", 1_000_000_000)
    patch.setattr(limits, "CLOSING_WAIT_MS_MAX", 1_000_000_000)


def work_timed_by_wall_clock(patch: pytest.MonkeyPatch) -> None:
    def elapsed_ms(self: ProviderJob) -> int:
        return max(self._party.now_ms() - self.accepted_at_ms, 0)

    patch.setattr(ProviderJob, "_elapsed_ms", elapsed_ms)


def open_offer_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RequesterJob, "offer_open_s", lambda _self: 0.0)


def interrupted_contract_left_open(patch: pytest.MonkeyPatch) -> None:
    def end_interrupted(_self: LedgerStore, _only: object = None) -> int:
        return 0

    patch.setattr(LedgerStore, "end_interrupted", end_interrupted)


def lost_stream_not_resumed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempt, "_may_resume", lambda _self, _cause: False)


def frame_left_out_on_resume(patch: pytest.MonkeyPatch) -> None:
    move_to = Attachment.move_to

    async def move_one_further(self: Attachment, line: Line, own: Signed[Resume], heard: Resume) -> None:
        await move_to(self, line, own, msgspec.structs.replace(heard, frames=heard.frames + 1))

    patch.setattr(Attachment, "move_to", move_one_further)


def frames_sent_again_from_the_first(patch: pytest.MonkeyPatch) -> None:
    move_to = Attachment.move_to

    async def move_back(self: Attachment, line: Line, own: Signed[Resume], heard: Resume) -> None:
        await move_to(self, line, own, msgspec.structs.replace(heard, frames=0))

    patch.setattr(Attachment, "move_to", move_back)


def late_voucher_not_kept(patch: pytest.MonkeyPatch) -> None:
    async def store(_self: LateContract, *_books: object) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(LateContract, "_store", store)


# The scenario, a seed that shows the fault, and the rule that sees it.
MUTANTS: Final[tuple[tuple[Plant, str, int], ...]] = (
    (accepted_before_fsync, "calm", 1),
    (paid_before_recorded, "calm", 1),
    (metered_before_recorded, "calm", 1),
    (offered_before_recorded, "calm", 1),
    (meter_not_compared, "liars", 20),
    (receipt_not_checked, "liars", 4),
    (place_kept_on_cancel, "crashes", 1),
    (reserve_kept_when_unpaid, "liars", 1),
    (hold_never_lapses, "partitions", 1),
    (seed_lost_on_failover, "crashes", 1),
    (expired_advert_used, "churn", 1),
    (replayed_contract_taken, "liars", 1),
    (voucher_above_meter_taken, "liars", 1),
    (lower_voucher_taken, "liars", 1),
    (queue_without_bound, "overload", 1),
    (input_waited_for_forever, "partitions", 2),
    (payment_waited_for_forever, "liars", 2),
    (work_timed_by_wall_clock, "churn", 1),
    (open_offer_not_waited_for, "storm", 1),
    (interrupted_contract_left_open, "crashes", 1),
    (lost_stream_not_resumed, "storm", 1),
    (frame_left_out_on_resume, "storm", 2),
    (frames_sent_again_from_the_first, "storm", 1),
    (late_voucher_not_kept, "crashes", 3),
)


def find(number: int, seeds: int) -> tuple[int, str] | None:
    """Return the first seed that shows the mutant, and the rule that it breaks; for a process of its own."""
    plant, name, _seed = MUTANTS[number]
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in range(1, seeds + 1):
            if violations := run_quietly(name, seed).violations:
                return seed, violations[0].rule
    return None
