"""Admission gives no place away twice, lets nobody owe more than it may, and takes everything back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node.config import MarketSection
from node.ledger.standing import Standing, Standings
from node.market.admission import Admission, Closed, Hold, Place, Refused
from protocol.errors import DeclineCode
from protocol.units import MessageId, Microcredits, PeerId, UnixMs
from tests.fakes import signer_of

CREDIT, POOL, SLOTS, QUEUE, HOLD_S = 100, 250, 2, 1, 15.0
NOTHING = Microcredits(0)
PEERS = [signer_of(name).peer_id for name in "abcd"]


def make(*, slots: int = SLOTS, queue_max: int = QUEUE) -> Admission:
    admission = Admission(MarketSection(credit_new_peer=CREDIT, credit_pool_new=POOL))
    admission.slots, admission.queue_max = slots, queue_max
    return admission


def owing(admission: Admission, peer: PeerId, owed: int) -> None:
    """Let ``peer`` owe that much from before the start."""
    standing = Standing(settled=NOTHING, paid=NOTHING, owed=((UnixMs(0), Microcredits(owed)),))
    admission.remember(Standings(read_at_ms=UnixMs(0), sold={peer: standing}, bought={}), now=0.0)


def message_id(number: int) -> MessageId:
    return MessageId(number.to_bytes(32, "big"))


NO_QUOTE = message_id(0)


def place(peer: PeerId = PEERS[0], reserve: int = 10) -> Place:
    return Place(peer_id=peer, reserve=Microcredits(reserve))


def hold(peer: PeerId = PEERS[0], reserve: int = 10, until: float = HOLD_S) -> Hold:
    return Hold(peer_id=peer, reserve=Microcredits(reserve), until=until)


def refusal(
    admission: Admission, number: int, wanted: Place, *, now: float = 0.0, quote: MessageId = NO_QUOTE
) -> str:
    with pytest.raises(Refused) as caught:
        admission.take(message_id(number), wanted, quote_id=quote, now=now)
    return caught.value.code


def test_nothing_is_taken_when_there_are_no_slots_yet() -> None:
    assert refusal(make(slots=0, queue_max=0), 1, place()) == DeclineCode.BUSY


def test_job_waits_in_the_queue_when_all_slots_are_taken() -> None:
    admission = make()
    for number in range(1, 4):
        admission.take(message_id(number), place(), quote_id=NO_QUOTE, now=0)
        admission.input_read(message_id(number))
    assert admission.slots_free(0) == 0
    assert refusal(admission, 4, place()) == DeclineCode.BUSY
    admission.vacate(message_id(1))
    admission.take(message_id(4), place(), quote_id=NO_QUOTE, now=0)


def test_one_peer_keeps_a_quarter_of_the_places_at_most_without_using_them() -> None:
    admission = make(slots=4, queue_max=4)
    admission.hold(message_id(1), hold(), now=0)
    admission.take(message_id(2), place(), quote_id=NO_QUOTE, now=0)
    assert refusal(admission, 3, place()) == DeclineCode.BUSY
    with pytest.raises(Refused):
        admission.hold(message_id(4), hold(), now=0)
    admission.take(message_id(5), place(PEERS[1]), quote_id=NO_QUOTE, now=0)  # others are not in its way
    admission.input_read(message_id(2))
    admission.take(message_id(6), place(), quote_id=message_id(1), now=0)  # and a hold may be used


def test_hold_counts_as_a_place_until_it_lapses() -> None:
    admission = make(slots=1, queue_max=0)
    admission.hold(message_id(7), hold(), now=0)
    assert refusal(admission, 1, place(PEERS[1])) == DeclineCode.BUSY
    assert admission.slots_free(HOLD_S - 0.1) == 0 and admission.slots_free(HOLD_S) == 1
    admission.take(message_id(1), place(PEERS[1]), quote_id=NO_QUOTE, now=HOLD_S)


def test_hold_is_kept_when_its_contract_asks_for_more_credit_than_there_is() -> None:
    admission = make(slots=1, queue_max=0)
    admission.hold(message_id(7), hold(), now=0)
    assert refusal(admission, 1, place(reserve=CREDIT + 1), quote=message_id(7)) == DeclineCode.CREDIT
    admission.take(message_id(2), place(), quote_id=message_id(7), now=1)


def test_same_contract_is_refused_while_it_is_not_settled() -> None:
    admission = make()
    admission.take(message_id(1), place(), quote_id=NO_QUOTE, now=0)
    admission.vacate(message_id(1))
    assert refusal(admission, 1, place()) == DeclineCode.EXPIRED


def test_pool_bounds_what_strangers_owe_together() -> None:
    admission = make(slots=9)
    for number in (0, 1):
        admission.take(message_id(number + 1), place(PEERS[number], CREDIT), quote_id=NO_QUOTE, now=0)
    assert admission.credit_left(PEERS[2], 0) == POOL - 2 * CREDIT
    assert refusal(admission, 9, place(PEERS[2], POOL - 2 * CREDIT + 1)) == DeclineCode.CREDIT


def test_debt_of_an_earlier_run_counts() -> None:
    admission = make()
    owing(admission, PEERS[0], 95)
    assert admission.credit_left(PEERS[0], 0) == 5
    assert refusal(admission, 1, place(reserve=6)) == DeclineCode.CREDIT
    assert admission.credit_left(PEERS[1], 0) == CREDIT


def test_credit_comes_back_when_a_contract_is_settled_and_stays_away_when_it_was_not_paid() -> None:
    admission = make()
    for number, unpaid in ((1, 0), (2, 30)):
        admission.take(message_id(number), place(reserve=50), quote_id=NO_QUOTE, now=0)
        admission.vacate(message_id(number))
        assert admission.credit_left(PEERS[0], 0) == 50, "credit is reserved until it is paid"
        admission.settle(message_id(number), unpaid=unpaid)
        assert admission.credit_left(PEERS[0], 0) == CREDIT - unpaid


def test_promise_stays_open_until_it_is_settled() -> None:
    admission = make()
    admission.take(message_id(1), place(reserve=50), quote_id=NO_QUOTE, now=0)
    admission.settle(message_id(1), unpaid=0, vouchered=40)
    assert admission.credit_left(PEERS[0], 0) == CREDIT - 40
    admission.settled(PEERS[0], Microcredits(40))
    assert admission.credit_left(PEERS[0], 0) == CREDIT + 20, "half of what was settled is credit earned"


def test_answer_goes_on_when_its_peer_has_credit_for_another_window_and_stops_when_not() -> None:
    admission = make(slots=9)
    admission.take(message_id(1), place(reserve=50), quote_id=NO_QUOTE, now=0)
    admission.take(message_id(2), place(reserve=30), quote_id=NO_QUOTE, now=0)
    for owed, allowed in ((50, True), (70, True), (71, False), (70, True)):
        assert admission.window_allowed(message_id(1), Microcredits(owed), now=0) is allowed
    assert admission.credit_left(PEERS[0], 0) == 0, "a window that was allowed is reserved"
    admission.settle(message_id(2), unpaid=0, vouchered=10)
    assert admission.window_allowed(message_id(1), Microcredits(90), now=0)
    assert not admission.window_allowed(message_id(1), Microcredits(91), now=0)


def test_window_is_refused_when_the_pool_is_used_up_by_others() -> None:
    admission = make(slots=9)
    for number in range(3):
        admission.take(message_id(number), place(PEERS[number], 80), quote_id=NO_QUOTE, now=0)
    assert admission.window_allowed(message_id(0), Microcredits(90), now=0)
    assert not admission.window_allowed(message_id(1), Microcredits(81), now=0)


def test_refused_peer_is_told_what_is_open_and_what_its_limit_is() -> None:
    admission = make(slots=9)
    owing(admission, PEERS[0], 30)
    admission.take(message_id(1), place(reserve=50), quote_id=NO_QUOTE, now=0)
    with pytest.raises(Refused) as caught:
        admission.hold(message_id(2), hold(reserve=21), now=0)
    assert str(caught.value) == (
        "21 µc of credit are needed, 20 µc are left: 30 µc are open and 50 µc reserved of 100 µc;"
        " settle what is open, or wait"
    )


def test_banned_peer_gets_no_place_whether_it_holds_one_or_not() -> None:
    banned: set[PeerId] = set()
    admission = Admission(MarketSection(credit_new_peer=CREDIT, credit_pool_new=POOL), banned=banned)
    admission.slots = SLOTS
    admission.hold(message_id(1), hold(), now=0.0)
    banned.add(PEERS[0])
    for contract in (1, 2):
        with pytest.raises(Refused, match="owner") as refused:
            admission.take(message_id(10), place(), quote_id=message_id(contract), now=0.0)
        assert refused.value.code is DeclineCode.DRAINING
    admission.take(message_id(11), place(PEERS[1]), quote_id=message_id(3), now=0.0)


def test_nobody_is_taken_when_the_node_drains() -> None:
    admission = make()
    admission.closed = Closed(message="not now", retry_after_ms=7)
    assert refusal(admission, 1, place()) == DeclineCode.DRAINING


class Books(RuleBasedStateMachine):
    """Random peers, quotes, contracts and endings against an independent count."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = make()
        self.now = 0.0
        self.made = 0
        self.holds: dict[int, Hold] = {}
        self.running: dict[int, Place] = {}
        self.unsettled: dict[int, Place] = {}
        self.unpaid = dict.fromkeys(PEERS, 0)

    def number(self) -> int:
        self.made += 1
        return self.made

    @rule(peer=st.sampled_from(PEERS), reserve=st.integers(0, 120))
    def quote(self, peer: PeerId, reserve: int) -> None:
        number, wanted = self.number(), hold(peer, reserve, self.now + HOLD_S)
        try:
            self.admission.hold(message_id(number), wanted, now=self.now)
        except Refused:
            return
        self.holds[number] = wanted

    @rule(data=st.data(), peer=st.sampled_from(PEERS), reserve=st.integers(0, 120))
    def contract(self, data: st.DataObject, peer: PeerId, reserve: int) -> None:
        quote = data.draw(st.sampled_from([0, *self.holds]))
        number, wanted = self.number(), place(peer, reserve)
        held = self.holds.get(quote)
        covered = held is not None and held.peer_id == peer and held.until > self.now and reserve <= held.reserve
        try:
            self.admission.take(message_id(number), wanted, quote_id=message_id(quote), now=self.now)
        except Refused:
            assert not covered, "a held place was not given to its holder"
            return
        if held is not None and held.peer_id == peer and held.until > self.now:
            del self.holds[quote]
        self.running[number] = self.unsettled[number] = wanted

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[number]
        self.admission.vacate(message_id(number))

    @precondition(lambda self: self.unsettled)
    @rule(data=st.data(), share=st.integers(0, 100))
    def settle(self, data: st.DataObject, share: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.unsettled)))
        ended = self.unsettled.pop(number)
        self.running.pop(number, None)
        unpaid = ended.reserve * share // 100
        self.admission.settle(message_id(number), unpaid=unpaid)
        self.unpaid[ended.peer_id] += unpaid

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_place_is_given_twice(self) -> None:
        holds = [it for it in self.holds.values() if it.until > self.now]
        assert len(self.running) + len(holds) <= SLOTS + QUEUE
        assert self.admission.running == len(self.running)
        assert self.admission.slots_free(self.now) == max(SLOTS - len(self.running) - len(holds), 0)

    @invariant()
    def nobody_owes_more_than_it_may(self) -> None:
        holds = [it for it in self.holds.values() if it.until > self.now]
        everybody = 0
        for peer in PEERS:
            promises = [it.reserve for it in (*holds, *self.unsettled.values()) if it.peer_id == peer]
            owes = self.unpaid[peer] + sum(promises)
            everybody += owes
            assert owes <= CREDIT
        assert everybody <= POOL
        for peer in PEERS:
            own = sum(it.reserve for it in (*holds, *self.unsettled.values()) if it.peer_id == peer)
            left = min(CREDIT - own - self.unpaid[peer], POOL - everybody)
            assert self.admission.credit_left(peer, self.now) == max(left, 0)

    def teardown(self) -> None:
        for number in list(self.unsettled):
            self.admission.settle(message_id(number), unpaid=0)
        assert self.admission.slots_free(self.now + HOLD_S) == SLOTS
        for peer in PEERS:
            left = min(CREDIT - self.unpaid[peer], POOL - sum(self.unpaid.values()))
            assert self.admission.credit_left(peer, self.now + HOLD_S) == max(left, 0)


TestBooks = pytest.mark.slow(Books.TestCase)
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=50, deadline=None, database=None)
def test_credit_left_is_never_negative(debt: int, reserve: int) -> None:
    admission = make()
    owing(admission, PEERS[0], debt)
    assert 0 <= admission.credit_left(PEERS[0], 0) <= CREDIT
    if reserve > max(CREDIT - debt, 0):
        assert refusal(admission, 1, place(reserve=reserve)) == DeclineCode.CREDIT
