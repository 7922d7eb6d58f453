from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from protocol import limits
from protocol.account import (
    DURATION_SLACK_MS,
    Delivered,
    ProviderAccount,
    RequesterAccount,
    first_link,
    next_link,
)
from protocol.contract import Contract
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.price import Prices, cost
from protocol.task import GenerateOutput
from protocol.units import MessageId, Microcredits, UnixMs
from protocol.voucher import Meter, Voucher
from scripts.spec import examples

CONTRACT_ID = MessageId(b"c" * 32)
OTHER_ID = MessageId(b"o" * 32)
RECEIPT_ID = MessageId(b"r" * 32)


def terms(**changes: Any) -> Contract:  # Any: whatever type the changed field has
    return replace(examples.contract(MessageId(bytes(32))), **changes)


class Pair:
    """Both accounts of one contract with a perfect wire between them."""

    def __init__(self, **changes: Any) -> None:  # Any: see terms
        self.contract = terms(**changes)
        self.giving = ProviderAccount(CONTRACT_ID, self.contract, salt=examples.SALT, tokens_in=10)
        self.taking = RequesterAccount(CONTRACT_ID, self.contract, salt=examples.SALT, tokens_in=10)

    def output(self, count: int = 1, *, last: bool = False) -> None:
        tokens = tuple(range(count))
        frame = self.giving.output(GenerateOutput(tokens=tokens, text="a", finish="stop" if last else None))
        self.taking.output_untrusted(*frame)

    def settle(self, duration_ms: int = 100, *, final: bool = False) -> None:
        voucher = self.taking.meter_untrusted(self.giving.meter(duration_ms, final=final), duration_ms)
        self.giving.voucher_untrusted(voucher)

    def meter(self) -> Meter:
        return self.giving.meter(100, final=False)


def reason(call: Any, *arguments: Any) -> Reason:  # Any: whichever account method
    with pytest.raises(RemoteProtocolError) as caught:
        call(*arguments)
    return caught.value.reason


def test_chain_depends_on_salt_order_and_content() -> None:
    links = {
        first_link(b"a" * 16),
        first_link(b"b" * 16),
        next_link(first_link(b"a" * 16), 0, b"x"),
        next_link(first_link(b"a" * 16), 1, b"x"),
        next_link(first_link(b"a" * 16), 0, b"y"),
        next_link(first_link(b"b" * 16), 0, b"x"),
    }
    assert len(links) == 6


def test_delivered_refuses_output_when_it_breaks_the_contract() -> None:
    delivered = Delivered(terms(tokens_out_max=3), examples.SALT)
    with pytest.raises(ValueError, match="without tokens"):
        delivered.add(b"x", GenerateOutput(tokens=(), text="a"))
    with pytest.raises(ValueError, match="3 tokens agreed"):
        delivered.add(b"x", GenerateOutput(tokens=(1, 2, 3, 4), text="a"))
    assert (delivered.frames, delivered.tokens, delivered.link) == (0, 0, first_link(examples.SALT))
    delivered.add(b"x", GenerateOutput(tokens=(1,), text="a", finish="stop"))
    with pytest.raises(ValueError, match="finished"):
        delivered.add(b"x", GenerateOutput(tokens=(1,), text="a"))


def test_provider_refuses_its_own_output_when_it_breaks_the_contract() -> None:
    pair = Pair(tokens_out_max=1)
    pair.output()
    with pytest.raises(LocalProtocolError):
        pair.giving.output(GenerateOutput(tokens=(1,), text="a"))


def test_both_sides_agree_when_a_job_goes_well() -> None:
    pair = Pair()
    for place in range(6):
        pair.output(2, last=place == 5)
        if pair.giving.window_is_full() or place == 5:
            pair.settle(100 * place, final=place == 5)
    receipt = pair.giving.receipt("complete", profile="x", started_ms=UnixMs(5), ended_ms=UnixMs(9))
    pair.taking.receipt_untrusted(receipt)
    pair.giving.closing_untrusted(pair.taking.closing(RECEIPT_ID, "complete"), RECEIPT_ID)
    assert receipt.cumulative == pair.taking.promised == pair.giving.vouchered == pair.giving.metered > 0


