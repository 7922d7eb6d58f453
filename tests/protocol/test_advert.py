import pytest
from msgspec.structs import replace

from protocol import limits
from protocol.advert import Advert, check_life_untrusted
from protocol.envelope import body_bytes_max
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.signed import sign
from protocol.units import UnixMs
from scripts.spec import examples


def refused(advert: Advert, now_ms: int) -> Reason:
    with pytest.raises(RemoteProtocolError) as caught:
        check_life_untrusted(advert, UnixMs(now_ms))
    return caught.value.reason


def test_advert_is_fresh_until_the_moment_it_expires() -> None:
    advert = examples.advert()
    check_life_untrusted(advert, UnixMs(advert.expires_at_ms - 1))
    assert refused(advert, advert.expires_at_ms) is Reason.TIME


def test_advert_is_refused_when_it_is_of_the_future() -> None:
    advert = examples.advert()
    check_life_untrusted(advert, UnixMs(advert.issued_at_ms - limits.CLOCK_SKEW_MS_MAX))
    assert refused(advert, advert.issued_at_ms - limits.CLOCK_SKEW_MS_MAX - 1) is Reason.TIME


@pytest.mark.parametrize("life_ms", [-1, 0, limits.ADVERT_LIFE_MS_MAX + 1])
def test_advert_is_refused_when_its_life_is_out_of_bounds(life_ms: int) -> None:
    advert = examples.advert()
    advert = replace(advert, expires_at_ms=advert.issued_at_ms + life_ms)
    assert refused(advert, advert.issued_at_ms) is Reason.TIME


def test_advert_of_ours_is_refused_when_its_body_is_over_4_kib() -> None:
    advert = examples.advert()
    full = replace(advert, devices=advert.devices * limits.DEVICES_MAX, offers=advert.offers * limits.MODELS_MAX)
    assert body_bytes_max("advert") == limits.ADVERT_BYTES_MAX
    with pytest.raises(LocalProtocolError) as caught:
        sign(full, network=examples.NETWORK, signer=examples.PROVIDER)
    assert caught.value.reason is Reason.SIZE
