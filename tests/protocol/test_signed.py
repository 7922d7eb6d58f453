import pytest

from protocol.contract import Contract
from protocol.encoding import encode
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.receipt import Closing
from protocol.signed import SignedMessage, read_untrusted, require_signer_untrusted, sign
from protocol.voucher import Meter, Voucher
from scripts.spec import examples
from tests.protocol.fakes import body_of, forced, reason_of, sealed


def test_reader_refuses_a_body_when_it_is_not_canonical_although_the_signature_holds() -> None:
    body = body_of("voucher")
    backwards = b"\x84" + b"".join(encode(name) + encode(body[name]) for name in sorted(body, reverse=True))
    twice = b"\x85" + encode("meter") + encode(1) + encode(body)[1:]
    for data in (backwards, twice, encode(body) + b"\xc0", encode(body)[:-1]):
        assert (
            reason_of(
                lambda raw: read_untrusted(raw, network=examples.NETWORK, allowed=[Voucher]),
                forced("voucher", data),
            )
            is Reason.ENCODING
        )


def test_reader_refuses_a_message_when_its_type_is_not_expected() -> None:
    others: list[type[SignedMessage]] = [Meter, Closing]
    with pytest.raises(RemoteProtocolError) as caught:
        read_untrusted(sealed("voucher").envelope.raw, network=examples.NETWORK, allowed=others)
    assert caught.value.reason is Reason.TYPE


def test_message_is_refused_when_somebody_else_signed_it() -> None:
    signed = sealed("voucher")
    require_signer_untrusted(signed, examples.REQUESTER.peer_id)
    with pytest.raises(RemoteProtocolError) as caught:
        require_signer_untrusted(signed, examples.PROVIDER.peer_id)
    assert caught.value.reason is Reason.SIGNER


def test_signing_is_refused_when_our_message_breaks_its_schema() -> None:
    voucher = Voucher(contract_id=bytes(31), number=1, cumulative=0, meter=1)
    with pytest.raises(LocalProtocolError):
        sign(voucher, network=examples.NETWORK, signer=examples.REQUESTER)


def test_signed_message_carries_its_id_and_signer() -> None:
    signed = sealed("contract")
    read = read_untrusted(signed.envelope.raw, network=examples.NETWORK, allowed=[Contract])
    assert (read.message_id, read.signer) == (signed.message_id, examples.REQUESTER.peer_id)