def test_requester_refuses_output_when_its_number_is_not_the_next() -> None:
    pair = Pair()
    sequence, data = pair.giving.output(GenerateOutput(tokens=(1,), text="a"))
    assert reason(pair.taking.output_untrusted, sequence + 1, data) is Reason.ORDER
    pair.taking.output_untrusted(sequence, data)
    assert reason(pair.taking.output_untrusted, sequence, data) is Reason.ORDER


def test_requester_refuses_output_when_no_meter_came_for_a_window() -> None:
    pair = Pair(tokens_out_max=10_000, voucher_window_tokens=4)
    pair.output(256)
    pair.output(4)
    frame = pair.giving.output(GenerateOutput(tokens=(1,), text="a"))
    assert reason(pair.taking.output_untrusted, *frame) is Reason.ORDER
    assert pair.taking.delivered.tokens == 260


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"contract_id": OTHER_ID}, Reason.MEANING),
        ({"number": 2}, Reason.ORDER),
        ({"tokens_in": 11}, Reason.MEANING),
        ({"tokens_out": 3}, Reason.MEANING),
        ({"output_hash": bytes(32)}, Reason.MEANING),
        ({"duration_ms": 100 + DURATION_SLACK_MS + 1}, Reason.MEANING),
        ({"cumulative": 1}, Reason.PRICE),
    ],
)
def test_requester_promises_nothing_when_a_meter_differs(change: dict[str, Any], expected: Reason) -> None:
    pair = Pair()
    pair.output(2)
    good = pair.giving.meter(100, final=False)
    assert reason(pair.taking.meter_untrusted, replace(good, **change), 100) is expected
    assert pair.taking.promised == 0
    assert pair.taking.meter_untrusted(good, 100).cumulative == good.cumulative


def test_requester_refuses_a_meter_when_its_time_runs_back() -> None:
    pair = Pair()
    pair.output()
    pair.settle(500)
    assert reason(pair.taking.meter_untrusted, pair.giving.meter(499, final=False), 900) is Reason.MEANING


def test_requester_refuses_more_when_the_final_meter_has_come() -> None:
    pair = Pair()
    pair.output()
    pair.settle(final=True)
    frame = pair.giving.output(GenerateOutput(tokens=(1,), text="a"))
    assert reason(pair.taking.output_untrusted, *frame) is Reason.ORDER
    assert reason(pair.taking.meter_untrusted, pair.meter(), 100) is Reason.ORDER


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"contract_id": OTHER_ID}, Reason.MEANING),
        ({"number": 1}, Reason.ORDER),
        ({"number": 3}, Reason.ORDER),
        ({"cumulative": 1}, Reason.MEANING),
        ({"cumulative": 100_000}, Reason.MEANING),
        ({"meter": 3}, Reason.MEANING),
    ],
)
def test_provider_keeps_what_it_has_when_a_voucher_is_wrong(change: dict[str, Any], expected: Reason) -> None:
    pair = Pair()
    pair.output(4)
    pair.settle(100)
    before = pair.giving.vouchered
    pair.output(4)
    voucher = pair.taking.meter_untrusted(pair.giving.meter(200, final=False), 200)
    assert reason(pair.giving.voucher_untrusted, replace(voucher, **change)) is expected
    assert pair.giving.vouchered == before
    pair.giving.voucher_untrusted(voucher)
    assert pair.giving.vouchered == voucher.cumulative > before


def test_provider_refuses_a_voucher_when_it_pays_above_the_meter_that_it_names() -> None:
    pair = Pair()
    pair.output(4)
    first = pair.giving.meter(100, final=False)
    pair.taking.meter_untrusted(first, 100)
    pair.output(4)
    second = pair.giving.meter(200, final=False)
    voucher = Voucher(contract_id=CONTRACT_ID, number=1, cumulative=second.cumulative, meter=1)
    assert reason(pair.giving.voucher_untrusted, voucher) is Reason.MEANING
    pair.giving.voucher_untrusted(replace(voucher, meter=2))


