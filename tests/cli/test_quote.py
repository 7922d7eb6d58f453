import pytest

from tests.cli.fakes import PEER, FakeDaemon, souk

OFFER = {
    "peer_id": PEER, "price_max_microcredits": 1_400, "price_in": 200_000, "price_out": 800_000,
    "first_token_ms": 30, "memory_bytes": 272_171_008, "hold_ms": 15_000, "code": None, "message": None,
}  # fmt: skip
REFUSAL = dict.fromkeys(OFFER) | {"peer_id": PEER, "code": "busy", "message": "8 of 8 slots"}


def test_quotes_are_a_table_of_offers_and_refusals(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/quote", {"schema": 1, "model": "smol", "quotes": [OFFER, REFUSAL]})
    ran = souk("quote", "smol", "--prompt-tokens", "100", "--max-tokens", "50")
    assert daemon.body == {"model": "smol", "prompt_tokens": 100, "max_tokens": 50}
    _head, offer, refusal = ran.out.splitlines()
    assert ran.code == 0
    for part in ("…bziXHP7Z", "1,400", "800,000", "30 ms", "259.6 MiB", "15.0 s"):
        assert part in offer
    assert "busy: 8 of 8 slots" in refusal


def test_quote_ends_with_6_when_nobody_offers(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/quote", {"schema": 1, "model": "smol", "quotes": [REFUSAL]})
    ran = souk("quote", "smol", "-o", "json")
    assert ran.code == 6 and ran.json()["quotes"] == [REFUSAL]


def test_quote_ends_with_5_when_nobody_has_the_model(daemon: FakeDaemon) -> None:
    error = {"error": {"message": "no peer has it", "type": "x", "param": "model", "code": "model_not_found"}}
    daemon.answer("POST /api/v1/quote", error, 404)
    assert souk("quote", "huge").code == 5


@pytest.mark.parametrize("option", ["--in", "--out", "--prompt-tokens", "--max-tokens"])
def test_quote_asks_for_at_least_one_token(daemon: FakeDaemon, option: str) -> None:
    assert souk("quote", "smol", option, "0").code == 2 and not daemon.asked
