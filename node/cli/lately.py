"""``--since`` of the books: what happened, and what was promised, in a span of time."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from node.cli.durations import duration_s

Json = dict[str, Any]  # JSON of the daemon, or in its form; shown and not judged

MS_PER_S: Final = 1000
SINCE: Final = click.option(
    "--since", callback=duration_s, metavar="TIME", help="Only what is not older, such as 24h or 30d."
)


def begin_ms(since_s: float) -> int:
    """Return the moment so long ago, in Unix milliseconds."""
    return round((time.time() - since_s) * MS_PER_S)


def newer(items: Iterable[Json], since_s: float | None) -> Iterator[Json]:
    """Yield what is not older than ``since_s``; everything when that is None."""
    least_ms = None if since_s is None else begin_ms(since_s)
    return (it for it in items if least_ms is None or it["at_ms"] >= least_ms)


def promised_since(entries: Iterable[Json], least_ms: int) -> Json:
    """Return what each peer and this node promised each other in vouchers from ``least_ms`` on.

    A voucher says what its contract has cost so far: what counts is by how much it grew.
    """
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    sides: dict[str, tuple[str, bool]] = {}
    for it in entries:
        if it["kind"] != "voucher" or it["contract_id"] is None:
            continue
        contract_id, sum_ = it["contract_id"], it["cumulative_microcredits"] or 0
        sides[contract_id] = it["peer_id"], it["signer"] == it["peer_id"]
        sums = after if it["at_ms"] >= least_ms else before
        sums[contract_id] = max(sum_, sums.get(contract_id, 0))
    peers: dict[str, Json] = {}
    for contract_id, sum_ in after.items():
        peer_id, is_earned = sides[contract_id]
        line = peers.setdefault(
            peer_id, {"peer_id": peer_id, "earned_microcredits": 0, "spent_microcredits": 0, "contracts": 0}
        )
        grown = max(sum_ - before.get(contract_id, 0), 0)
        line["earned_microcredits" if is_earned else "spent_microcredits"] += grown
        line["contracts"] += 1
    listed = sorted(peers.values(), key=lambda it: -(it["earned_microcredits"] + it["spent_microcredits"]))
    return {
        "schema": 1,
        "since_ms": least_ms,
        "earned_microcredits": sum(it["earned_microcredits"] for it in listed),
        "spent_microcredits": sum(it["spent_microcredits"] for it in listed),
        "peers": listed,
    }
