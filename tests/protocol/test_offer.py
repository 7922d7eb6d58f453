import pytest

from protocol.errors import DeclineCode
from protocol.offer import Decline
from protocol.signed import read_untrusted, sign
from scripts.spec import examples


@pytest.mark.parametrize("code", list(DeclineCode))
def test_decline_travels_with_every_code(code: DeclineCode) -> None:
    decline = Decline(refers_to=bytes(32), code=code, message="")
    signed = sign(decline, network=examples.NETWORK, signer=examples.PROVIDER)
    read = read_untrusted(signed.envelope.raw, network=examples.NETWORK, allowed=[Decline])
    assert read.message.code is code
