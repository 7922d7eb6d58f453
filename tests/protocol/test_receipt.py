from typing import get_args

import pytest
from msgspec.structs import replace

from protocol.receipt import Closing, Receipt, ReceiptStatus, Verdict
from protocol.signed import SignedMessage, read_untrusted, sign
from scripts.spec import examples

BOTH: tuple[type[SignedMessage], ...] = (Receipt, Closing)


def travelled(message: SignedMessage) -> SignedMessage:
    signed = sign(message, network=examples.NETWORK, signer=examples.PROVIDER)
    return read_untrusted(signed.envelope.raw, network=examples.NETWORK, allowed=BOTH).message


@pytest.mark.parametrize("status", get_args(ReceiptStatus))
def test_receipt_travels_with_every_status(status: ReceiptStatus) -> None:
    receipt = replace(examples.messages()["receipt"][1], status=status, finish=None)
    assert travelled(receipt) == receipt


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_closing_travels_with_every_verdict(verdict: Verdict) -> None:
    closing = replace(examples.messages()["closing"][1], verdict=verdict)
    assert travelled(closing) == closing
