"""Where this node stands with every peer, for the exposure rule: what is open, how old it is, what was settled.

One query when the daemon starts; from then on ``node/market/exposures.py`` counts along.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

from protocol.encoding import encode
from protocol.states import ProviderState, RequesterState
from protocol.units import MS_PER_S, Microcredits, PeerId, UnixMs

AGE_STEP_S: Final = 3_600
"""Ages are counted in steps of an hour, from the step's beginning: a busy year makes no more than a day's rows."""
_STEP_MS: Final = AGE_STEP_S * MS_PER_S
_MS_PER_DAY: Final = 24 * 3_600 * MS_PER_S

# A requester's row does not say which verdict closed it, its closing does. Canonical bytes hold the field in this
# one form, and decoding 100 000 closings at every start would take seconds.
_VERDICT_OK: Final = encode("verdict") + encode("ok")

_SOLD: Final = """
    SELECT peer_id, CASE WHEN at_ms < :since THEN 0 ELSE at_ms - at_ms % :step END AS step,
        sum(CASE WHEN state = :failed THEN vouchered ELSE max(metered, vouchered) END)
    FROM contract WHERE role = 'provider' GROUP BY peer_id, step ORDER BY peer_id, step
"""
_BOUGHT: Final = """
    SELECT peer_id, CASE WHEN at_ms < :since THEN 0 ELSE at_ms - at_ms % :step END AS step,
        state = :closed AND EXISTS (
            SELECT 1 FROM entry WHERE entry.contract_id = contract.contract_id AND kind = 'closing'
            AND instr(envelope, :ok) > 0
        ) AS is_ok,
        sum(vouchered)
    FROM contract WHERE role = 'requester' GROUP BY peer_id, step, is_ok ORDER BY peer_id, step
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is open with one peer."""

    settled: Microcredits
    """All that ever came of it: payments to a provider, answers closed as ``ok`` to a requester."""
    paid: Microcredits
    """Of ``owed``, what was settled since, the oldest first."""
    owed: tuple[tuple[UnixMs, Microcredits], ...]
    """(beginning of the hour, sum) of contracts that are over; 0 for all that is too old to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """All of them, as of ``read_at_ms``."""

    read_at_ms: UnixMs
    sold: dict[PeerId, Standing]
    """By requester: what it took and promised, and what of that is settled."""
    bought: dict[PeerId, Standing]
    """By provider: what was promised to it for contracts that did not end well, and for those that did."""


def standings(db: sqlite3.Connection, now_ms: UnixMs, forgive_after_days: int) -> Standings:
    """Return what is open with every peer; with 0 days nothing is too old to count. Raises: sqlite3.Error."""
    # With nothing to forgive no age matters, and one row a peer will do.
    since_ms = now_ms - forgive_after_days * _MS_PER_DAY if forgive_after_days else now_ms
    ages = {"since": since_ms - since_ms % _STEP_MS - _STEP_MS, "step": _STEP_MS}
    received: dict[bytes, int] = {}
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'settled'").fetchone() is not None:
        received = dict(db.execute("SELECT peer_id, max(received) FROM settled GROUP BY peer_id").fetchall())
    sold: dict[bytes, list[tuple[UnixMs, Microcredits]]] = {peer_id: [] for peer_id in received}
    for peer_id, step_ms, owed in db.execute(_SOLD, {**ages, "failed": str(ProviderState.FAILED)}):
        sold.setdefault(peer_id, []).append((UnixMs(step_ms), Microcredits(owed)))
    bought: dict[bytes, list[tuple[UnixMs, Microcredits]]] = {}
    went_well: dict[bytes, int] = {}
    sums = {**ages, "closed": str(RequesterState.CLOSED), "ok": _VERDICT_OK}
    for peer_id, step_ms, is_ok, promised in db.execute(_BOUGHT, sums):
        lost = bought.setdefault(peer_id, [])
        if is_ok:
            went_well[peer_id] = went_well.get(peer_id, 0) + promised
        else:
            lost.append((UnixMs(step_ms), Microcredits(promised)))
    return Standings(
        read_at_ms=now_ms,
        sold={
            PeerId(peer_id): Standing(settled=paid, paid=paid, owed=tuple(owed))
            for peer_id, owed in sold.items()
            for paid in (Microcredits(received.get(peer_id, 0)),)
        },
        bought={
            PeerId(peer_id): Standing(
                settled=Microcredits(went_well.get(peer_id, 0)), paid=Microcredits(0), owed=tuple(lost)
            )
            for peer_id, lost in bought.items()
        },
    )
