from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.keystore import Ed25519Signer
from protocol.encoding import decode_untrusted, encode
from protocol.envelope import open_untrusted
from protocol.errors import Reason, RemoteProtocolError
from protocol.identity import (
    check_key_untrusted,
    peer_id_from_text_untrusted,
    peer_id_to_text,
    verify_untrusted,
)
from scripts.spec import examples
from scripts.spec.edge_keys import EdgeCase, edge_cases
from tests.protocol.fakes import reason_of, sealed


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_is_the_same_when_its_text_is_read(seed: bytes) -> None:
    peer_id = Ed25519Signer(seed).peer_id
    text = peer_id_to_text(peer_id)
    assert text.startswith("12D3KooW")
    assert peer_id_from_text_untrusted(text) == peer_id


@given(st.text(max_size=70))
def test_peer_id_reader_raises_one_class_when_fed_arbitrary_text(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        peer_id_from_text_untrusted(text)


@pytest.mark.parametrize("change", [" ", "\n", "1", "é"])
def test_peer_id_text_has_one_form_only(change: str) -> None:
    text = peer_id_to_text(examples.PROVIDER.peer_id)
    for other in (text + change, change + text):
        with pytest.raises(RemoteProtocolError):
            peer_id_from_text_untrusted(other)


@given(st.binary(max_size=40))
def test_key_check_raises_one_class_when_fed_arbitrary_bytes(key: bytes) -> None:
    assert reason_of(check_key_untrusted, key) in (None, Reason.SIGNER)


@pytest.mark.parametrize("case", edge_cases(), ids=lambda case: case.name)
def test_edge_case_of_ed25519_is_refused_by_key_check_or_verification(case: EdgeCase) -> None:
    assert reason_of(check_key_untrusted, case.key) == (case.reason if case.reason == "signer" else None)
    if case.reason != "signer":
        peer_id = check_key_untrusted(case.key)
        assert reason_of(lambda data: verify_untrusted(peer_id, data, case.signature), case.message) == case.reason


@given(st.binary(max_size=70), st.binary(max_size=20))
def test_verification_raises_one_class_when_fed_arbitrary_signatures(signature: bytes, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        verify_untrusted(examples.PROVIDER.peer_id, data, signature)
    assert caught.value.reason is Reason.SIGNATURE


def test_fifteen_edge_cases_of_ed25519_are_refused_and_nine_by_the_key_of_an_envelope(
    figure: Callable[[str, str], None],
) -> None:
    refused: Counter[str] = Counter()
    fields = decode_untrusted(sealed("voucher").envelope.raw, size_max=1 << 16)
    assert isinstance(fields, list)
    for case in edge_cases():
        if case.reason is None:
            continue
        if case.reason == "signer":
            # Whatever it signs: some of these keys verify one signature for every text.
            raw = encode([*fields[:3], case.key, fields[4], case.signature])
            read = partial(open_untrusted, network=examples.NETWORK, kinds=frozenset({"voucher"}))
            assert reason_of(read, raw) is Reason.SIGNER, case.name
        else:
            judge = partial(verify_untrusted, check_key_untrusted(case.key), case.message)
            assert reason_of(judge, case.signature) is Reason.SIGNATURE, case.name
        refused[case.reason] += 1
    assert refused == {"signer": 9, "signature": 6}
    figure("envelopes: Ed25519 edge vectors", f"{refused.total()} refused: {dict(refused)}")
