from typing import Any

import pytest

from node.cli.lately import newer, promised_since
from tests.cli.fakes import PEER


def voucher(
    contract_id: str, at_ms: int, sum_: int, *, signer: str = PEER, kind: str = "voucher"
) -> dict[str, Any]:
    return {
        "kind": kind,
        "contract_id": contract_id,
        "peer_id": PEER,
        "signer": signer,
        "at_ms": at_ms,
        "cumulative_microcredits": sum_,
    }


def test_only_what_a_contract_grew_by_counts() -> None:
    entries = [
        voucher("old", 1, 100),
        voucher("across", 2, 30),
        voucher("across", 10, 50),
        voucher("across", 11, 70),
        voucher("new", 12, 5, signer="us"),
        voucher("new", 12, 900, kind="receipt"),
    ]
    found = promised_since(entries, 10)
    line = {"peer_id": PEER, "earned_microcredits": 40, "spent_microcredits": 5, "contracts": 2}
    assert found == {
        "schema": 1,
        "since_ms": 10,
        "earned_microcredits": 40,
        "spent_microcredits": 5,
        "peers": [line],
    }
    assert promised_since(entries, 13)["peers"] == []


@pytest.mark.parametrize(("since_s", "kept"), [(None, [1, 4_000_000_000_000]), (60.0, [4_000_000_000_000])])
def test_what_is_older_is_left_out(since_s: float | None, kept: list[int]) -> None:
    items = [{"at_ms": 1}, {"at_ms": 4_000_000_000_000}]
    assert [it["at_ms"] for it in newer(items, since_s)] == kept
