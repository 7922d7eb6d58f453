"""The rule of statements, for any histories: nothing falls, nobody settles more than was promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.encoding import encode
from protocol.errors import RemoteProtocolError
from protocol.schema import to_plain
from protocol.statement import (
    Head,
    Statement,
    Sums,
    Tally,
    agreed,
    check_statement_untrusted,
    check_tally_untrusted,
    next_statement,
    statement_hash,
)
from protocol.units import UnixMs
from scripts.spec import examples

NOW = UnixMs(examples.NOW_MS)
steps = st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=12)
NAMES = ("first_promised", "second_promised", "first_paid", "second_paid")


def following(head: Head, sums: Sums) -> tuple[Head, Statement] | None:
    made = next_statement(examples.PARTIES, head, sums, now_ms=NOW)
    if made is None:
        return None
    return Head(statement=made, hash=statement_hash(encode(to_plain(made)))), made


@given(steps)
def test_nothing_falls_and_nobody_settles_more_than_was_promised(growth: list[tuple[int, ...]]) -> None:
    head, books = Head(), dict.fromkeys(NAMES, 0)
    settled = [0, 0]
    for step in growth:
        for name, more in zip(NAMES, step, strict=True):
            books[name] += more
        sums = Sums(**books)
        made = following(head, sums)
        if made is None:
            assert all(getattr(head.sums, it) == getattr(sums, it) for it in NAMES[:2])
            continue
        before, (head, statement) = head, made
        check_statement_untrusted(statement, examples.PARTIES, before, sums)
        now: list[int] = [
            statement.settled_by(examples.PARTIES.first),
            statement.settled_by(examples.PARTIES.second),
        ]
        assert all(was <= is_ for was, is_ in zip(settled, now, strict=True))
        assert now[0] <= statement.first_promised and now[1] <= statement.second_promised
        # As much as can be: after netting, one side has nothing open.
        assert min(statement.first_promised - now[0], statement.second_promised - now[1]) == 0
        settled = now
        assert following(head, sums) is None


@given(steps, st.sampled_from(["netted", *NAMES]), st.integers(1, 100))
def test_any_sum_is_refused_when_it_is_above_the_books(
    growth: list[tuple[int, ...]], name: str, more: int
) -> None:
    sums = Sums(**dict(zip(NAMES, map(sum, zip(*growth, strict=True)), strict=True)))
    made = following(Head(), sums)
    if made is None:
        return
    wrong = replace(made[1], **{name: getattr(made[1], name) + more})
    with pytest.raises(RemoteProtocolError):
        check_statement_untrusted(wrong, examples.PARTIES, Head(), sums)


@given(steps, steps)
def test_unfinished_statement_is_good_when_the_books_have_gone_on(
    growth: list[tuple[int, ...]], later: list[tuple[int, ...]]
) -> None:
    first = [sum(it) for it in zip(*growth, strict=True)]
    after = [sum(it) for it in zip(*growth, *later, strict=True)]
    made = following(Head(), Sums(**dict(zip(NAMES, first, strict=True))))
    if made is not None:
        bound = Sums(**dict(zip(NAMES, after, strict=True)))
        check_statement_untrusted(made[1], examples.PARTIES, Head(), bound)


def test_promise_counts_when_the_payee_holds_it_and_the_payer_owns_up_to_it() -> None:
    own = Sums(first_promised=10, second_promised=20, second_paid=5)
    theirs = replace(examples.tally(), earned=8, promised=25)
    assert agreed(own, theirs, examples.PARTIES.second) == Sums(
        first_promised=8, second_promised=20, second_paid=5
    )
    assert agreed(own, theirs, examples.PARTIES.first) == Sums(first_promised=10, second_promised=8, second_paid=5)


@pytest.mark.parametrize("changes", [{"first": b"\x01" * 32}, {"second": b"\x01" * 32}, {"acknowledged": 99}])
def test_tally_is_refused_when_it_is_of_others_or_not_signed_for(changes: dict[str, object]) -> None:
    tally: Tally = replace(examples.tally(), **changes)
    with pytest.raises(RemoteProtocolError):
        check_tally_untrusted(tally, examples.PARTIES, 100)
    check_tally_untrusted(examples.tally(), examples.PARTIES, 100)
