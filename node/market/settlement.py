"""Means of settlement: how this node knows what a peer has paid it outside of the protocol (spec 09, section 8).

One interface with one question. ``settlement_exchange.py`` signs the answer and nets the rest; it knows no means.
"""

from typing import Final, Protocol

from node.config import MarketSection
from node.errors import NodeError
from node.ledger.settlement import PairBooks
from protocol.units import Microcredits


class SettlementError(NodeError):
    """Nothing was settled; the message says why."""


class Means(Protocol):
    """A way in which payments arrive. A chain or a bank would be one more class here, and no change elsewhere."""

    @property
    def name(self) -> str:
        """What ``market.settlement`` calls it."""

    async def received(self, books: PairBooks, told: Microcredits) -> Microcredits:
        """Return how much this peer has paid us by this means in all: final, and never less than before.

        ``told`` is what the operator says has just come on top, 0 for nothing.

        Raises: SettlementError (the operator's word cannot be taken, or the means cannot be asked now).
        """


class NoMeans:
    """GPU time for GPU time: nothing is ever paid, promises net out."""

    name: Final = "none"

    async def received(self, books: PairBooks, told: Microcredits) -> Microcredits:
        if told:
            raise SettlementError(
                'this node nets only (market.settlement = "none") and takes no payments: nothing was acknowledged;'
                ' set market.settlement = "manual" to acknowledge them by hand'
            )
        return acknowledged(books)


class ManualMeans:
    """The operator says what came: by bank, in coins, as a crate of beer."""

    name: Final = "manual"

    async def received(self, books: PairBooks, told: Microcredits) -> Microcredits:
        before = acknowledged(books)
        left = open_to_us(books)
        if told > left:
            # An acknowledgement cannot be taken back: a slip of the keyboard, or a word said twice, ends here.
            raise SettlementError(
                f"{told} µc is more than the {left} µc that this peer owes beyond what is settled or acknowledged;"
                " nothing was acknowledged"
            )
        return Microcredits(before + told)


def means_of(market: MarketSection) -> Means:
    """Return the means that the configuration names."""
    return ManualMeans() if market.settlement == "manual" else NoMeans()


def acknowledged(books: PairBooks) -> Microcredits:
    """Return what this node has said that the peer paid, in all."""
    return Microcredits(0 if books.acknowledged is None else books.acknowledged.message.cumulative)


def open_to_us(books: PairBooks) -> Microcredits:
    """Return what the peer promised and has neither settled nor, as we acknowledged, paid."""
    statement = books.head.statement
    netted = 0 if statement is None else statement.netted
    return Microcredits(max(books.earned - netted - acknowledged(books), 0))
