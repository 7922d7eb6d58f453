"""Nodes that lie: the same code as everybody's, except for what it signs.

A lie changes a message just before it is signed, so that everything else about it is in order.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from node.market.party import Party, S
from protocol.advert import Advert
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed
from protocol.voucher import Meter, Voucher


class Lie(StrEnum):
    METER_ABOVE = "meter_above"
    """A provider bills more than the prices give."""
    METER_TOKENS = "meter_tokens"
    """A provider counts tokens that it never sent."""
    RECEIPT_TOKENS = "receipt_tokens"
    RECEIPT_ABOVE = "receipt_above"
    ADVERT = "advert"
    """A provider that is always free, cheap and at somebody else's address."""
    NEVER_PAYS = "never_pays"
    """A requester that promises nothing, in good order."""
    OVERPAYS = "overpays"
    """A requester whose vouchers exceed their meters: money that nobody could prove."""
    REPLAYS = "replays"
    """A requester that tells old contracts again, and old adverts of others; see ``node.testnet.replays``."""
    VANISHES = "vanishes"
    """A requester whose machine goes silent in mid-job and never comes back; see ``node.testnet.faults``."""


PROVIDER_LIES = frozenset({Lie.METER_ABOVE, Lie.METER_TOKENS, Lie.RECEIPT_TOKENS, Lie.RECEIPT_ABOVE, Lie.ADVERT})


@dataclass(frozen=True, slots=True, kw_only=True)
class LyingParty(Party):
    """A party that changes what it signs, half of the times."""

    lie: Lie
    rng: random.Random

    def sign(self, message: S) -> Signed[S]:
        # ``Party.sign`` by name: slots make a new class, in which a bare super() finds nothing.
        return Party.sign(self, self._bend(message) if self.rng.random() < 0.5 else message)

    def _bend(self, message: S) -> S:
        match self.lie, message:
            case Lie.METER_ABOVE, Meter():
                return msgspec.structs.replace(message, cumulative=message.cumulative * 2 + 1)
            case Lie.METER_TOKENS, Meter():
                return msgspec.structs.replace(message, tokens_out=message.tokens_out + 7)
            case Lie.RECEIPT_TOKENS, Receipt():
                return msgspec.structs.replace(message, tokens_out=message.tokens_out + 1)
            case Lie.RECEIPT_ABOVE, Receipt():
                return msgspec.structs.replace(message, cumulative=message.cumulative + 1)
            case Lie.ADVERT, Advert():
                return msgspec.structs.replace(
                    message,
                    slots_total=64,
                    slots_free=64,
                    queue_ms=0,
                    credit=1 << 40,
                    offers=tuple(
                        msgspec.structs.replace(
                            offer,
                            prices=msgspec.structs.replace(offer.prices, tokens_out=1, tokens_in=0),
                            tokens_per_s_milli=1_000_000_000,
                        )
                        for offer in message.offers
                    ),
                    addresses=() if self.rng.random() < 0.3 else message.addresses,
                )
            case Lie.NEVER_PAYS, Voucher() | Closing():
                return msgspec.structs.replace(message, cumulative=0)
            case Lie.OVERPAYS, Voucher():
                return msgspec.structs.replace(message, cumulative=message.cumulative + 1_000)
        return message
