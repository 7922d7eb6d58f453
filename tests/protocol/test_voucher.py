import pytest

from protocol.errors import Reason
from protocol.signed import SignedMessage, read_untrusted
from protocol.voucher import Meter, Voucher
from scripts.spec import examples
from tests.protocol.fakes import body_of, reason_of, resealed

BOTH: tuple[type[SignedMessage], ...] = (Meter, Voucher)


def read(raw: bytes) -> SignedMessage:
    return read_untrusted(raw, network=examples.NETWORK, allowed=BOTH).message


@pytest.mark.parametrize("name", ["number", "meter"])
@pytest.mark.parametrize("value", [0, -1, (1 << 32) + 1])
def test_voucher_is_refused_when_an_ordinal_is_out_of_bounds(name: str, value: int) -> None:
    raw = resealed("voucher", {**body_of("voucher"), name: value})
    assert reason_of(read, raw) is Reason.SCHEMA


@pytest.mark.parametrize("final", [0, 1, "true"])
def test_meter_is_refused_when_final_is_no_bool(final: int | str) -> None:
    raw = resealed("meter", {**body_of("meter"), "final": final})
    assert reason_of(read, raw) is Reason.SCHEMA