def test_provider_pauses_when_the_next_window_would_exceed_the_credit() -> None:
    pair = Pair(
        credit=110, prices=Prices(fixed=100, tokens_in=0, tokens_out=1_000_000, per_s=0), tokens_out_max=100
    )
    assert not pair.giving.must_pause(0)
    pair.output(4)
    assert not pair.giving.must_pause(0)  # nothing is metered yet: the first window is always given
    voucher = pair.taking.meter_untrusted(pair.giving.meter(0, final=False), 0)
    assert not pair.giving.must_pause(0)  # 104 + 4 are within 110
    pair.output(4)
    pair.giving.meter(0, final=False)
    assert pair.giving.must_pause(0)
    pair.giving.voucher_untrusted(voucher)
    assert not pair.giving.must_pause(0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"contract_id": OTHER_ID}, Reason.MEANING),
        ({"model_id": bytes(32)}, Reason.MEANING),
        ({"tokens_in": 9}, Reason.MEANING),
        ({"tokens_out": 2}, Reason.MEANING),
        ({"output_hash": bytes(32)}, Reason.MEANING),
        ({"cumulative": 100_000}, Reason.PRICE),
        ({"cumulative": 0}, Reason.PRICE),
        ({"finish": "length"}, Reason.MEANING),
        ({"finish": None}, Reason.MEANING),
    ],
)
def test_requester_refuses_a_receipt_when_it_differs(change: dict[str, Any], expected: Reason) -> None:
    pair = Pair()
    pair.output(1, last=True)
    pair.settle(final=True)
    receipt = pair.giving.receipt("complete", profile="x", started_ms=UnixMs(0), ended_ms=UnixMs(100))
    assert reason(pair.taking.receipt_untrusted, replace(receipt, **change)) is expected
    pair.taking.receipt_untrusted(receipt)


def test_requester_refuses_a_complete_receipt_when_the_answer_is_not() -> None:
    pair = Pair()
    pair.output()
    pair.settle(final=True)
    receipt = pair.giving.receipt("complete", profile="x", started_ms=UnixMs(0), ended_ms=UnixMs(1))
    assert reason(pair.taking.receipt_untrusted, receipt) is Reason.MEANING


def test_failed_job_bills_what_vouchers_cover_and_a_partial_one_the_last_meter() -> None:
    pair = Pair()
    pair.output(4)
    pair.settle()
    pair.output(4)
    last = pair.giving.meter(200, final=True)
    pair.output()  # sent after the last meter: delivered, and not billed
    failed = pair.giving.receipt("failed", profile="x", started_ms=UnixMs(9), ended_ms=UnixMs(1))
    assert (failed.cumulative, failed.finish, failed.duration_ms) == (pair.giving.vouchered, None, 0)
    partial = pair.giving.receipt("partial", profile="x", started_ms=UnixMs(0), ended_ms=UnixMs(1))
    assert partial.cumulative == last.cumulative > pair.giving.vouchered
    assert partial.tokens_out == 9
    pair.taking.receipt_untrusted(failed)
    assert reason(pair.taking.receipt_untrusted, partial) is Reason.PRICE  # its meter was not answered


@pytest.mark.parametrize("change", [{"contract_id": OTHER_ID}, {"receipt_id": OTHER_ID}, {"cumulative": 1}])
def test_provider_refuses_a_closing_when_it_differs(change: dict[str, Any]) -> None:
    pair = Pair()
    pair.output(1, last=True)
    pair.settle(final=True)
    closing = pair.taking.closing(RECEIPT_ID, "complete")
    assert reason(pair.giving.closing_untrusted, replace(closing, **change), RECEIPT_ID) is Reason.MEANING
    pair.giving.closing_untrusted(closing, RECEIPT_ID)
    assert pair.taking.closing(RECEIPT_ID, "failed").verdict == "partial"


