from typing import Any

import pytest
from msgspec.structs import replace

from node.keystore import Ed25519Signer
from protocol import limits
from protocol.contract import Accept, Contract, check_accept_untrusted, check_contract_untrusted, hash_input
from protocol.errors import Reason, RemoteProtocolError
from protocol.signed import Signed, sign
from protocol.units import MessageId, UnixMs
from scripts.spec import examples

GOOD = examples.contract(MessageId(bytes(32)))


def check(
    contract: Contract, *, now_ms: int = examples.NOW_MS, signer: Ed25519Signer = examples.REQUESTER
) -> None:
    signed = sign(contract, network=examples.NETWORK, signer=signer)
    check_contract_untrusted(signed, provider=examples.PROVIDER.peer_id, now_ms=UnixMs(now_ms))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"provider": examples.STRANGER.peer_id}, Reason.SIGNER),
        ({"requester": examples.STRANGER.peer_id}, Reason.SIGNER),
        ({"version": 2}, Reason.MEANING),
        ({"accept_by_ms": GOOD.made_at_ms - 1}, Reason.TIME),
        ({"start_by_ms": GOOD.accept_by_ms - 1}, Reason.TIME),
        ({"end_by_ms": GOOD.start_by_ms - 1}, Reason.TIME),
        ({"accept_by_ms": GOOD.made_at_ms + limits.ACCEPT_WAIT_MS_MAX + 1}, Reason.TIME),
        ({"end_by_ms": GOOD.made_at_ms + limits.JOB_LIFE_MS_MAX + 1}, Reason.TIME),
        ({"input_bytes": 0}, Reason.SIZE),
        ({"input_bytes": limits.INPUT_BYTES_MAX + 1}, Reason.SIZE),
    ],
)
def test_contract_is_refused_when_its_terms_make_no_sense(change: dict[str, Any], expected: Reason) -> None:
    check(GOOD)
    with pytest.raises(RemoteProtocolError) as caught:
        check(replace(GOOD, **change))
    assert caught.value.reason is expected


def test_contract_is_refused_when_both_parties_are_one() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check(replace(GOOD, requester=examples.PROVIDER.peer_id), signer=examples.PROVIDER)
    assert caught.value.reason is Reason.MEANING


def test_contract_is_refused_when_clocks_differ_by_more_than_the_skew() -> None:
    earliest = GOOD.made_at_ms - limits.CLOCK_SKEW_MS_MAX
    latest = GOOD.accept_by_ms + limits.CLOCK_SKEW_MS_MAX
    for now_ms in (earliest, latest):
        check(GOOD, now_ms=now_ms)
    for now_ms in (earliest - 1, latest + 1):
        with pytest.raises(RemoteProtocolError) as caught:
            check(GOOD, now_ms=now_ms)
        assert caught.value.reason is Reason.TIME


@pytest.mark.parametrize(
    ("change", "signer", "expected"),
    [
        ({}, examples.STRANGER, Reason.SIGNER),
        ({"contract_id": bytes(32)}, examples.PROVIDER, Reason.MEANING),
        ({"tokens_in": GOOD.tokens_in_max + 1}, examples.PROVIDER, Reason.MEANING),
    ],
)
def test_acceptance_is_refused_when_it_does_not_form_the_contract(
    change: dict[str, Any], signer: Ed25519Signer, expected: Reason
) -> None:
    contract_id = MessageId(b"c" * 32)
    good = Accept(contract_id=contract_id, accepted_at_ms=1, tokens_in=GOOD.tokens_in_max)

    def check_accept(accept: Accept, signer: Ed25519Signer) -> None:
        signed: Signed[Accept] = sign(accept, network=examples.NETWORK, signer=signer)
        check_accept_untrusted(signed, contract_id=contract_id, contract=GOOD)

    check_accept(good, examples.PROVIDER)
    with pytest.raises(RemoteProtocolError) as caught:
        check_accept(replace(good, **change), signer)
    assert caught.value.reason is expected


def test_input_hash_depends_on_salt_and_input() -> None:
    hashes = {hash_input(salt * 16, data) for salt in (b"a", b"b") for data in (b"", b"x")}
    assert len(hashes) == 4
