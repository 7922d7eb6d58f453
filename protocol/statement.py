"""Statements: what two peers owe each other, netted, signed by both and chained (spec 09). Pure rules, no I/O.

The party whose key sorts lower is the *first*. Only the first signs a new number, the second only countersigns: so
nobody ever has to sign two statements of one number, whichever of them crashes.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import ClassVar, Final

from protocol.errors import Reason, RemoteProtocolError
from protocol.fields import Count, Hash, Key, Money, TimeMs
from protocol.signed import Signed, SignedMessage
from protocol.units import Microcredits, PeerId, UnixMs
from protocol.voucher import Ordinal

STATEMENT_DOMAIN: Final = b"souk.statement.v1\x00"
NO_HASH: Final = bytes(32)


class Tally(SignedMessage, frozen=True, kw_only=True):
    """What one side's books say about both; binds nobody."""

    kind: ClassVar[str] = "tally"

    first: Key
    second: Key
    number: Count
    """Of the last statement that the signer holds with both signatures; 0 for none."""
    last: Hash
    """That statement's hash; zeros for none."""
    earned: Money
    """The sum of the highest vouchers that the signer holds from the other."""
    promised: Money
    """The sum of the highest vouchers that the signer gave to the other."""
    acknowledged: Money
    """What the signer's own last ``settled`` to the other says; 0 for none."""


class Statement(SignedMessage, frozen=True, kw_only=True):
    """Where the pair stands; all sums are cumulative over everything between the two and never fall."""

    kind: ClassVar[str] = "statement"

    first: Key
    second: Key
    number: Ordinal
    previous: Hash
    """Hash of statement ``number`` - 1; zeros for the first one."""
    first_promised: Money
    """The first's vouchers for the second, in all."""
    second_promised: Money
    netted: Money
    """Settled on both sides by setting one against the other."""
    first_paid: Money
    """Settled of what the first promised by other means, as the second acknowledged."""
    second_paid: Money
    made_at_ms: TimeMs

    def settled_by(self, peer_id: PeerId) -> Microcredits:
        """Return what is settled of this party's promises, in all."""
        return Microcredits(self.netted + (self.first_paid if peer_id == self.first else self.second_paid))

    def promised_by(self, peer_id: PeerId) -> Microcredits:
        return Microcredits(self.first_promised if peer_id == self.first else self.second_promised)


class Settled(SignedMessage, frozen=True, kw_only=True):
    """The payee's word that ``cumulative`` in all was paid to it outside of this protocol."""

    kind: ClassVar[str] = "settled"

    payer: Key
    number: Ordinal
    cumulative: Money
    made_at_ms: TimeMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """A pair in its one order."""

    first: PeerId
    second: PeerId

    @classmethod
    def of(cls, one: PeerId, other: PeerId) -> "Parties":
        low, high = sorted((one, other))
        return cls(first=PeerId(low), second=PeerId(high))

    def other(self, peer_id: PeerId) -> PeerId:
        return self.second if peer_id == self.first else self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Promises of each party, and what the other acknowledges as paid by other means. All cumulative."""

    first_promised: int = 0
    second_promised: int = 0
    first_paid: int = 0
    second_paid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last statement of a chain that both signed; none yet when ``statement`` is None."""

    statement: Statement | None = None
    hash: bytes = NO_HASH

    @property
    def number(self) -> int:
        return 0 if self.statement is None else self.statement.number

    @property
    def netted(self) -> int:
        return 0 if self.statement is None else self.statement.netted

    @property
    def sums(self) -> Sums:
        last = self.statement
        if last is None:
            return Sums()
        return Sums(
            first_promised=last.first_promised,
            second_promised=last.second_promised,
            first_paid=last.first_paid,
            second_paid=last.second_paid,
        )


def statement_hash(body: bytes) -> bytes:
    """Return the hash by which the next statement names the one with this body: both signatures share it."""
    return sha256(STATEMENT_DOMAIN + body).digest()


def head_of(signed: Signed[Statement]) -> Head:
    return Head(statement=signed.message, hash=statement_hash(signed.envelope.body))


def agreed(own: Sums, theirs: Tally, signer: PeerId) -> Sums:
    """Return what both sides' books bear out; payments are in ``own`` already, each with its payee's signature."""
    is_first = signer == theirs.first
    first, second = (theirs.promised, theirs.earned) if is_first else (theirs.earned, theirs.promised)
    return Sums(
        first_promised=min(own.first_promised, first),
        second_promised=min(own.second_promised, second),
        first_paid=own.first_paid,
        second_paid=own.second_paid,
    )


def check_tally_untrusted(tally: Tally, parties: Parties, acknowledged: int) -> None:
    """Refuse, with ``RemoteProtocolError``, another pair's tally, or one without the ``settled`` behind it."""
    if (tally.first, tally.second) != (parties.first, parties.second):
        raise RemoteProtocolError("tally: of other parties", reason=Reason.SIGNER)
    if tally.acknowledged != acknowledged:
        raise _broken(f"tally: {tally.acknowledged} acknowledged, the last settled says {acknowledged}")


def next_statement(parties: Parties, head: Head, sums: Sums, *, now_ms: UnixMs) -> Statement | None:
    """Return the statement that follows ``head`` when both sides' books bear out ``sums``; None: nothing new.

    What was paid by other means counts first, as far as anything was open; the rest of a payment counts when more
    has been promised. Then both sides' open promises are set against each other. Neither ever takes back what an
    earlier statement settled.
    """
    last = head.sums
    first_promised = max(sums.first_promised, last.first_promised)
    second_promised = max(sums.second_promised, last.second_promised)
    first_paid = max(last.first_paid, min(sums.first_paid, first_promised - head.netted))
    second_paid = max(last.second_paid, min(sums.second_paid, second_promised - head.netted))
    made = Sums(
        first_promised=first_promised,
        second_promised=second_promised,
        first_paid=first_paid,
        second_paid=second_paid,
    )
    if made == last:
        return None
    return Statement(
        first=parties.first,
        second=parties.second,
        number=head.number + 1,
        previous=head.hash,
        first_promised=first_promised,
        second_promised=second_promised,
        netted=netted_of(made),
        first_paid=first_paid,
        second_paid=second_paid,
        made_at_ms=now_ms,
    )


