"""How simulated peers pay each other outside of souk: at once, and in full."""

from typing import Final

from node.ledger.settlement import PairBooks
from node.market.settlement import acknowledged, open_to_us
from protocol.units import Microcredits


class PaidAtOnce:
    """Implements ``node.market.settlement.Means``: whatever a peer promised has come by the time we ask."""

    name: Final = "paid_at_once"

    async def received(self, books: PairBooks, told: Microcredits) -> Microcredits:
        return Microcredits(acknowledged(books) + open_to_us(books))
