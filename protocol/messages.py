"""Every signed message type by its name on the wire (spec 03)."""

from typing import Final

from protocol.advert import Advert
from protocol.contract import Accept, Cancel, Contract
from protocol.offer import Ask, Decline, Quote
from protocol.receipt import Closing, Receipt
from protocol.resume import Resume
from protocol.signed import SignedMessage
from protocol.statement import Settled, Statement, Tally
from protocol.voucher import Meter, Voucher

MESSAGE_TYPES: Final[dict[str, type[SignedMessage]]] = {
    message_type.kind: message_type
    for message_type in (
        Advert,
        Ask,
        Quote,
        Decline,
        Contract,
        Accept,
        Meter,
        Voucher,
        Receipt,
        Closing,
        Cancel,
        Resume,
        Tally,
        Statement,
        Settled,
    )
}
