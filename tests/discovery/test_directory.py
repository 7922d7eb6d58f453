"""The directory keeps the newest advert of each peer, of good ones only, and never too many."""

import pytest

from node.discovery import directory as directory_module
from node.discovery.directory import Directory
from protocol import limits
from protocol.errors import Reason, RemoteProtocolError
from protocol.signed import sign
from protocol.units import NetworkId, PeerId, UnixMs
from tests.discovery.fakes import NETWORK, advert, offer
from tests.fakes import EPOCH_MS, served_model, signer_of

NOW = UnixMs(EPOCH_MS)


@pytest.fixture
def directory() -> Directory:
    return Directory(NETWORK, signer_of("me").peer_id)


def names(directory: Directory, now_ms: int = NOW) -> list[str]:
    return [listing.advert.name for listing in directory.listings(UnixMs(now_ms))]


def later(ms: int) -> UnixMs:
    return UnixMs(NOW + ms)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (advert(now_ms=NOW - 60_000).envelope.raw, Reason.TIME),
        (advert(now_ms=NOW + limits.CLOCK_SKEW_MS_MAX + 1).envelope.raw, Reason.TIME),
        (advert(life_ms=limits.ADVERT_LIFE_MS_MAX + 1).envelope.raw, Reason.TIME),
        (advert(sequence=NOW + limits.CLOCK_SKEW_MS_MAX + 1).envelope.raw, Reason.TIME),
        (advert(network=NetworkId(b"x" * 32)).envelope.raw, Reason.NETWORK),
        (b"\x00" * 10_000, Reason.SIZE),
        (b"garbage", Reason.ENCODING),
    ],
    ids=[
        "expired",
        "future",
        "too long a life",
        "sequence of the future",
        "foreign network",
        "too long",
        "garbage",
    ],
)
def test_advert_is_refused_when_it_is_not_good(directory: Directory, raw: bytes, reason: Reason) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        directory.hear_untrusted(raw, NOW)
    assert caught.value.reason is reason and names(directory) == []


def test_advert_is_refused_when_its_signature_is_broken(directory: Directory) -> None:
    raw = bytearray(advert().envelope.raw)
    raw[-1] ^= 1
    with pytest.raises(RemoteProtocolError) as caught:
        directory.hear_untrusted(bytes(raw), NOW)
    assert caught.value.reason is Reason.SIGNATURE


def test_advert_speaks_for_its_signer_only(directory: Directory) -> None:
    directory.hear_untrusted(advert("p").envelope.raw, NOW)
    forged = sign(advert("p", now_ms=NOW + 5_000).message, network=NETWORK, signer=signer_of("thief"))
    directory.hear_untrusted(forged.envelope.raw, later(5_000))
    assert {it.peer_id for it in directory.listings(later(5_000))} == {
        signer_of("p").peer_id,
        signer_of("thief").peer_id,
    }


def test_newest_advert_of_a_peer_wins_in_whatever_order_they_come(directory: Directory) -> None:
    old, new = advert(slots_free=1), advert(now_ms=NOW + 2_000, slots_free=2)
    assert directory.hear_untrusted(new.envelope.raw, later(2_000)) is not None
    assert directory.hear_untrusted(old.envelope.raw, later(2_000)) is None
    assert directory.hear_untrusted(new.envelope.raw, later(2_000)) is None
    (listing,) = directory.listings(later(2_000))
    assert listing.advert.slots_free == 2 and listing.heard_at_ms == NOW + 2_000


def test_adverts_are_refused_when_one_peer_floods(directory: Directory) -> None:
    accepted = 0
    for number in range(1_000):
        try:
            raw = advert(sequence=NOW + number * 1_000).envelope.raw
            accepted += directory.hear_untrusted(raw, NOW) is not None
        except RemoteProtocolError as exc:
            assert exc.reason in (Reason.RATE, Reason.TIME)  # noqa: PT017 - either way it is refused
    # What the tolerance for clocks lets through at once; after that one a second.
    assert accepted <= limits.CLOCK_SKEW_MS_MAX // 1_000 + 1
    with pytest.raises(RemoteProtocolError, match="faster than one a second"):
        directory.hear_untrusted(advert(sequence=NOW + 60_001).envelope.raw, later(2))


def test_own_advert_is_not_listed(directory: Directory) -> None:
    assert directory.hear_untrusted(advert("me").envelope.raw, NOW) is None
    assert names(directory) == []


def test_advert_is_forgotten_when_it_expires(directory: Directory) -> None:
    directory.hear_untrusted(advert().envelope.raw, NOW)
    assert names(directory, NOW + 59_999) == ["p"] and names(directory, NOW + 60_000) == []


def test_directory_is_bounded(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "PEERS_MAX", 5)
    for number in range(20):
        directory.hear_untrusted(advert(f"p{number}", life_ms=60_000 + number).envelope.raw, NOW)
    assert names(directory) == [f"p{number}" for number in range(15, 20)]


def test_candidates_are_found_by_name_and_by_the_start_of_the_models_id(directory: Directory) -> None:
    directory.hear_untrusted(advert(offers=(offer("tiny"), offer("other"))).envelope.raw, NOW)
    digits = served_model("tiny").model_id.hex()
    for wanted in ("tiny", digits[:8], digits, digits[:8].upper()):
        (found,) = directory.candidates(wanted, NOW)
        assert found.offer.name == "tiny"
    assert directory.candidates(digits[:7], NOW) == directory.candidates("tin", NOW) == []
    assert list(directory.model_names(NOW)) == ["other", "tiny"]


def test_peer_is_doubted_until_it_says_something_new(directory: Directory) -> None:
    directory.doubt(signer_of("p").peer_id)  # nothing was heard of it: nothing to doubt
    directory.hear_untrusted(advert().envelope.raw, NOW)
    assert [it.is_doubted for it in directory.candidates("tiny", NOW)] == [False]
    directory.doubt(signer_of("p").peer_id)
    assert [it.is_doubted for it in directory.candidates("tiny", NOW)] == [True]
    directory.hear_untrusted(advert(now_ms=NOW + 1_000).envelope.raw, later(1_000))
    assert [it.is_doubted for it in directory.candidates("tiny", later(1_000))] == [False]


def test_peer_is_no_candidate_when_it_speaks_other_versions_only(directory: Directory) -> None:
    directory.hear_untrusted(advert("new", versions=(2, 3)).envelope.raw, NOW)
    directory.hear_untrusted(advert("both", versions=(1, 2)).envelope.raw, NOW)
    assert [it.listing.advert.name for it in directory.candidates("tiny", NOW)] == ["both"]


def test_banned_peer_is_listed_no_more_and_again_when_its_ban_is_lifted() -> None:
    banned: set[PeerId] = set()
    directory = Directory(NETWORK, signer_of("me").peer_id, banned=banned)
    first = advert()
    assert directory.hear_untrusted(first.envelope.raw, NOW) is not None
    banned.add(first.signer)
    assert names(directory) == [] and not directory.candidates(served_model().name, NOW)
    assert directory.hear_untrusted(advert(sequence=NOW + 2_000).envelope.raw, later(2_000)) is None
    banned.clear()
    assert directory.hear_untrusted(advert(sequence=NOW + 2_000).envelope.raw, later(2_000)) is not None
    assert len(names(directory)) == 1
