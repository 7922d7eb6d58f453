"""What the books tell of the newest contracts after a restart: their rows, and when which message was written.

The times of messages only: bodies stay unread, but for the one word of a closing.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

from node.ledger.entries import ContractRow
from protocol.encoding import encode
from protocol.units import UnixMs

# As in ``standing.py``: canonical bytes hold the field in this one form.
_VERDICT_OK: Final = encode("verdict") + encode("ok")

_TIMES: Final = """
    SELECT kind, min(at_ms) FROM entry WHERE contract_id = :contract GROUP BY kind
    UNION ALL
    SELECT kind, max(at_ms) FROM entry
    WHERE job_id = :job AND peer_id = :peer AND contract_id IS NULL AND at_ms <= :until GROUP BY kind
"""
_ENDS: Final = """
    SELECT max(at_ms), max(kind = 'closing' AND instr(envelope, :ok) > 0) FROM entry WHERE contract_id = :contract
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One contract as it was left."""

    row: ContractRow
    times: dict[str, UnixMs]
    """By kind, when the first message of it was written; of quotes, the last one before the contract."""
    last_ms: UnixMs
    closed_ok: bool
    """The requester's closing says that the answer was complete."""


def read_timeline(db: sqlite3.Connection, row: ContractRow) -> Timeline:
    """Return what the entries of a contract prove. Raises: sqlite3.Error."""
    last_ms, closed_ok = db.execute(_ENDS, {"ok": _VERDICT_OK, "contract": row.contract_id}).fetchone()
    last_ms = row.at_ms if last_ms is None else last_ms
    found = db.execute(
        _TIMES, {"contract": row.contract_id, "job": row.job_id, "peer": row.peer_id, "until": last_ms}
    )
    return Timeline(
        row=row,
        times={kind: UnixMs(at_ms) for kind, at_ms in found},
        last_ms=UnixMs(last_ms),
        closed_ok=bool(closed_ok),
    )