class TwoAccounts(RuleBasedStateMachine):
    """One contract whose frames and messages may be delayed, repeated or forged by either side."""

    PRICES = Prices(fixed=7, tokens_in=300_000, tokens_out=1_700_000, per_s=90)

    def __init__(self) -> None:
        super().__init__()
        self.contract = terms(
            prices=self.PRICES, price_max=60, credit=20, voucher_window_tokens=3, tokens_out_max=40
        )
        self.giving = ProviderAccount(CONTRACT_ID, self.contract, salt=examples.SALT, tokens_in=5)
        self.taking = RequesterAccount(CONTRACT_ID, self.contract, salt=examples.SALT, tokens_in=5)
        self.clock_ms = 0
        self.to_requester: list[tuple[int, bytes] | Meter] = []
        self.to_provider: list[Voucher] = []
        self.finished = False

    @rule(ms=st.integers(0, 400))
    def time_passes(self, ms: int) -> None:
        self.clock_ms += ms

    @precondition(lambda self: not self.finished and self.giving.delivered.tokens < 37)
    @rule(count=st.integers(1, 3), last=st.booleans())
    def provider_computes(self, count: int, last: bool) -> None:
        if self.giving.window_is_full():
            self.to_requester.append(self.giving.meter(self.clock_ms, final=False))
        if self.giving.must_pause(self.clock_ms):
            return
        last = last and self.giving.delivered.tokens > 20
        output = GenerateOutput(tokens=(1,) * count, text="", finish="stop" if last else None)
        self.to_requester.append(self.giving.output(output))
        if last:
            self.to_requester.append(self.giving.meter(self.clock_ms, final=True))
            self.finished = True

    @precondition(lambda self: self.to_requester)
    @rule()
    def requester_reads(self) -> None:
        item = self.to_requester.pop(0)
        if isinstance(item, Meter):
            self.to_provider.append(self.taking.meter_untrusted(item, self.clock_ms))
        else:
            self.taking.output_untrusted(*item)

    @precondition(lambda self: self.to_provider)
    @rule()
    def provider_reads(self) -> None:
        self.giving.voucher_untrusted(self.to_provider.pop(0))

    @rule(tokens=st.integers(0, 40), number=st.integers(1, 5), extra=st.integers(1, 60))
    def provider_forges_a_meter(self, tokens: int, number: int, extra: int) -> None:
        known = self.taking.delivered
        duration_ms = self.clock_ms + DURATION_SLACK_MS
        owed = cost(
            self.PRICES, tokens_in=5, tokens_out=known.tokens + tokens, duration_ms=duration_ms, price_max=60
        )
        forged = Meter(
            contract_id=CONTRACT_ID,
            number=number,
            tokens_in=5,
            tokens_out=known.tokens + tokens,
            duration_ms=duration_ms,
            cumulative=owed + (extra if tokens == 0 else 0),
            output_hash=known.link,
            final=False,
        )
        with pytest.raises(RemoteProtocolError):
            self.taking.meter_untrusted(forged, self.clock_ms)

    @rule(number=st.integers(1, 5), cumulative=st.integers(0, 70), meter=st.integers(1, 5))
    def requester_forges_a_voucher(self, number: int, cumulative: int, meter: int) -> None:
        before = self.giving.vouchered
        if number == self.giving.meters + 1 or cumulative > self.giving.metered or cumulative < before:
            with pytest.raises(RemoteProtocolError):
                self.giving.voucher_untrusted(
                    Voucher(contract_id=CONTRACT_ID, number=number, cumulative=cumulative, meter=meter)
                )
            assert self.giving.vouchered == before

    @invariant()
    def money_holds(self) -> None:
        assert self.giving.vouchered <= self.taking.promised <= self.giving.metered <= self.contract.price_max
        most = cost(
            self.PRICES,
            tokens_in=5,
            tokens_out=self.taking.delivered.tokens,
            duration_ms=self.clock_ms + DURATION_SLACK_MS,
            price_max=60,
        )
        assert self.taking.promised <= most  # nobody promises for tokens that did not come
        window = self.contract.voucher_window_tokens + limits.OUTPUT_TOKENS_PER_FRAME_MAX
        assert self.giving.delivered.tokens <= self.taking.delivered.tokens + window

    @invariant()
    def provider_risks_a_bounded_sum(self) -> None:
        two_windows = cost(self.PRICES, tokens_in=5, tokens_out=8, duration_ms=0, price_max=60)
        unpaid = self.giving.delivered.cost(5, 0) - self.giving.vouchered
        assert unpaid <= max(self.contract.credit, two_windows) + 6  # one frame of up to three tokens more

    def teardown(self) -> None:
        while self.to_requester:
            self.requester_reads()
        while self.to_provider:
            self.provider_reads()
        assert self.giving.vouchered == self.taking.promised == self.giving.metered
        assert self.giving.delivered.link == self.taking.delivered.link
        if not self.finished:
            return
        receipt = self.giving.receipt(
            "complete", profile="x", started_ms=UnixMs(0), ended_ms=UnixMs(self.clock_ms)
        )
        self.taking.receipt_untrusted(receipt)
        assert receipt.cumulative == Microcredits(self.taking.promised)
        self.giving.closing_untrusted(self.taking.closing(RECEIPT_ID, "complete"), RECEIPT_ID)


TwoAccounts.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTwoAccounts = pytest.mark.slow(TwoAccounts.TestCase)