def netted_of(sums: Sums) -> int:
    """Return what is settled by netting: the lesser of what either side has open beyond its payments.

    It never falls from one statement to the next, because a payment counts only as far as netting left room.
    """
    return min(sums.first_promised - sums.first_paid, sums.second_promised - sums.second_paid)


def check_statement_untrusted(statement: Statement, parties: Parties, head: Head, bound: Sums) -> None:
    """Refuse, with ``RemoteProtocolError``, a statement that does not follow ``head`` or exceeds ``bound``.

    ``bound`` is what the checker's own books bear out. Less than that is let through: a statement that a crash
    kept from being countersigned is sent again as it was, and by then the books have gone on.
    """
    if (statement.first, statement.second) != (parties.first, parties.second):
        raise RemoteProtocolError("statement: of other parties", reason=Reason.SIGNER)
    if statement.number != head.number + 1:
        raise RemoteProtocolError(
            f"statement {statement.number} where {head.number + 1} is the next", reason=Reason.ORDER
        )
    if statement.previous != head.hash:
        raise _broken(f"statement {statement.number} follows another statement {head.number} than ours")
    made = Head(statement=statement).sums
    if made == head.sums:
        raise _broken(f"statement {statement.number} says nothing new")
    last = head.sums
    for name in ("first_promised", "second_promised", "first_paid", "second_paid"):
        now, before, most = getattr(made, name), getattr(last, name), getattr(bound, name)
        if now < before:
            raise _broken(f"statement {statement.number}: {name} falls from {before} to {now}")
        if now > max(most, before):
            raise _broken(f"statement {statement.number}: {name} is {now}, our books bear out {most}")
    for promised, paid in ((made.first_promised, made.first_paid), (made.second_promised, made.second_paid)):
        if paid > promised - head.netted:
            raise _broken(f"statement {statement.number}: {paid} paid of {promised}, {head.netted} of it netted")
    if statement.netted != netted_of(made):
        raise _broken(f"statement {statement.number}: {statement.netted} netted, expected {netted_of(made)}")


def check_settled_untrusted(settled: Settled, *, payer: PeerId, last: Settled | None) -> None:
    """Refuse, with ``RemoteProtocolError``, an acknowledgement for somebody else or one that takes back."""
    if settled.payer != payer:
        raise RemoteProtocolError("settled: for another payer", reason=Reason.SIGNER)
    if last is not None and (settled.number <= last.number or settled.cumulative < last.cumulative):
        raise _broken(
            f"settled {settled.number} says {settled.cumulative} µc, settled {last.number} {last.cumulative}"
        )


@dataclass(slots=True, kw_only=True)
class Chain:
    """Takes a pair's settlement messages in a ledger's order, and refuses what an honest pair cannot write."""

    parties: Parties
    head: Head = field(default_factory=Head)
    unfinished: Signed[Statement] | None = None
    """A statement that only one has signed."""
    acknowledged: dict[PeerId, Settled] = field(default_factory=dict)
    """The last one for each payer."""

    def take_untrusted(self, signed: Signed[SignedMessage], bound: Sums | None = None) -> bool:
        """Take one message and return whether it completes a statement; raises only ``RemoteProtocolError``.

        ``bound`` holds the sums of the vouchers where they are known.
        """
        if signed.signer not in (self.parties.first, self.parties.second):
            raise RemoteProtocolError(f"{signed.envelope.kind}: signed by neither party", reason=Reason.SIGNER)
        match signed.message:
            case Settled() as settled:
                payer = self.parties.other(signed.signer)
                check_settled_untrusted(settled, payer=payer, last=self.acknowledged.get(payer))
                self.acknowledged[payer] = settled
                return False
            case Statement() as statement:
                return self._statement_untrusted(Signed(statement, signed.envelope), bound)
            case _:
                raise RemoteProtocolError(f"{signed.envelope.kind}: not of a settlement", reason=Reason.TYPE)

    def _statement_untrusted(self, signed: Signed[Statement], bound: Sums | None) -> bool:
        """Take a first signature, or the second one under it; raises nothing but ``RemoteProtocolError``."""
        first = self.unfinished
        if first is None:
            promised = Head(statement=signed.message).sums if bound is None else bound
            limit = Sums(
                first_promised=promised.first_promised,
                second_promised=promised.second_promised,
                first_paid=self.paid_by(self.parties.first),
                second_paid=self.paid_by(self.parties.second),
            )
            check_statement_untrusted(signed.message, self.parties, self.head, limit)
            if signed.signer != self.parties.first:
                raise RemoteProtocolError("statement: the second signed before the first", reason=Reason.SIGNER)
            self.unfinished = signed
            return False
        if signed.envelope.body != first.envelope.body or signed.signer == first.signer:
            raise _broken(f"statement {signed.message.number} is not the one that waits for its second signature")
        self.head, self.unfinished = head_of(signed), None
        return True

    def paid_by(self, payer: PeerId) -> int:
        """Return what the other party acknowledges that ``payer`` paid by other means."""
        settled = self.acknowledged.get(payer)
        return 0 if settled is None else settled.cumulative


def _broken(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, reason=Reason.MEANING)
